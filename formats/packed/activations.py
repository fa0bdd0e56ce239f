"""Tensors by which quantized models scale their activations and caches: no weight depends on them."""

from __future__ import annotations

from collections.abc import Mapping

from ..stored import CheckpointTensor

__all__ = ["without_activations"]

_SUFFIXES = (
    ".input_scale", ".input_scale_inv", ".input_zero_point", ".input_global_scale", ".input_scale_ub",
    ".activation_scale", ".activation_scale_inv", "_activation_scale", ".qscale_act", ".output_scale", ".output_zero_point",
    ".q_scale", ".k_scale", ".v_scale", ".prob_scale", ".k_zero_point", ".v_zero_point",
)  # fmt: skip


def without_activations(tensors: Mapping[str, CheckpointTensor]) -> dict[str, CheckpointTensor]:
    """Return the tensors without those that scale activations, by their names' ends."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(_SUFFIXES)}
