"""What lazy transforms share: tensors over other tensors' rows, which read only the rows that they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

import numpy as np

from ...quantizers.catalog import BUILT_IN
from ..base import Tensor
from ..positional import ContiguousRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

__all__ = [
    "F32",
    "Apply",
    "MovedRows",
    "as_bytes",
    "constant",
    "each",
    "in_float32",
    "only_moves",
    "same_encoding",
    "span_reader",
]

F32 = next(encoding for encoding in BUILT_IN if encoding.name == "F32")

Apply = Callable[[Sequence[Tensor], Mapping[str, int]], tuple[Tensor, ...]]
"""One direction of a transform: the tensors of one side and the arguments to those of the other."""


@final
@dataclass(frozen=True, slots=True)
class MovedRows:
    """A tensor's ``read`` where its rows are bytes of other tensors' rows in another order.

    Attributes:
        function: the reader.
        sources: tensors that it reads, one of each kind.
    """

    function: Callable[[int, int], Bytes]
    sources: tuple[Tensor, ...]

    def __call__(self, start: int, stop: int) -> Bytes:
        """Return uint8 (stop - start, bytes of a row)."""
        return self.function(start, stop)


def only_moves(tensor: Tensor) -> bool:
    """Whether reading a tensor's rows is nothing but reading them from files and moving them."""
    if isinstance(tensor.read, MovedRows):
        return all(map(only_moves, tensor.read.sources))
    return isinstance(tensor.read, ContiguousRows)


def constant(name: str, values: NDArray[np.float32], origin: str) -> Tensor:
    """Return an F32 tensor whose values, float32 of any shape, are held in memory."""
    rows = np.ascontiguousarray(values, "<f4").reshape(-1, values.shape[-1]).view(np.uint8)
    rows.flags.writeable = False
    return Tensor(name, values.shape, F32, lambda start, stop: rows[start:stop], origin)


def same_encoding(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the tensors with one encoding: their own where they agree, F32 otherwise."""
    if len({tensor.encoding.name for tensor in tensors}) == 1:
        return tuple(tensors)
    return tuple(in_float32(tensor) for tensor in tensors)


def in_float32(tensor: Tensor) -> Tensor:
    """Return the tensor with rows decoded."""
    return replace(tensor, encoding=F32, read=lambda start, stop: as_bytes(tensor.rows(start, stop)))


def as_bytes(rows: NDArray[np.float32]) -> Bytes:
    """Return float32 (n, columns) as an F32 tensor holds it, uint8 (n, 4 * columns)."""
    return np.ascontiguousarray(rows, "<f4").view(np.uint8)


def each(function: Callable[[Tensor, Mapping[str, int]], Tensor]) -> Apply:
    """Return a transform of one tensor as one of lists."""
    return lambda tensors, arguments: tuple(function(tensor, arguments) for tensor in tensors)


def span_reader(like: Tensor, span: Callable[[int], tuple[Tensor, int, int]]) -> MovedRows:
    """Return a reader of rows that lie in spans: ``span(row)`` is (source, its row, how many rows follow there in one piece).

    ``like`` is one of the sources.
    """
    width = like.encoding.row_bytes(like.columns)

    def read(start: int, stop: int) -> Bytes:
        if start < stop:
            source, first, left = span(start)
            if stop - start <= left:
                return source.read(first, first + stop - start)
        out = np.empty((stop - start, width), np.uint8)
        row = start
        while row < stop:
            source, first, left = span(row)
            count = min(left, stop - row)
            out[row - start : row - start + count] = source.read(first, first + count)
            row += count
        return out

    return MovedRows(read, (like,))
