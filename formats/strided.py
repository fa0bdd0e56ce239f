"""Rows of a strided view on a file: transposed, sliced or interleaved matrices, read in pieces of bounded size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from .positional import PositionalFile

__all__ = ["StridedView", "contiguous_strides", "gather_rows"]

_SMALL = 256 << 10  # bytes that are read in one piece, however few of them are wanted
_LARGE = 4 << 20  # bytes that are read in one piece at most
_WASTE = 4  # read bytes per wanted byte in a large piece, at most


@dataclass(frozen=True, slots=True)
class StridedView:
    """An array inside a file.

    Attributes:
        file: the open file.
        offset: position of element (0, …, 0), in bytes.
        shape: NumPy order.
        strides: elements from one index to the next, per axis, none of them negative.
        item: bytes per element: 1, 2, 4 or 8.
        tensor: name for messages.
    """

    file: PositionalFile
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    item: int
    tensor: str


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of an array whose rows follow one another.

    >>> contiguous_strides((2, 3, 4))
    (12, 4, 1)
    """
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def gather_rows(view: StridedView, start: int, stop: int) -> NDArray[np.uint8]:
    """Return uint8 (stop - start, columns * item): rows over all leading axes; raises TruncatedError where the file is too short.

    Beside the result at most 4 MiB are held.
    """
    *leading, columns = view.shape or (1,)
    *outer, step = view.strides or (1,)
    out = np.empty((stop - start, columns), f"u{view.item}")
    if not out.size:
        return np.empty((stop - start, columns * view.item), np.uint8)
    height = leading[-1] if leading else 1
    pace = outer[-1] if outer else 0
    row = start
    while row < stop:  # rows of one matrix of a stack at a time
        matrix, first = divmod(row, height)
        count = min(height - first, stop - row)
        base = first * pace
        for size, stride in zip(reversed(leading[:-1]), reversed(outer[:-1]), strict=True):
            matrix, index = divmod(matrix, size)
            base += index * stride
        _gather(view, base, out[row - start : row - start + count], (pace, step))
        row += count
    return out.view(np.uint8)


def _gather(view: StridedView, base: int, out: NDArray[np.generic], strides: tuple[int, int]) -> None:
    """Fill ``out`` from element ``base`` on: in one piece where little is read in vain, else in two halves of the longer way."""
    rows, columns = out.shape
    down, right = (rows - 1) * strides[0], (columns - 1) * strides[1]
    span = 1 + down + right
    size = span * view.item
    if size <= _SMALL or (size <= _LARGE and span <= _WASTE * out.size):
        piece = np.empty(span, out.dtype)
        view.file.read_into(piece.data, view.offset + base * view.item, view.tensor)
        out[...] = as_strided(piece, out.shape, (strides[0] * view.item, strides[1] * view.item))
    elif down >= right:
        half = rows // 2
        _gather(view, base, out[:half], strides)
        _gather(view, base + half * strides[0], out[half:], strides)
    else:
        half = columns // 2
        _gather(view, base, out[:, :half], strides)
        _gather(view, base + half * strides[1], out[:, half:], strides)
