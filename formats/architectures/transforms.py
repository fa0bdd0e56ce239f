"""Named, invertible transforms between Hugging Face's tensors and GGUF's.

A transform takes the lazy tensors of one side and returns those of the other; it moves bytes of rows and so keeps the encoding and every bit,
unless it says otherwise. Reading a slab of the result reads only the rows it needs, plus at most the rest of the heads at its ends. Nothing is
kept between reads, so any thread may read.

=================== ================================================================ ==================== ==================
name                Hugging Face → GGUF                                              arguments            inverse
=================== ================================================================ ==================== ==================
``copy``            the same rows                                                    —                    the same rows
``permute_rotary``  rows of each head from (half, pair) to (pair, half) order        heads                (pair, half) back
``transpose``       every matrix to its transpose; a slab reads its whole matrix     —                    the same again
``add_one``         adds 1 in float32; the result is F32                             —                    subtracts 1
``stack``           n tensors to one with a new first axis, in order                 —                    n tensors
``split_rows``      one tensor cut along the axis before the last: ``first`` rows,   first                joined
                    then the rest, in each matrix of a stack
``fuse_rows``       two tensors joined along that axis: ``first`` rows, then more    first                cut
=================== ================================================================ ==================== ==================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from ...errors import ModelError
from ...quantizers.catalog import BUILT_IN
from ..base import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

__all__ = ["TRANSFORMS", "Transform", "constant", "permute_rotary", "same_encoding", "unpermute_rotary"]

_F32 = next(encoding for encoding in BUILT_IN if encoding.name == "F32")
_CHUNK = 8 << 20  # bytes of source that a transposition holds at once

Apply = Callable[[Sequence[Tensor], Mapping[str, int]], tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Transform:
    """A pair of inverse functions on lists of tensors.

    Attributes:
        forward: Hugging Face's tensors and the arguments to GGUF's tensors; raises ModelError for shapes that do not fit.
        inverse: GGUF's tensors and the arguments back to Hugging Face's.
        arguments: names of the arguments, all of them integers.
    """

    forward: Apply
    inverse: Apply
    arguments: tuple[str, ...] = ()


def constant(name: str, values: NDArray[np.float32], origin: str) -> Tensor:
    """Return an F32 tensor whose values, float32 of any shape, are held in memory."""
    rows = np.ascontiguousarray(values, "<f4").reshape(-1, values.shape[-1]).view(np.uint8)
    rows.flags.writeable = False
    return Tensor(name, values.shape, _F32, lambda start, stop: rows[start:stop], origin)


def same_encoding(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the tensors with one encoding: their own where they agree, F32 otherwise."""
    if len({tensor.encoding.name for tensor in tensors}) == 1:
        return tuple(tensors)
    return tuple(_in_float32(tensor) for tensor in tensors)


def _in_float32(tensor: Tensor) -> Tensor:
    return replace(tensor, encoding=_F32, read=lambda start, stop: _as_bytes(tensor.rows(start, stop)))


def _as_bytes(rows: NDArray[np.float32]) -> Bytes:
    return np.ascontiguousarray(rows, "<f4").view(np.uint8)


def _each(function: Callable[[Tensor, Mapping[str, int]], Tensor]) -> Apply:
    """Return a transform of one tensor as one of lists."""
    return lambda tensors, arguments: tuple(function(tensor, arguments) for tensor in tensors)


# --- rotary order -----------------------------------------------------------------------------------------------------------------


