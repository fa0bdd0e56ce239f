"""Transforms of linear attention, whose key heads serve several value heads each: Hugging Face has those of a key head together, GGUF in turn.

With 2 key heads and 3 value heads for each, Hugging Face's order is a0 a1 a2 b0 b1 b2 and GGUF's a0 b0 a1 b1 a2 b2, so that a value head with number v
reads key head v modulo 2: what repeating all key heads gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ...errors import ModelError
from ..base import Tensor
from .lazy import in_float32, same_encoding, span_reader

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

__all__ = [
    "join_key_groups",
    "split_key_groups",
    "squeeze_kernels",
    "tile_columns",
    "tile_heads",
    "tiled_order",
    "unsqueeze_kernels",
    "untile_columns",
    "untile_heads",
    "unwrap_kernels",
    "wrap_kernels",
]


def tiled_order(heads: int, groups: int) -> NDArray[np.intp]:
    """Return intp (heads,): which of the heads, counted group by group, stands at each place when groups take turns.

    >>> tiled_order(6, 2)
    array([0, 3, 1, 4, 2, 5])
    """
    return np.arange(heads).reshape(groups, heads // groups).T.reshape(-1)


def tile_heads(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
    """Return a matrix or vector whose last ``heads`` heads of rows, behind ``first`` rows, come in turn of ``groups``."""
    return _with_rows(tensor, arguments, tiled_order(*_counts(tensor, arguments)))


def untile_heads(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
    """Return the inverse of :func:`tile_heads`."""
    return _with_rows(tensor, arguments, np.argsort(tiled_order(*_counts(tensor, arguments))))


def _counts(tensor: Tensor, arguments: Mapping[str, int]) -> tuple[int, int]:
    heads, groups = arguments["heads"], arguments["groups"]
    if groups < 1 or heads < 1 or heads % groups:
        raise ModelError(f"{heads} value heads cannot share {groups} key heads", tensor=tensor.name)
    return heads, groups


def _with_rows(tensor: Tensor, arguments: Mapping[str, int], order: NDArray[np.intp]) -> Tensor:
    first, heads = arguments["first"], len(order)
    axis = tensor.shape[0] if tensor.shape else 0
    size, rest = divmod(axis - first, heads)
    if rest or size < 1 or len(tensor.shape) > 2:
        raise ModelError(
            f"shape {tensor.shape} is no {heads} value heads behind {first} rows",
            tensor=tensor.name,
            remedy="Compare linear_num_value_heads and linear_value_head_dim in config.json with the tensor.",
        )
    if (order == np.arange(heads)).all():
        return tensor
    if len(tensor.shape) == 1:
        return _with_elements(tensor, first, order)

    def span(row: int) -> tuple[Tensor, int, int]:
        if row < first:
            return tensor, row, first - row
        head, inner = divmod(row - first, size)
        return tensor, first + int(order[head]) * size + inner, size - inner

    return replace(tensor, read=span_reader(tensor, span))


def _with_elements(tensor: Tensor, first: int, order: NDArray[np.intp]) -> Tensor:
    """Return the tensor with the elements of every row behind ``first`` in another order of heads; blocks that lie within heads are moved whole."""
    size, block = (tensor.columns - first) // len(order), tensor.encoding.block_size
    source = in_float32(tensor) if size % block or first % block else tensor
    kept = source.encoding.row_bytes(first)

    def read(start: int, stop: int) -> Bytes:
        rows = source.read(start, stop)
        heads = rows[:, kept:].reshape(stop - start, len(order), (rows.shape[1] - kept) // len(order))
        return np.concatenate([rows[:, :kept], heads[:, order].reshape(stop - start, rows.shape[1] - kept)], axis=1)

    return replace(source, read=read)


def tile_columns(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
    """Return a matrix whose columns are those of ``heads`` heads, in turn of ``groups``."""
    return _with_columns(tensor, tiled_order(*_counts(tensor, arguments)))


def untile_columns(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
    """Return the inverse of :func:`tile_columns`."""
    return _with_columns(tensor, np.argsort(tiled_order(*_counts(tensor, arguments))))


def _with_columns(tensor: Tensor, order: NDArray[np.intp]) -> Tensor:
    if len(tensor.shape) != 2 or tensor.columns % len(order):
        raise ModelError(f"shape {tensor.shape} is no matrix over {len(order)} heads", tensor=tensor.name)
    return tensor if (order == np.arange(len(order))).all() else _with_elements(tensor, 0, order)


def squeeze_kernels(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
    """Return the kernels of a convolution of single channels, (channels, 1, length), as a matrix."""
    if len(tensor.shape) != 3 or tensor.shape[1] != 1:
        raise ModelError(f"shape {tensor.shape} is no convolution of single channels", tensor=tensor.name)
    return replace(tensor, shape=(tensor.shape[0], tensor.shape[2]))


def unsqueeze_kernels(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
    """Return the inverse of :func:`squeeze_kernels`."""
    return replace(tensor, shape=(tensor.shape[0], 1, tensor.shape[1]))


def wrap_kernels(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
    """Return the kernels of a convolution of single channels, (channels, 1, length), with one axis more in front."""
    return replace(tensor, shape=(1, *squeeze_kernels(tensor, arguments).shape[:1], 1, tensor.columns))


def unwrap_kernels(tensor: Tensor, arguments: Mapping[str, int]) -> Tensor:
    """Return the inverse of :func:`wrap_kernels`; programs that write GGUF may leave that axis out."""
    wrapped = tensor.shape[0] == 1 and len(tensor.shape) == 4
    return replace(tensor, shape=tensor.shape[1:]) if wrapped else tensor


def split_key_groups(tensors: Sequence[Tensor], arguments: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Return a fused projection, each of ``groups`` key heads having queries, keys, values and gates, as all queries, keys, values; and all gates.

    ``key`` and ``value`` are rows of one head; a group has ``heads / groups`` heads of values and gates.
    """
    (tensor,) = tensors
    groups, key, wide = _group_sizes(tensor, arguments)
    height = 2 * (key + wide)
    if len(tensor.shape) != 2 or tensor.shape[0] != groups * height:
        raise ModelError(f"shape {tensor.shape} is no {groups} groups of {height} rows", tensor=tensor.name)
    sizes = (key, key, wide)

    def span(row: int) -> tuple[Tensor, int, int]:
        offset = 0
        for size in sizes:
            if row < groups * size:
                group, inner = divmod(row, size)
                return tensor, group * height + offset + inner, size - inner
            row, offset = row - groups * size, offset + size
        raise IndexError(row)

    def gate_span(row: int) -> tuple[Tensor, int, int]:
        group, inner = divmod(row, wide)
        return tensor, group * height + 2 * key + wide + inner, wide - inner

    mixed = replace(tensor, shape=(groups * (2 * key + wide), tensor.columns), read=span_reader(tensor, span))
    return mixed, replace(tensor, shape=(groups * wide, tensor.columns), read=span_reader(tensor, gate_span))


