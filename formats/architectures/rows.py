"""Transforms that move whole rows: stacks, cuts, joins, and other orders of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from ...errors import ModelError
from ..base import Tensor
from .lazy import MovedRows, in_float32, same_encoding, span_reader

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

__all__ = [
    "Skipped",
    "cut",
    "fold",
    "forget_repeated",
    "gather_groups",
    "interleave",
    "join",
    "permute_rotary",
    "repeat_first",
    "scatter_groups",
    "separate",
    "skip",
    "squeeze",
    "stack",
    "under",
    "unfold",
    "unpermute_rotary",
    "unskip",
    "unsqueeze",
    "unstack",
]


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
        tensor = in_float32(tensor)
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

    return replace(tensor, read=MovedRows(read_vector if len(tensor.shape) == 1 else read_matrix, (source,)))


def stack(tensors: Sequence[Tensor], arguments: Mapping[str, int]) -> tuple[Tensor, ...]:
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

    return (replace(parts[0], shape=(len(parts), *shape), read=span_reader(parts[0], span)),)


def unstack(tensors: Sequence[Tensor], arguments: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Return the matrices of the first axis."""
    (tensor,) = tensors
    height = prod(tensor.shape[1:-1])

    def part(index: int) -> Tensor:
        base = index * height
        read = MovedRows(lambda start, stop: tensor.read(base + start, base + stop), (tensor,))
        return replace(tensor, shape=tensor.shape[1:], read=read)

    return tuple(part(index) for index in range(tensor.shape[0]))


