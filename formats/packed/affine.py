"""Weights from codes, zero points and scales that are shared by groups of inputs: ``(code - zero) * scale``, exact in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["dequantize"]

_CHUNK = 1 << 18  # weights per step: the intermediate results stay in the cache


def dequantize(
    codes: Callable[[int, int], NDArray[np.uint8]],
    zeros: NDArray[np.uint8] | None,
    scales: NDArray[np.float32],
    groups: NDArray[np.intp] | int,
    shape: tuple[int, int],
) -> NDArray[np.float32]:
    """Return float32 of ``shape`` (n, columns).

    ``codes(start, stop)`` gives rows of uint8 (stop - start, columns). ``zeros``, uint8, and ``scales`` are (n, groups). ``groups`` is each
    column's group, or the number of consecutive columns of a group; the last group may be shorter. A code and its zero point differ by at most
    255 and scales of F16 or BF16 have 11 bits, so that every product is exact.
    """
    rows, columns = shape
    out = np.empty(shape, np.float32)
    step = max(1, _CHUNK // columns)
    for start in range(0, rows, step):
        part = slice(start, min(rows, start + step))
        target = out[part]
        target[...] = codes(part.start, part.stop)
        if zeros is not None:
            _spread(np.subtract, target, zeros[part].astype(np.float32), groups)
        with np.errstate(over="ignore", invalid="ignore"):  # a scale that is no number is for later checks to name
            _spread(np.multiply, target, scales[part], groups)
    return out


def _spread(
    operation: np.ufunc, target: NDArray[np.float32], values: NDArray[np.float32], groups: NDArray[np.intp] | int
) -> None:
    """Apply the operation in place with each group's value, (n, groups), for the columns of the group."""
    if isinstance(groups, int):
        columns = target.shape[1]
        full = columns // groups
        blocks = target[:, : full * groups].reshape(len(target), full, groups)
        operation(blocks, values[:, :full, None], out=blocks)
        if full * groups < columns:
            rest = target[:, full * groups :]
            operation(rest, values[:, full:], out=rest)
    else:
        operation(target, values.take(groups, axis=1), out=target)
