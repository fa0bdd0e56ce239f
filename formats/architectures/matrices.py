"""Transforms that look inside rows: transposition, elements by turns, and the parts of latent attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ...errors import ModelError
from ..base import Tensor
from .lazy import in_float32, same_encoding
from .rows import cut, join

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

__all__ = ["interleave_columns", "join_latent", "separate_columns", "split_latent", "transpose"]

_CHUNK = 8 << 20  # bytes of source that a transposition holds at once


def transpose(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
    """Return a matrix, or every matrix of a stack, transposed. Reading n of its rows holds those and 8 MiB of the source."""
    if len(tensor.shape) < 2:
        raise ModelError(f"shape {tensor.shape} is no matrix, so it cannot be transposed", tensor=tensor.name)
    if tensor.encoding.is_quantized:
        tensor = in_float32(tensor)
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


def separate_columns(tensors: Sequence[Tensor], arguments: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Return the elements with even numbers of every row, and those with odd ones."""
    (tensor,) = tensors
    if not tensor.shape or tensor.shape[-1] % 2:
        raise ModelError(f"shape {tensor.shape} has no pairs of columns to separate", tensor=tensor.name)
    source = in_float32(tensor) if tensor.encoding.is_quantized else tensor
    *outer, width = source.shape
    item = source.encoding.block_bytes

    def part(odd: int) -> Tensor:
        def read(start: int, stop: int) -> Bytes:
            pairs = source.read(start, stop).reshape(stop - start, width // 2, 2, item)
            return np.ascontiguousarray(pairs[:, :, odd]).reshape(stop - start, width // 2 * item)

        return replace(source, shape=(*outer, width // 2), read=read)

    return part(0), part(1)


def interleave_columns(tensors: Sequence[Tensor], arguments: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Return one tensor whose rows are an element of the first, then one of the second, and so on."""
    even, odd = same_encoding(tensors)
    if even.shape != odd.shape:
        raise ModelError(f"shapes {even.shape} and {odd.shape} cannot be joined by columns", tensor=even.name)
    if even.encoding.is_quantized:
        even, odd = in_float32(even), in_float32(odd)
    *outer, width = even.shape
    item = even.encoding.block_bytes

    def read(start: int, stop: int) -> Bytes:
        parts = [part.read(start, stop).reshape(stop - start, width, item) for part in (even, odd)]
        return np.stack(parts, axis=2).reshape(stop - start, 2 * width * item)

    return (replace(even, shape=(*outer, 2 * width), read=read),)


def split_latent(tensors: Sequence[Tensor], arguments: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Return what makes keys and values of a latent, (heads * (key + value), rank), as (heads, rank, key) and (heads, value, rank)."""
    (tensor,) = tensors
    heads, key, value = arguments["heads"], arguments["key"], arguments["value"]
    if len(tensor.shape) != 2 or tensor.shape[0] != heads * (key + value):
        raise ModelError(
            f"shape {tensor.shape} is no {heads} heads of {key} rows for keys and {value} for values",
            tensor=tensor.name,
        )
    stacked = replace(tensor, shape=(heads, key + value, tensor.shape[1]))
    keys, values = cut((stacked,), {"first": key})
    return transpose(keys, {}), values


def join_latent(tensors: Sequence[Tensor], arguments: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Return the inverse of :func:`split_latent`."""
    keys, values = tensors
    (stacked,) = join((transpose(keys, {}), values), {"first": arguments["key"]})
    return (replace(stacked, shape=(stacked.shape[0] * stacked.shape[1], stacked.shape[2])),)
