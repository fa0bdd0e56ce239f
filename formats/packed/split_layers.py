"""Layers that ExLlamaV2 and V3 split although the architecture has them in one tensor: joined again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..architectures.transforms import TRANSFORMS
from ..base import Tensor

__all__ = ["join_split"]

# what is split, by model_type: the layers' names, and the name that the architecture has for all of it
_FUSED: Mapping[str, tuple[tuple[tuple[str, ...], str], ...]] = {
    "phi3": (
        (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.qkv_proj"),
        (("mlp.gate_proj", "mlp.up_proj"), "mlp.gate_up_proj"),
    ),
}


def join_split(weights: dict[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights with those joined that the architecture has in one tensor."""
    found = dict(weights)
    for names, fused in _FUSED.get(str(config.get("model_type")), ()):
        ending = f".{names[0]}.weight"
        for prefix in [name.removesuffix(ending) for name in weights if name.endswith(ending)]:
            parts = [f"{prefix}.{name}.weight" for name in names]
            if all(part in found for part in parts):
                found[f"{prefix}.{fused}.weight"] = _joined(
                    f"{prefix}.{fused}.weight", [found.pop(part) for part in parts]
                )
    return found


def _joined(name: str, parts: Iterable[Tensor]) -> Tensor:
    whole_tensor, *others = parts
    for part in others:
        (whole_tensor,) = TRANSFORMS["fuse_rows"].forward([whole_tensor, part], {"first": whole_tensor.shape[0]})
    return whole_tensor
