"""A choice of types as text: one tensor and its type per line, ``#`` before a remark, for reading, editing and repeating."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from ...errors import FormatError, MissingFileError
from .fit import Fit

__all__ = ["RECIPE_START", "read_recipe", "recipe_text"]

RECIPE_START = b"# types for"
"""What the file of a recipe begins with."""

_MOST_BYTES = 1 << 24


def recipe_text(fit: Fit, source: str) -> str:
    """Return the lines for a fit."""
    costs = {it.name: it for it in fit.costs}
    unit = "divergence" if fit.measured else "sum of relative errors"
    lines = [
        f"{RECIPE_START.decode()} {source}: {fit.size:,} bytes, {fit.bits_per_weight:.4f} bits per weight",
        f"# predicted {unit} {fit.predicted:.6g}; per line: tensor, type, what it adds",
    ]
    width = max(map(len, fit.chosen), default=0)
    for name, encoding in fit.chosen.items():
        it = costs[name]
        cost = it.costs()[[one.encoding for one in it.candidates].index(encoding)]
        lines.append(f"{name:{width}}  {encoding:8}  # {cost:.3g}")
    return "\n".join(lines) + "\n"


def read_recipe(path: Path, names: Collection[str]) -> tuple[tuple[str, str], ...]:
    """Return the tensor rules of a file; raises MissingFileError, or FormatError for a line that is none or names no tensor of ``names``."""
    if not path.is_file():
        raise MissingFileError("no such recipe", path=path)
    try:
        text = path.read_bytes()[:_MOST_BYTES].decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError("a recipe is text, and this is not", path=path, offset=error.start) from error
    rules = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2:
            raise FormatError(
                f"line {number}: {line.strip()!r} is no tensor and its type",
                path=path,
                remedy="Write a line for each tensor, such as 'output.weight Q6_K', as --recipe-out does.",
            )
        if words[0] not in names:
            raise FormatError(
                f"line {number}: the model has no tensor {words[0]!r}",
                path=path,
                remedy="A recipe fits the model that it was made for, and others of its shape.",
            )
        rules.append((f"^{re.escape(words[0])}$", words[1]))
    return tuple(rules)
