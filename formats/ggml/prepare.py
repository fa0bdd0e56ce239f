"""Make a Llama fit into ggjt without changing what it computes: repeat shared heads, untie the output."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from ...errors import ShapeError
from ..base import Model, Tensor
from ..getters import get_integer
from ..metadata import uint32

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["prepare_for_ggjt"]

_SHARED = ("attn_k.weight", "attn_v.weight")
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_LLAMA_2_70B = (80, 64, 8)  # layers, heads, key and value heads: the one model whose readers knew that it shares heads


def prepare_for_ggjt(model: Model) -> Model:
    """Return ``model`` with a key and value head per query head, and an output matrix of its own where it shared the embeddings'.

    Whole rows are repeated, so every encoding keeps its bits and the model its results. Models of other architectures, and
    Llama 2 70B, whose heads ggjt can hold, come back as they are. Raises ShapeError where the heads do not fit the shapes.
    """
    if model.architecture != "llama" or not model.tensors:
        return model
    tensors = dict(model.tensors)
    metadata = dict(model.metadata)
    notes: list[str] = []
    layers, heads, shared = (
        get_integer(metadata, f"llama.{key}", model.path) or 0
        for key in ("block_count", "attention.head_count", "attention.head_count_kv")
    )
    if 0 < shared < heads and (layers, heads, shared) != _LLAMA_2_70B:
        for name, tensor in model.tensors.items():
            if name.endswith(_SHARED):
                tensors[name] = _repeated(tensor, shared, heads)
        metadata["llama.attention.head_count_kv"] = uint32(heads)
        notes.append(f"ggjt cannot say that query heads share keys and values: each of the {shared} is repeated")
    if _OUTPUT not in tensors and _EMBEDDING in tensors:
        tensors[_OUTPUT] = replace(tensors[_EMBEDDING], name=_OUTPUT)
        notes.append("ggjt cannot say that the output shares the embeddings' matrix: it is written twice")
    return replace(
        model,
        metadata=MappingProxyType(metadata),
        tensors=MappingProxyType(tensors),
        notes=(*model.notes, *notes),
    )


def _repeated(tensor: Tensor, shared: int, heads: int) -> Tensor:
    rows = tensor.shape[0]
    if rows % shared or heads % shared or len(tensor.shape) != 2:
        raise ShapeError(f"{tensor.shape} are no {shared} heads to be shared by {heads}", tensor=tensor.name)
    times = heads // shared
    read = partial(_read_repeated, tensor, rows // shared, times)
    return replace(tensor, shape=(rows * times, tensor.shape[1]), read=read)


def _read_repeated(tensor: Tensor, head: int, times: int, start: int, stop: int) -> NDArray[np.uint8]:
    """Return rows ``start`` to ``stop`` of ``tensor`` with each ``head`` rows repeated ``times`` times."""
    if not 0 <= start <= stop <= tensor.row_count * times:
        raise IndexError(f"rows {start} to {stop} of tensor {tensor.name}, which has {tensor.row_count * times}")
    wanted = np.arange(start, stop)
    source = wanted // (head * times) * head + wanted % head
    if not source.size:
        return tensor.read(0, 0)
    first = int(source.min())
    rows: NDArray[np.uint8] = tensor.read(first, int(source.max()) + 1)[source - first]
    return rows
