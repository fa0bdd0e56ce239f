"""A fused projection of queries, keys and values, taken apart for graphs that rotate pairs of neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..base import Tensor
from .rows import cut, gather_groups, join, permute_rotary, scatter_groups, unpermute_rotary

__all__ = ["join_attention", "split_attention"]


def split_attention(tensors: Sequence[Tensor], arguments: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Return queries, keys and values of a matrix of groups, each ``heads // kv_heads`` heads of queries, one of keys and one of values.

    Rows of queries and keys are regrouped from halves to pairs. Raises ModelError for a shape that is no such matrix.
    """
    (tensor,) = tensors
    heads, kv_heads = arguments["heads"], arguments["kv_heads"]
    whole = gather_groups(tensor, arguments)
    size = whole.shape[0] // (heads + 2 * kv_heads)
    query, rest = cut([whole], {"first": heads * size})
    key, value = cut([rest], {"first": kv_heads * size})
    return permute_rotary(query, {"heads": heads}), permute_rotary(key, {"heads": kv_heads}), value


def join_attention(tensors: Sequence[Tensor], arguments: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Return the matrix of groups; the inverse of :func:`split_attention`."""
    query, key, value = tensors
    heads, kv_heads = arguments["heads"], arguments["kv_heads"]
    turned = unpermute_rotary(query, {"heads": heads}), unpermute_rotary(key, {"heads": kv_heads})
    upper = join(turned, {"first": query.shape[0]})
    whole = join([*upper, value], {"first": upper[0].shape[0]})
    return (scatter_groups(whole[0], arguments),)