def permute_rotary(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
    """Return a query or key projection, matrix or bias, with the halves of each of ``heads`` heads interleaved."""
    return _regroup(tensor, arguments["heads"], halves_first=True)


def unpermute_rotary(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
    """Return a query or key projection with the pairs of each of ``heads`` heads separated into halves."""
    return _regroup(tensor, arguments["heads"], halves_first=False)


def _regroup(tensor: Tensor, heads: int, halves_first: bool) -> Tensor:
    axis = tensor.shape[0] if tensor.shape else 0
    size, rest = divmod(axis, heads) if heads > 0 else (0, 1)
    if rest or size % 2 or not axis or len(tensor.shape) > 2:
        raise ModelError(
            f"shape {tensor.shape} is no {heads} heads of an even size, so rotary rows cannot be regrouped",
            tensor=tensor.name,
            remedy="Compare num_attention_heads and num_key_value_heads in config.json with the tensor.",
        )
    if len(tensor.shape) == 1 and tensor.encoding.is_quantized:
        tensor = _in_float32(tensor)
    source = tensor
    inner = (2, size // 2) if halves_first else (size // 2, 2)

    def regroup(items: NDArray[np.uint8]) -> Bytes:
        """Swap the two inner axes of (heads * size, bytes of one item)."""
        grouped = items.reshape(-1, *inner, items.shape[-1])
        return np.ascontiguousarray(grouped.swapaxes(1, 2)).reshape(items.shape)

    def read_matrix(start: int, stop: int) -> Bytes:
        first, last = start // size, -(-stop // size)
        return regroup(source.read(first * size, last * size))[start - first * size : stop - first * size]

    def read_vector(start: int, stop: int) -> Bytes:
        row = source.read(0, 1)
        return regroup(row.reshape(axis, -1)).reshape(row.shape)[start:stop]

    return replace(tensor, read=read_vector if len(tensor.shape) == 1 else read_matrix)


# --- transposition ----------------------------------------------------------------------------------------------------------------


def _transpose(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
    """Return a matrix, or every matrix of a stack, transposed. Reading n of its rows holds those and 8 MiB of the source."""
    if len(tensor.shape) < 2:
        raise ModelError(f"shape {tensor.shape} is no matrix, so it cannot be transposed", tensor=tensor.name)
    if tensor.encoding.is_quantized:
        tensor = _in_float32(tensor)
    source = tensor
    *stack, height, width = tensor.shape
    item = tensor.encoding.block_bytes
    step = max(1, _CHUNK // max(1, width * item))

    def read(start: int, stop: int) -> Bytes:
        out = np.empty((stop - start, height, item), np.uint8)
        done = start
        while done < stop:
            matrix, first = divmod(done, width)
            last = min(width, first + stop - done)
            target = out[done - start : done - start + last - first]
            for row in range(0, height, step):
                end = min(height, row + step)
                chunk = source.read(matrix * height + row, matrix * height + end).reshape(end - row, width, item)
                target[:, row:end] = chunk[:, first:last].swapaxes(0, 1)
            done += last - first
        return out.reshape(stop - start, height * item)

    return replace(tensor, shape=(*stack, width, height), read=read)


# --- norms ------------------------------------------------------------------------------------------------------------------------


def _shift(amount: float) -> Callable[[Tensor, Mapping[str, int]], Tensor]:
    def apply(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
        def read(start: int, stop: int) -> Bytes:
            return _as_bytes(tensor.rows(start, stop) + np.float32(amount))

        return replace(tensor, encoding=_F32, read=read)

    return apply


# --- rows of several tensors, or parts of one --------------------------------------------------------------------------------------


def _span_reader(like: Tensor, span: Callable[[int], tuple[Tensor, int, int]]) -> Callable[[int, int], Bytes]:
    """Return a reader of rows that lie in spans: ``span(row)`` is (source, its row, how many rows follow there in one piece)."""
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

    return read


# --- stacks -----------------------------------------------------------------------------------------------------------------------


def _stack(tensors: Sequence[Tensor], arguments: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Return one tensor (n, *shape)."""
    parts = same_encoding(tensors)
    shape = parts[0].shape
    if any(part.shape != shape for part in parts) or len(shape) < 2:
        raise ModelError(
            f"matrices of shapes {sorted({part.shape for part in parts})} cannot be stacked", tensor=parts[0].name
        )
    height = prod(shape[:-1])

    def span(row: int) -> tuple[Tensor, int, int]:
        index, first = divmod(row, height)
        return parts[index], first, height - first

    return (replace(parts[0], shape=(len(parts), *shape), read=_span_reader(parts[0], span)),)


def _unstack(tensors: Sequence[Tensor], arguments: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Return the matrices of the first axis."""
    (tensor,) = tensors
    height = prod(tensor.shape[1:-1])

    def part(index: int) -> Tensor:
        base = index * height
        return replace(tensor, shape=tensor.shape[1:], read=lambda start, stop: tensor.read(base + start, base + stop))

    return tuple(part(index) for index in range(tensor.shape[0]))


def _cut(tensors: Sequence[Tensor], arguments: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Return the first rows of every matrix, and the rest."""
    (tensor,) = tensors
    if len(tensor.shape) < 2 or not 0 < arguments["first"] < tensor.shape[-2]:
        raise ModelError(f"shape {tensor.shape} has no {arguments['first']} rows to split off", tensor=tensor.name)
    *stack, height, width = tensor.shape

    def part(offset: int, count: int) -> Tensor:
        def span(row: int) -> tuple[Tensor, int, int]:
            matrix, first = divmod(row, count)
            return tensor, matrix * height + offset + first, count - first

        return replace(tensor, shape=(*stack, count, width), read=_span_reader(tensor, span))

    first = arguments["first"]
    return part(0, first), part(first, height - first)


def _join(tensors: Sequence[Tensor], arguments: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Return one tensor with the rows of the first matrix, then those of the second, in every matrix of a stack."""
    upper, lower = same_encoding(tensors)
    *stack, height, width = upper.shape
    if [*stack, width] != [*lower.shape[:-2], lower.shape[-1]] or height != arguments["first"]:
        raise ModelError(f"shapes {upper.shape} and {lower.shape} cannot be joined by rows", tensor=upper.name)
    total = height + lower.shape[-2]

    def span(row: int) -> tuple[Tensor, int, int]:
        matrix, first = divmod(row, total)
        if first < height:
            return upper, matrix * height + first, height - first
        return lower, matrix * (total - height) + first - height, total - first

    return (replace(upper, shape=(*stack, total, width), read=_span_reader(upper, span)),)


def _copy(tensors: Sequence[Tensor], arguments: Mapping[str, int]) -> tuple[Tensor, ...]:
    return tuple(tensors)


TRANSFORMS: Mapping[str, Transform] = MappingProxyType(
    {
        "copy": Transform(_copy, _copy),
        "permute_rotary": Transform(_each(permute_rotary), _each(unpermute_rotary), ("heads",)),
        "transpose": Transform(_each(_transpose), _each(_transpose)),
        "add_one": Transform(_each(_shift(1.0)), _each(_shift(-1.0))),
        "stack": Transform(_stack, _unstack),
        "split_rows": Transform(_cut, _join, ("first",)),
        "fuse_rows": Transform(_join, _cut, ("first",)),
    }
)
