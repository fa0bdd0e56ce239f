"""Compare two models' weights tensor by tensor, decoded, with what their encodings should cost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.resources import files
from typing import TYPE_CHECKING, Final

import numpy as np

from ...formats.base import Model, Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["WeightFault", "WeightReport", "compare_weights", "expected_error"]

_SLAB_WEIGHTS = 1 << 20
_PLAIN_BLOCK = 32  # weights looked at together where the encoding has no blocks
_BLOCK_SPREAD: Final = 15.0  # a block's squared error, over that which its whole matrix may have
_WORSE_THAN_NOTHING: Final = (
    1.5  # never allowed: a block whose error has this share of its squares were better left zero
)
_NEGLIGIBLE: Final = 1e-4  # blocks with less than this share of the mean energy are not judged


@dataclass(frozen=True, slots=True)
class WeightFault:
    """A tensor that is not what its encoding would make of the source's.

    Attributes:
        tensor: its name.
        layer: number of its block, None outside.
        problem: what is wrong, for people.
        error: root mean square error relative to the source's root mean square; None where shapes differ or it is absent.
        expected: the largest such error that the encodings explain.
        bad_blocks: blocks whose error no encoder would leave: a scale or its sign is wrong.
    """

    tensor: str
    layer: int | None
    problem: str
    error: float | None = None
    expected: float | None = None
    bad_blocks: int = 0


@dataclass(frozen=True)
class WeightReport:
    """What a comparison found.

    Attributes:
        compared: number of tensors.
        errors: relative error by tensor.
        faults: in order of the forward pass.
    """

    compared: int
    errors: Mapping[str, float]
    faults: tuple[WeightFault, ...]

    def to_dict(self) -> dict[str, object]:
        """Return plain data with stable keys."""
        return {"compared": self.compared, "faults": [asdict(fault) for fault in self.faults]}


@cache
def _limits() -> Mapping[str, float]:
    text = files(__package__).joinpath("expected_errors.json").read_text(encoding="utf-8")
    table: dict[str, float] = json.loads(text)["relative_error"]
    return table


def expected_error(source: str, result: str) -> float:
    """Return the largest relative error that encodings of these names explain between them.

    The table's numbers are twice what ordinary weights show; encodings of plugins, which it does not know, are given the loosest.
    """
    loosest = max(_limits().values())
    return math.hypot(*(_limits().get(name, loosest) for name in (source, result)))


def compare_weights(
    source: Model, result: Model, threads: int, progress: Callable[[int], None] = lambda count: None
) -> WeightReport:
    """Decode every tensor of both models and compare; ``progress`` is called with the number of the result's bytes compared."""
    names = sorted({*source.tensors, *result.tensors}, key=_pass_order)
    check = partial(_check, source, result, progress)
    with ThreadPoolExecutor(threads, thread_name_prefix="compare") as pool:
        found = list(pool.map(check, names))
    errors = {name: error for name, (error, _) in zip(names, found, strict=True) if error is not None}
    return WeightReport(len(errors), errors, tuple(fault for _, fault in found if fault is not None))


def _check(
    source: Model, result: Model, progress: Callable[[int], None], name: str
) -> tuple[float | None, WeightFault | None]:
    one, other = source.tensors.get(name), result.tensors.get(name)
    layer = _layer(name)
    if one is None or other is None:
        where = "source" if one is None else "result"
        if name == "output.weight":  # tied to the embedding there
            return None, None
        return None, WeightFault(name, layer, f"the {where} has no such tensor")
    if one.shape != other.shape:
        return None, WeightFault(name, layer, f"its shape is {other.shape}, the source's {one.shape}")
    limit = expected_error(one.encoding.name, other.encoding.name)
    error, bad = _difference(one, other, min(_WORSE_THAN_NOTHING, _BLOCK_SPREAD * limit * limit))
    progress(other.nbytes)
    if bad:
        what = f"{bad} blocks have wrong signs or scales" if bad > 1 else "a block has a wrong sign or scale"
        return error, WeightFault(name, layer, what, error, limit, bad)
    if not error <= limit:
        problem = f"it differs from the source's by {100 * error:.3g} %, where {other.encoding.name} explains {100 * limit:.2g} %"
        return error, WeightFault(name, layer, problem, error, limit)
    return error, None


def _difference(one: Tensor, other: Tensor, block_limit: float) -> tuple[float, int]:
    """Return the relative error of two tensors of one shape, and in how many blocks the error has more of the squares than ``block_limit``."""
    energy = wrong = 0.0
    bad = 0
    for rows in _slabs(one):
        a, b = (it.rows(rows.start, rows.stop).astype(np.float64) for it in (one, other))
        squares, differences = np.square(a), np.square(b - a)
        energy += float(squares.sum())
        wrong += float(differences.sum())
        if one.row_count > 1:
            own, off = (_by_block(values, _block(other)) for values in (squares, differences))
            judged = own > _NEGLIGIBLE * own.mean()
            bad += int((off[judged] > block_limit * own[judged]).sum())
    return (math.sqrt(wrong / energy) if energy else math.sqrt(wrong)), bad


def _slabs(tensor: Tensor) -> Iterator[slice]:
    step = max(1, _SLAB_WEIGHTS // max(1, tensor.columns))
    for start in range(0, tensor.row_count, step):
        yield slice(start, min(start + step, tensor.row_count))


def _block(tensor: Tensor) -> int:
    size = tensor.encoding.block_size
    return size if size > 1 else math.gcd(_PLAIN_BLOCK, tensor.columns)


def _by_block(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    return np.asarray(values.reshape(-1, size).sum(axis=1))


def _layer(name: str) -> int | None:
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blk" and len(parts) > 2 and parts[1].isdecimal() else None


def _pass_order(name: str) -> tuple[int, str]:
    """Sort the embedding before the blocks, by number, and the output behind them."""
    layer = _layer(name)
    if layer is not None:
        return layer, name
    return (-1 if name.startswith(("token_embd", "position_embd", "rope")) else 1 << 30), name