def cut(tensors: Sequence[Tensor], arguments: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Return the first rows of every matrix, and the rest."""
    (tensor,) = tensors
    if len(tensor.shape) < 2 or not 0 < arguments["first"] < tensor.shape[-2]:
        raise ModelError(f"shape {tensor.shape} has no {arguments['first']} rows to split off", tensor=tensor.name)
    *outer, height, width = tensor.shape

    def part(offset: int, count: int) -> Tensor:
        def span(row: int) -> tuple[Tensor, int, int]:
            matrix, first = divmod(row, count)
            return tensor, matrix * height + offset + first, count - first

        return replace(tensor, shape=(*outer, count, width), read=span_reader(tensor, span))

    first = arguments["first"]
    return part(0, first), part(first, height - first)


def join(tensors: Sequence[Tensor], arguments: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Return one tensor with the rows of the first matrix, then those of the second, in every matrix of a stack."""
    upper, lower = same_encoding(tensors)
    *outer, height, width = upper.shape
    if [*outer, width] != [*lower.shape[:-2], lower.shape[-1]] or height != arguments["first"]:
        raise ModelError(f"shapes {upper.shape} and {lower.shape} cannot be joined by rows", tensor=upper.name)
    total = height + lower.shape[-2]

    def span(row: int) -> tuple[Tensor, int, int]:
        matrix, first = divmod(row, total)
        if first < height:
            return upper, matrix * height + first, height - first
        return lower, matrix * (total - height) + first - height, total - first

    return (replace(upper, shape=(*outer, total, width), read=span_reader(upper, span)),)


@dataclass(frozen=True, slots=True)
class Skipped:
    """Reads the rows of ``source`` from row ``first`` on."""

    source: Tensor
    first: int

    def __call__(self, start: int, stop: int) -> Bytes:
        """Return rows in the source's encoding."""
        return self.source.read(self.first + start, self.first + stop)


def skip(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
    """Return a matrix without its first rows."""
    first = arguments["first"]
    if len(tensor.shape) != 2 or not 0 < first < tensor.shape[0]:
        raise ModelError(f"shape {tensor.shape} has no {first} rows to leave out", tensor=tensor.name)
    return replace(tensor, shape=(tensor.shape[0] - first, tensor.shape[1]), read=Skipped(tensor, first))


def unskip(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
    """Return the inverse of :func:`skip`: the rows that it left out where they are at hand, else zeros."""
    if isinstance(tensor.read, Skipped) and tensor.read.first == arguments["first"]:
        return replace(tensor.read.source, name=tensor.name)
    return under(np.zeros((arguments["first"], tensor.columns), np.float32), tensor)


def under(rows: NDArray[np.float32], tensor: Tensor) -> Tensor:
    """Return a matrix under float32 ``rows`` (n, columns), which take its encoding."""
    upper, count = tensor.encoding.encode(np.ascontiguousarray(rows)), len(rows)

    def read(start: int, stop: int) -> Bytes:
        return np.concatenate([upper[start:stop], tensor.read(max(0, start - count), max(0, stop - count))])

    return replace(tensor, shape=(count + tensor.shape[0], tensor.shape[1]), read=read)


def repeat_first(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
    """Return a matrix of ``rows`` rows with its first row again and again, ``total`` rows in all."""
    rows, total = arguments["rows"], arguments["total"]
    if len(tensor.shape) != 2 or not 0 < tensor.shape[0] == rows <= total:
        raise ModelError(f"shape {tensor.shape} has no {rows} rows of {total}", tensor=tensor.name)

    def span(row: int) -> tuple[Tensor, int, int]:
        return (tensor, row, rows - row) if row < rows else (tensor, 0, 1)

    return replace(tensor, shape=(total, tensor.shape[1]), read=span_reader(tensor, span))


def forget_repeated(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
    """Return the first ``rows`` rows of a matrix."""
    if len(tensor.shape) != 2 or not 0 < arguments["rows"] <= tensor.shape[0]:
        raise ModelError(f"shape {tensor.shape} has no {arguments['rows']} rows", tensor=tensor.name)
    return replace(tensor, shape=(arguments["rows"], tensor.shape[1]))


def squeeze(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
    """Return a matrix of one row as a vector."""
    if len(tensor.shape) != 2 or tensor.shape[0] != 1:
        raise ModelError(f"shape {tensor.shape} is no matrix of one row", tensor=tensor.name)
    return replace(tensor, shape=tensor.shape[1:])


def unsqueeze(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
    """Return a vector as a matrix of one row; llama.cpp's converter leaves it one, which is the same to llama.cpp."""
    if len(tensor.shape) == 2 and tensor.shape[0] == 1:
        return tensor
    return replace(tensor, shape=(1, *tensor.shape))


def fold(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
    """Return a vector as a matrix of ``rows`` rows, one part of it behind another."""
    rows = arguments["rows"]
    if len(tensor.shape) != 1 or rows < 1 or tensor.columns % rows:
        raise ModelError(f"shape {tensor.shape} is no vector of {rows} equal parts", tensor=tensor.name)
    source = in_float32(tensor) if tensor.encoding.is_quantized else tensor

    def read(start: int, stop: int) -> Bytes:
        return source.read(0, 1).reshape(rows, -1)[start:stop]

    return replace(source, shape=(rows, tensor.columns // rows), read=read)


def unfold(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
    """Return the rows of a matrix as one vector."""
    if len(tensor.shape) != 2 or tensor.shape[0] != arguments["rows"]:
        raise ModelError(f"shape {tensor.shape} is no matrix of {arguments['rows']} rows", tensor=tensor.name)
    source = in_float32(tensor) if tensor.encoding.is_quantized else tensor

    def read(start: int, stop: int) -> Bytes:
        return source.read(0, source.row_count).reshape(1, -1)[start:stop]

    return replace(source, shape=(source.shape[0] * source.shape[1],), read=read)


def separate(tensors: Sequence[Tensor], arguments: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Return the rows with even numbers of every matrix, and those with odd ones."""
    (tensor,) = tensors
    if len(tensor.shape) < 2 or tensor.shape[-2] % 2:
        raise ModelError(f"shape {tensor.shape} has no pairs of rows to separate", tensor=tensor.name)
    *outer, height, width = tensor.shape

    def part(odd: int) -> Tensor:
        def read(start: int, stop: int) -> Bytes:
            return tensor.read(2 * start, 2 * stop)[odd::2]

        return replace(tensor, shape=(*outer, height // 2, width), read=read)

    return part(0), part(1)


def interleave(tensors: Sequence[Tensor], arguments: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Return one tensor whose rows are a row of the first matrix, then one of the second, and so on."""
    even, odd = same_encoding(tensors)
    if even.shape != odd.shape or len(even.shape) < 2:
        raise ModelError(f"shapes {even.shape} and {odd.shape} cannot be joined row by row", tensor=even.name)

    def read(start: int, stop: int) -> Bytes:
        first, last = start // 2, -(-stop // 2)
        pairs = np.stack([even.read(first, last), odd.read(first, last)], axis=1)
        return pairs.reshape(2 * (last - first), pairs.shape[2])[start - 2 * first : stop - 2 * first]

    *outer, height, width = even.shape
    return (replace(even, shape=(*outer, 2 * height, width), read=read),)


# --- groups of heads --------------------------------------------------------------------------------------------------------------


def gather_groups(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
    """Return a fused projection of groups (queries, a key and a value of one key head) as all queries, all keys, all values."""
    return _reorder(tensor, arguments, _grouped_place)


def scatter_groups(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
    """Return a fused projection of all queries, keys and values as one group per key head."""
    return _reorder(tensor, arguments, _plain_place)


def _grouped_place(head: int, heads: int, kv_heads: int) -> int:
    """Return where the head with this number among queries, then keys, then values lies among groups."""
    share = heads // kv_heads
    if head < heads:
        return head // share * (share + 2) + head % share
    kind, group = divmod(head - heads, kv_heads)
    return group * (share + 2) + share + kind


def _plain_place(head: int, heads: int, kv_heads: int) -> int:
    """Return the inverse of :func:`_grouped_place`."""
    share = heads // kv_heads
    group, inner = divmod(head, share + 2)
    return group * share + inner if inner < share else heads + (inner - share) * kv_heads + group


def _reorder(tensor: Tensor, arguments: Mapping[str, int], place: Callable[[int, int, int], int]) -> Tensor:
    """Return a matrix or bias whose heads come from other places."""
    heads, kv_heads = arguments["heads"], arguments["kv_heads"]
    total = heads + 2 * kv_heads
    axis = tensor.shape[0] if tensor.shape else 0
    if kv_heads < 1 or heads % kv_heads or not axis or axis % total or len(tensor.shape) > 2:
        raise ModelError(
            f"shape {tensor.shape} is no {heads} heads of queries and {kv_heads} each of keys and values",
            tensor=tensor.name,
            remedy="Compare the numbers of heads in config.json with the tensor.",
        )
    size = axis // total
    if len(tensor.shape) == 1:
        return _reorder_vector(tensor, [place(head, heads, kv_heads) for head in range(total)])

    def span(row: int) -> tuple[Tensor, int, int]:
        head, inner = divmod(row, size)
        return tensor, place(head, heads, kv_heads) * size + inner, size - inner

    return replace(tensor, read=span_reader(tensor, span))


def _reorder_vector(tensor: Tensor, order: Sequence[int]) -> Tensor:
    source = in_float32(tensor) if tensor.encoding.is_quantized else tensor

    def read(start: int, stop: int) -> Bytes:
        row = source.read(0, 1)
        return row.reshape(len(order), -1)[order].reshape(row.shape)[start:stop]

    return replace(source, read=read)
