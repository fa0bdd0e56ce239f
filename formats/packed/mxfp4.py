"""Folders whose experts are MXFP4 (gpt-oss): ``NAME_blocks`` U8 (…, rows, groups, 16) and ``NAME_scales`` U8 (…, rows, groups).

They become the tensor ``NAME`` (…, rows, 32 * groups) in GGUF's own MXFP4, every code and scale with the bits that it has: for gpt-oss
``mlp.experts.gate_up_proj`` (experts, 2 * inner, hidden), whose even rows are the gate's and odd rows the other half's, and
``mlp.experts.down_proj`` (experts, hidden, inner). A dense folder has the transposes of these under the same names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ...quantizers.base import Encoding
from ..stored import StoredTensor
from .base import Packing, Unpacked, method, modules_with
from .four_bit_floats import mxfp4_tensor
from .replace import replace_tensors

__all__ = ["PACKING"]

_BLOCKS, _SCALES = "_blocks", "_scales"


def _recognises(config: Mapping[str, Any], tensors: Collection[str]) -> bool:
    if method(config) not in (None, "mxfp4"):
        return False
    return any(name.endswith(_BLOCKS) and name.removesuffix(_BLOCKS) + _SCALES in tensors for name in tensors)


def _unpack(
    tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], encodings: Mapping[str, Encoding]
) -> Unpacked:
    packed = modules_with(tensors, (_BLOCKS, _SCALES))
    weights = {name: mxfp4_tensor(name, parts[_BLOCKS], parts[_SCALES], encodings) for name, parts in packed.items()}
    used = {stored.name for parts in packed.values() for stored in parts.values()}
    return Unpacked(replace_tensors(tensors, used, weights), "blocks of 32, kept as they are", {"type": "MXFP4"})


PACKING = Packing(
    name="mxfp4",
    label="MXFP4",
    description="gpt-oss's experts, kept as GGUF's MXFP4",
    methods=("mxfp4",),
    recognises=_recognises,
    unpack=_unpack,
)