def join_key_groups(tensors: Sequence[Tensor], arguments: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Return the inverse of :func:`split_key_groups`."""
    mixed, gates = same_encoding(tensors)
    groups, key, wide = _group_sizes(mixed, arguments)
    if mixed.shape[0] != groups * (2 * key + wide) or gates.shape != (groups * wide, mixed.columns):
        raise ModelError(f"shapes {mixed.shape} and {gates.shape} are no {groups} groups of heads", tensor=mixed.name)
    height = 2 * (key + wide)

    def span(row: int) -> tuple[Tensor, int, int]:
        group, inner = divmod(row, height)
        base = 0
        for source, size in ((mixed, key), (mixed, key), (mixed, wide), (gates, wide)):
            if inner < size:
                return source, (base if source is mixed else 0) + group * size + inner, size - inner
            inner, base = inner - size, base + groups * size
        raise IndexError(row)

    return (replace(mixed, shape=(groups * height, mixed.columns), read=span_reader(mixed, span)),)


def _group_sizes(tensor: Tensor, arguments: Mapping[str, int]) -> tuple[int, int, int]:
    """Return the number of groups, and rows of a group's keys and of its values."""
    heads, groups = _counts(tensor, arguments)
    return groups, arguments["key"], heads // groups * arguments["value"]
