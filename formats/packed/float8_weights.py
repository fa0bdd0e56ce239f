"""Folders with 8-bit floats as weights: DeepSeek's blocks of 128 × 128, fbgemm's rows, AutoFP8's tensors.

``.weight`` is F8_E4M3 (or F8_E5M2), and its scale has one of the names below; despite the name ``scale_inv`` a weight is the *product* of the two. There is
a scale for the tensor, for each matrix of a stack, for each row, or for each block, whose size is ``weight_block_size`` of the configuration, or
follows from the shapes. Scales are F32, BF16 or powers of two (F8_E8M0, or U8 that holds the same); with powers of two the weights are presented as
BF16, in which they are exact, otherwise as F32. Weights of 8 bits without a scale count as they are.

DeepSeek V4's experts are ``.weight`` I8 of two four-bit floats each and ``.scale`` F8_E8M0 for 32 of them, which is GGUF's MXFP4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import FormatError
from ...quantizers.base import Encoding
from ..base import Tensor
from ..metadata import Scalar
from ..stored import StoredTensor
from .activations import without_activations
from .base import Packing, Unpacked, method, quantization
from .four_bit_floats import mxfp4_tensor
from .replace import replace_tensors
from .scaled import plain_tensor, scaled_tensor

__all__ = ["PACKING", "Float8Weights", "float8_weights"]

_METHODS = ("fp8", "fbgemm_fp8", "mxfp8")
_SHORT = {"F8_E4M3": "E4M3", "F8_E5M2": "E5M2"}
_FLOATS = ("F8_E4M3", "F8_E5M2")
_POWERS = ("F8_E8M0", "U8")
# what a weight's name is replaced by in the name of its scale: (end of the weight's name, ends of the scale's)
_SCALES = (
    (".weight", (".weight_scale_inv", ".weight_scale", ".scale", ".qscale_weight")),
    ("", ("_scale_inv", "_scale")),
)
_SIZE_MAX = 1 << 32


def _scale_of(name: str, tensors: Mapping[str, StoredTensor]) -> StoredTensor | None:
    """Return the scale of a weight, or None where it has none."""
    for end, others in _SCALES:
        if name.endswith(end):
            for other in others:
                if (found := tensors.get(name.removesuffix(end) + other)) is not None:
                    return found
    return None


def _is_packed(stored: StoredTensor, tensors: Mapping[str, StoredTensor]) -> bool:
    if stored.dtype in _FLOATS:
        return True
    scale = _scale_of(stored.name, tensors) if stored.dtype == "I8" else None
    return scale is not None and scale.dtype in _POWERS


@dataclass(frozen=True)
class Float8Weights:
    """The 8-bit weights of a folder.

    Attributes:
        weights: by name.
        used: names of what they were made from.
        kinds: what there was, for people.
    """

    weights: Mapping[str, Tensor]
    used: frozenset[str]
    kinds: tuple[str, ...]


def float8_weights(
    tensors: Mapping[str, StoredTensor], block: tuple[int, int] | None, encodings: Mapping[str, Encoding]
) -> Float8Weights:
    """Return every 8-bit weight; ``block`` is the size of blocks where the shapes leave it open. Raises FormatError or ShapeError."""
    weights: dict[str, Tensor] = {}
    used: set[str] = set()
    kinds = set()
    for name, stored in tensors.items():
        if not _is_packed(stored, tensors):
            continue
        scale = _scale_of(name, tensors)
        used.add(name)
        if scale is None:
            weights[name] = plain_tensor(name, stored, encodings["BF16"])
            kinds.add(f"{_SHORT[stored.dtype]} without scales")
            continue
        used.add(scale.name)
        if stored.dtype == "I8":
            weights[name] = mxfp4_tensor(name, stored, scale, encodings)
            kinds.add("MXFP4")
        else:
            encoding = encodings["BF16" if scale.dtype in _POWERS else "F32"]
            weights[name] = scaled_tensor(name, stored, scale, encoding, block)
            kinds.add(_SHORT[stored.dtype])
    return Float8Weights(weights, frozenset(used), tuple(sorted(kinds)))


def _recognises(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> bool:
    if method(config) not in (None, *_METHODS):
        return False
    return any(stored.dtype in _FLOATS and len(stored.shape) > 1 for stored in tensors.values())


def _unpack(
    tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], encodings: Mapping[str, Encoding]
) -> Unpacked:
    block = _block_size(config)
    found = float8_weights(tensors, block, encodings)
    kept = without_activations(replace_tensors(tensors, found.used, found.weights))
    summary = " and ".join(found.kinds)
    facts: dict[str, Scalar] = {"type": summary}
    if block is not None:
        facts["block_size"] = f"{block[0]} × {block[1]}"
        summary += f", blocks of {facts['block_size']}"
    return Unpacked(kept, summary, facts)


def _block_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return ``weight_block_size``, or None where there is none; raises FormatError."""
    value = quantization(config).get("weight_block_size")
    if value is None:
        return None
    if (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= _SIZE_MAX for size in value)
    ):
        return value[0], value[1]
    raise FormatError(
        f"quantization_config has weight_block_size: {str(value)[:40]!r}, which must be two sizes",
        remedy="Restore the original configuration of the quantized model.",
    )


PACKING = Packing(
    name="fp8",
    label="FP8",
    description="E4M3 and E5M2 under scales of blocks, rows, matrices or tensors",
    methods=_METHODS,
    recognises=_recognises,
    unpack=_unpack,
)
