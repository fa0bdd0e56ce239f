"""``measurement.json``, in ExLlamaV2's form: what every row of options costs each module; and the choice of rows for a rate."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import FormatError, QconvError, UsageError
from ...formats.whole_file import whole_file
from ...quantizers.budget import Options, solve
from ...quantizers.rounding.exl2_options import Exl2Option
from .modules import Exl2Module, Exl2Subject

__all__ = ["Measured", "Strategy", "check_rate", "choose_rows", "read_measurement", "write_measurement"]


@dataclass(frozen=True)
class Measured:
    """What a module can become.

    Attributes:
        rows: options of its matrices.
        accuracies: of each row, 1 minus the relative error.
    """

    rows: tuple[tuple[Exl2Option, ...], ...]
    accuracies: tuple[float, ...]


@dataclass(frozen=True)
class Strategy:
    """What every module is to become.

    Attributes:
        rows: options of the matrices, by module.
        bits: that all of them take.
        loss: sum of the relative errors, as they were measured one by one.
    """

    rows: Mapping[str, tuple[Exl2Option, ...]]
    bits: int
    loss: float


def write_measurement(path: Path, subject: Exl2Subject, known: Mapping[str, Measured]) -> None:
    """Write what is known by now."""
    found: dict[str, Any] = {}
    for module in subject.modules:
        if module.name not in known:
            continue
        measured = known[module.name]
        found[module.name] = [
            {"accuracy": accuracy, "total_bits": module.bits(row)}
            | {column: option.to_dict() for column, option in zip(module.columns, row, strict=True)}
            for row, accuracy in zip(measured.rows, measured.accuracies, strict=True)
        ]
    last = len(found)
    if last == len(subject.modules):
        found |= {"model.norm.norm": None, "lm_head.linear": None}
        last += 2
    text = json.dumps({"measurement": found, "last_module_idx": last}, indent=1) + "\n"
    with whole_file(path) as file:
        file.write(text.encode())


def read_measurement(path: Path, subject: Exl2Subject) -> dict[str, Measured]:
    """Return what a file says of the modules of a model.

    ExLlamaV2's files are read as well. Raises FormatError, naming the module, for a file that is none or of a model of other shapes.
    """
    try:
        found = json.loads(path.read_bytes())
        modules = dict(found["measurement"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError("is no measurement", path=path, remedy="Delete it, to measure again.") from error
    known = {it.name: it for it in subject.modules}
    unknown = [name for name, rows in modules.items() if name not in known and rows is not None]
    if unknown:
        raise FormatError(
            f"has {unknown[0]}, which the model has not", path=path, remedy="Name a measurement of this model."
        )
    return {name: _measured(known[name], rows, path) for name, rows in modules.items() if name in known}


def _measured(module: Exl2Module, rows: Any, path: Path) -> Measured:
    try:
        options = tuple(tuple(Exl2Option.from_dict(row[column]) for column in module.columns) for row in rows)
        accuracies = tuple(float(row["accuracy"]) for row in rows)
        stated = [int(row["total_bits"]) for row in rows]
        bits = [module.bits(row) for row in options]
    except (KeyError, TypeError, ValueError, QconvError) as error:
        raise FormatError(f"{module.name} has no options that can be read ({error})", path=path) from error
    if stated != bits or not all(np.isfinite(accuracies)) or not rows:
        raise FormatError(
            f"{module.name} was measured on matrices of other shapes",
            path=path,
            remedy="Name a measurement of this model.",
        )
    return Measured(options, accuracies)


def choose_rows(subject: Exl2Subject, known: Mapping[str, Measured], rate: float) -> Strategy:
    """Return the rows that together take at most ``rate`` bits per weight and lose the least, by the sum of relative errors.

    Raises UsageError, with both bounds, for a rate that the options do not reach.
    """
    check_rate(subject, {name: it.rows for name, it in known.items()}, rate)
    modules = subject.modules
    measured = [known[module.name] for module in modules]
    options = [
        Options(np.array(_sizes(module, it.rows), np.int64), 1 - np.array(it.accuracies, np.float64))
        for module, it in zip(modules, measured, strict=True)
    ]
    chosen = solve(options, int(rate * subject.weights))
    return Strategy(
        {module.name: it.rows[choice] for module, it, choice in zip(modules, measured, chosen, strict=True)},
        sum(int(it.sizes[choice]) for it, choice in zip(options, chosen, strict=True)),
        sum(float(it.errors[choice]) for it, choice in zip(options, chosen, strict=True)),
    )


def check_rate(subject: Exl2Subject, rows: Mapping[str, Sequence[tuple[Exl2Option, ...]]], rate: float) -> None:
    """Raise UsageError, with both bounds, for a rate in bits per weight that the rows of options of all modules do not reach."""
    sizes = [_sizes(module, rows[module.name]) for module in subject.modules]
    least, most = (sum(map(end, sizes)) / subject.weights for end in (min, max))
    if not least <= rate <= most:
        raise UsageError(
            f"{rate:g} bits per weight cannot be reached: this model takes between {least:.3f} and {most:.3f}",
            remedy="Choose another --bpw.",
        )


def _sizes(module: Exl2Module, rows: Sequence[tuple[Exl2Option, ...]]) -> list[int]:
    return [module.bits(row) for row in rows]
