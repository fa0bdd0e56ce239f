"""ModelOpt folders: NVFP4 and FP8, a module telling by its own tensors which it is.

NVFP4 has ``.weight`` U8 (rows, columns / 2), the lower half of a byte first, ``.weight_scale`` F8_E4M3 (rows, columns / 16) and ``.weight_scale_2`` F32, a
number by which the whole tensor is multiplied; it becomes GGUF's NVFP4 and the scale beside it. FP8 is that of :mod:`.float8_weights`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import FormatError
from ...quantizers.base import Encoding
from ..base import Tensor
from ..metadata import Scalar
from ..stored import StoredTensor
from .activations import without_activations
from .base import Packing, Unpacked, method, modules_with
from .float8_weights import float8_weights
from .four_bit_floats import nvfp4_weight
from .replace import replace_tensors

__all__ = ["PACKING"]

_METHODS = ("modelopt", "modelopt_fp4", "nvfp4")
_FLOATS = ("F8_E4M3", "F8_E5M2")


def _recognises(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> bool:
    if method(config) in _METHODS:
        return any(name.endswith((".weight_scale", ".weight_scale_2")) for name in tensors)
    return method(config) is None and any(name.endswith(".weight_scale_2") for name in tensors)


def _unpack(
    tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], encodings: Mapping[str, Encoding]
) -> Unpacked:
    _refuse_smoothing(tensors)
    weights: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}
    used: set[str] = set()
    for module, parts in modules_with(tensors, (".weight_scale", ".weight"), (".weight_scale_2",)).items():
        if parts[".weight"].dtype in _FLOATS:
            continue
        name = f"{module}.weight"
        weights[name], scale = nvfp4_weight(
            name, parts[".weight"], parts[".weight_scale"], parts.get(".weight_scale_2"), encodings
        )
        if scale is not None:
            scales[name] = scale
        used.update(stored.name for stored in parts.values())
    kinds = ["NVFP4"] if weights else []
    left = {name: stored for name, stored in tensors.items() if name not in used}
    others = float8_weights(left, None, encodings)
    kept = replace_tensors(tensors, used | others.used, {**weights, **others.weights})
    kinds += others.kinds
    facts: dict[str, Scalar] = {"type": ", ".join(kinds)}
    return Unpacked(without_activations(kept), " and ".join(kinds), facts, scales=scales)


def _refuse_smoothing(tensors: Mapping[str, StoredTensor]) -> None:
    if (found := next((name for name in tensors if name.endswith(".pre_quant_scale")), None)) is not None:
        raise FormatError(
            "scales the inputs of a layer (AWQ), which GGUF has no place for",
            path=tensors[found].file.path,
            tensor=found,
            remedy="Convert the original BF16 or F16 model.",
        )


PACKING = Packing(
    name="modelopt",
    label="ModelOpt",
    description="NVFP4, kept as GGUF's NVFP4, and FP8",
    methods=_METHODS,
    recognises=_recognises,
    unpack=_unpack,
)
