"""Tensor names: Meta's, which the formats before GGUF kept, beside GGUF's; and what shape each tensor has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NamedTensor", "find_by_gguf_name", "named_tensors"]

Extent = Literal["vocabulary", "embedding", "key_value", "feed_forward"]


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """One tensor of a Llama.

    Attributes:
        ggml: Meta's name.
        gguf: canonical name.
        shape: what its axes count, in NumPy order.
        split: the axis that several parts share out; None where each holds all of it.
    """

    ggml: str
    gguf: str
    shape: tuple[Extent, ...]
    split: int | None


# Meta's name, GGUF's name, NumPy-order shape, axis along which parts are joined
_GLOBAL: tuple[NamedTensor, ...] = (
    NamedTensor("tok_embeddings.weight", "token_embd.weight", ("vocabulary", "embedding"), 1),
    NamedTensor("norm.weight", "output_norm.weight", ("embedding",), None),
    NamedTensor("output.weight", "output.weight", ("vocabulary", "embedding"), 0),
)
_LAYER: tuple[NamedTensor, ...] = (
    NamedTensor("attention.wq.weight", "attn_q.weight", ("embedding", "embedding"), 0),
    NamedTensor("attention.wk.weight", "attn_k.weight", ("key_value", "embedding"), 0),
    NamedTensor("attention.wv.weight", "attn_v.weight", ("key_value", "embedding"), 0),
    NamedTensor("attention.wo.weight", "attn_output.weight", ("embedding", "embedding"), 1),
    NamedTensor("attention_norm.weight", "attn_norm.weight", ("embedding",), None),
    NamedTensor("feed_forward.w1.weight", "ffn_gate.weight", ("feed_forward", "embedding"), 0),
    NamedTensor("feed_forward.w2.weight", "ffn_down.weight", ("embedding", "feed_forward"), 1),
    NamedTensor("feed_forward.w3.weight", "ffn_up.weight", ("feed_forward", "embedding"), 0),
    NamedTensor("ffn_norm.weight", "ffn_norm.weight", ("embedding",), None),
)
_BY_GGUF_NAME: Mapping[str, NamedTensor] = MappingProxyType({row.gguf: row for row in (*_GLOBAL, *_LAYER)})
_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,4})\.(.+)")


def named_tensors(layers: int) -> tuple[NamedTensor, ...]:
    """Return every tensor of a Llama of so many layers, in the order in which the old converters wrote them."""
    return (*_GLOBAL, *(tensor for layer in range(layers) for tensor in _of_layer(layer)))


def _of_layer(layer: int) -> Iterator[NamedTensor]:
    for row in _LAYER:
        yield NamedTensor(f"layers.{layer}.{row.ggml}", f"blk.{layer}.{row.gguf}", row.shape, row.split)


def find_by_gguf_name(name: str) -> tuple[NamedTensor, int | None] | None:
    """Return the tensor that GGUF calls ``name`` and its layer (None for those outside), or None for a name unknown here."""
    block = _BLOCK.fullmatch(name)
    row = _BY_GGUF_NAME.get(block[2] if block else name)
    if row is None or (row in _LAYER) != (block is not None):
        return None
    if block is None:
        return row, None
    layer = int(block[1])
    return NamedTensor(f"layers.{layer}.{row.ggml}", name, row.shape, row.split), layer
