"""Mixtral 8x7B as it was first released: the matrices of all experts of a layer below each other in one tensor.

``layers.N.block_sparse_moe.w1``, ``w3`` and ``w2`` all have a row per hidden unit of each expert, so that ``w2`` is transposed beside the later form,
``feed_forward.experts.E.w2.weight``. Sources: transformers' ``convert_mixtral_weights_to_hf.py`` and mlx-examples' converter of Mixtral.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from ...errors import ShapeError
from ..stored import StoredTensor
from ..strided import contiguous_strides

__all__ = ["split_fused_experts"]

_FUSED: Final = re.compile(r"(?P<layer>layers\.\d+\.)block_sparse_moe\.(?P<part>w[123]|gate\.weight)")
_TRANSPOSED: Final = "w2"


def split_fused_experts(tensors: Mapping[str, StoredTensor], experts: int) -> dict[str, StoredTensor]:
    """Return the tensors with the names of the later form, each expert's matrices being views on the fused ones; raises ShapeError."""
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        match = _FUSED.fullmatch(name)
        if match is None:
            found[name] = tensor
        elif match["part"] == "gate.weight":
            found[f"{match['layer']}feed_forward.gate.weight"] = tensor
        else:
            for expert in range(experts):
                view = _view(tensor, experts, expert, transposed=match["part"] == _TRANSPOSED)
                found[f"{match['layer']}feed_forward.experts.{expert}.{match['part']}.weight"] = view
    return found


def _view(tensor: StoredTensor, experts: int, expert: int, *, transposed: bool) -> StoredTensor:
    if len(tensor.shape) != 2 or tensor.shape[0] % experts or not tensor.nbytes:
        raise ShapeError(
            f"has shape {tensor.shape}, which is not the matrices of {experts} experts below each other",
            path=tensor.file.path,
            tensor=tensor.name,
            remedy="Compare params.json with the checkpoint: it may be of another model.",
        )
    rows, columns = tensor.shape[0] // experts, tensor.shape[1]
    down, right = tensor.strides or contiguous_strides(tensor.shape)
    item = tensor.nbytes // (tensor.shape[0] * columns)
    view = replace(
        tensor,
        shape=(rows, columns),
        offset=tensor.offset + expert * rows * down * item,
        nbytes=rows * columns * item,
    )
    if transposed:
        return replace(view, shape=(columns, rows), strides=(right, down))
    return view
