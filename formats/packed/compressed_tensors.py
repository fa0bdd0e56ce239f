"""compressed-tensors folders, as llm-compressor writes them. Every module tells by its own tensors how it is packed:

==================  ==========================================================  ===============================================
format              tensors of a module, (rows, columns) being the weight's     weight
==================  ==========================================================  ===============================================
pack-quantized      .weight_packed I32, .weight_scale, .weight_shape,           (code - zero) * scale
                    .weight_zero_point and .weight_g_idx where there are any
int-quantized       .weight I8, .weight_scale, .weight_zero_point               (code - zero) * scale
float-quantized     .weight F8_E4M3, .weight_scale                              number * scale
nvfp4-pack-         .weight_packed U8, .weight_scale F8_E4M3,                   number * scale / global scale; GGUF's NVFP4
quantized           .weight_global_scale F32
mxfp4-pack-         .weight_packed U8, .weight_scale U8 (E8M0)                  number * scale; GGUF's MXFP4
quantized
==================  ==========================================================  ===============================================

Integers of b bits are packed as a stream along each row, stored with ``2**(b - 1)`` added; zero points likewise, but down each column. Versions before
0.18 filled each 32-bit word with whole fields and left the rest of it unused: the width of the tensor tells. Scales of integers are one for a
row or for each group of columns; those of 8-bit numbers may also be one for a tensor or a block. Products are rounded to the dtype of the scales, as
the package's own ``decompress`` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import FormatError, MissingTensorError
from ...quantizers.base import Encoding
from ..base import Tensor
from ..metadata import Scalar
from ..stored import StoredTensor
from .access import expect, whole
from .activations import without_activations
from .base import Packing, Unpacked, method, modules_with, quantization
from .four_bit_floats import mxfp4_tensor, nvfp4_weight
from .replace import number_range, replace_tensors
from .scaled import product_encoding, scaled_tensor
from .word_integers import WordIntegers, word_integers

__all__ = ["PACKING"]

_FORMATS = (
    "dense", "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "nvfp4-pack-quantized",
    "mxfp4-pack-quantized", "mxfp8-quantized", "mixed-precision",
)  # fmt: skip
_SIZE_MAX = 1 << 32  # rows, columns
_REMEDY = "Restore the original configuration of the quantized model."


@dataclass(frozen=True, slots=True)
class _Settings:
    """What the groups of the configuration say of weights, in the order of their names in it.

    Attributes:
        bits: numbers of bits of integers.
        group_sizes: columns per scale.
        blocks: rows and columns per scale.
    """

    bits: tuple[int, ...]
    group_sizes: tuple[int, ...]
    blocks: tuple[tuple[int, int], ...]


def _settings(config: Mapping[str, Any]) -> _Settings:
    """Return the settings; raises FormatError, naming the key, for those that qconv does not know."""
    found = quantization(config)
    for place, form in [("format", found.get("format")), *_group_formats(found)]:
        if form is not None and form not in _FORMATS:
            raise FormatError(
                f"quantization_config has {place}: {str(form)[:40]!r}, and qconv reads {', '.join(_FORMATS)}",
                remedy="Convert the original BF16 or F16 model.",
            )
    if isinstance(sparsity := found.get("sparsity_config"), dict) and sparsity.get("format") not in (None, "dense"):
        raise FormatError(
            f"quantization_config has sparsity_config.format: {str(sparsity['format'])[:40]!r}, and qconv reads dense",
            remedy="Convert the original BF16 or F16 model.",
        )
    bits, sizes, blocks = [], [], []
    for name, weights in _weight_groups(found):
        key = f"config_groups.{name}.weights"
        number, size = (_whole(weights, part, key) for part in ("num_bits", "group_size"))
        if number is not None and weights.get("type", "int") == "int":
            bits.append(number)
        if size is not None and size > 0:
            sizes.append(size)
        if weights.get("block_structure") is not None:
            blocks.append(_block(weights["block_structure"], key))
    return _Settings(tuple(dict.fromkeys(bits)), tuple(dict.fromkeys(sizes)), tuple(dict.fromkeys(blocks)))


def _groups(found: Mapping[str, Any]) -> Mapping[str, Any]:
    groups = found.get("config_groups")
    if groups is not None and not isinstance(groups, dict):
        raise FormatError("quantization_config has config_groups that are no object", remedy=_REMEDY)
    return groups or {}


def _group_formats(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, group in _groups(found).items():
        if isinstance(group, dict):
            yield f"config_groups.{name}.format", group.get("format")


def _weight_groups(found: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, group in _groups(found).items():
        if isinstance(group, dict) and isinstance(weights := group.get("weights"), dict):
            yield name, weights


def _whole(weights: Mapping[str, Any], part: str, key: str) -> int | None:
    value = weights.get(part)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not -1 <= value <= _SIZE_MAX):
        raise FormatError(
            f"quantization_config has {key}.{part}: {str(value)[:40]!r}, which must be a whole number", remedy=_REMEDY
        )
    return value


def _block(value: object, key: str) -> tuple[int, int]:
    """Return ``[128, 128]`` or ``"128x128"`` as numbers."""
    parts = value.split("x") if isinstance(value, str) else value
    if isinstance(parts, list) and len(parts) == 2:
        sizes = [int(part) if isinstance(part, str) and part.isdecimal() and len(part) < 9 else part for part in parts]
        if all(isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= _SIZE_MAX for size in sizes):
            return sizes[0], sizes[1]
    raise FormatError(
        f"quantization_config has {key}.block_structure: {str(value)[:40]!r}, which must be two sizes", remedy=_REMEDY
    )


def _recognises(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> bool:
    if method(config) not in (None, "compressed-tensors"):
        return False
    names = (".weight_packed",) if method(config) is None else (".weight_packed", ".weight_scale")
    return any(name.endswith(names) for name in tensors)


def _unpack(
    tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], encodings: Mapping[str, Encoding]
) -> Unpacked:
    settings = _settings(config)
    weights: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}
    bits: list[int] = []
    kinds: list[str] = []
    optional = (".weight_shape", ".weight_zero_point", ".weight_g_idx", ".weight_global_scale")
    used: set[str] = set()
    for module, parts in modules_with(tensors, (".weight_packed", ".weight_scale"), optional).items():
        name, codes = f"{module}.weight", parts[".weight_packed"]
        used.update(stored.name for stored in parts.values())
        if codes.dtype == "U8":
            _refuse_zero_point(parts)
            if ".weight_global_scale" in parts:
                weights[name], scale = nvfp4_weight(
                    name, codes, parts[".weight_scale"], parts[".weight_global_scale"], encodings, inverse=True
                )
                kinds.append("NVFP4")
                if scale is not None:
                    scales[name] = scale
            else:
                weights[name] = mxfp4_tensor(name, codes, parts[".weight_scale"], encodings)
                kinds.append("MXFP4")
        else:
            integers = _integers(parts, settings, encodings)
            weights[name] = integers.tensor(name)
            bits.append(integers.form.bits)
    others = {name: stored for name, stored in tensors.items() if name not in used}
    for module, parts in modules_with(others, (".weight_scale", ".weight"), (".weight_zero_point",)).items():
        name = f"{module}.weight"
        weights[name] = _eight_bits(name, parts, settings, encodings)
        kinds.append("8-bit integers" if parts[".weight"].dtype == "I8" else "FP8")
        used.update(stored.name for stored in parts.values())
    if bits:
        kinds.append(f"{number_range(bits)}-bit integers, packed")
    kinds = sorted(set(kinds))
    facts: dict[str, Scalar] = {"type": ", ".join(kinds)}
    kept = without_activations(replace_tensors(tensors, used, weights))
    return Unpacked(kept, " and ".join(kinds), facts, scales=scales)


def _refuse_zero_point(parts: Mapping[str, StoredTensor]) -> None:
    if (zeros := parts.get(".weight_zero_point")) is not None:
        raise FormatError(
            "is a zero point, and four-bit floats have none",
            path=zeros.file.path,
            tensor=zeros.name,
            remedy="Convert the original BF16 or F16 model.",
        )


def _integers(
    parts: Mapping[str, StoredTensor], settings: _Settings, encodings: Mapping[str, Encoding]
) -> WordIntegers:
    shape = parts.get(".weight_shape")
    codes = parts[".weight_packed"]
    if shape is None:
        raise MissingTensorError(
            f"is missing, and {codes.name} cannot be unpacked without it",
            path=codes.file.path,
            tensor=f"{codes.name.removesuffix('_packed')}_shape",
            remedy="A weight file is missing or damaged; compare the folder with its source.",
        )
    expect(shape, ("I64", "I32"), (2,))
    rows, columns = (int(size) for size in whole(shape))
    if not (0 < rows <= _SIZE_MAX and 0 < columns <= _SIZE_MAX):
        raise FormatError(
            f"holds the shape ({rows}, {columns})",
            path=shape.file.path,
            tensor=shape.name,
            remedy="The file is damaged; download it again.",
        )
    return word_integers(
        codes,
        parts[".weight_scale"],
        parts.get(".weight_zero_point"),
        parts.get(".weight_g_idx"),
        (rows, columns),
        settings.bits,
        settings.group_sizes,
        product_encoding(parts[".weight_scale"], encodings),
    )


def _eight_bits(
    name: str, parts: Mapping[str, StoredTensor], settings: _Settings, encodings: Mapping[str, Encoding]
) -> Tensor:
    weight, scales = parts[".weight"], parts[".weight_scale"]
    block = next(iter(settings.blocks), None)
    if block is None and len(scales.shape) == len(weight.shape) and scales.shape[:-1] == weight.shape[:-1]:
        block = next(
            ((1, size) for size in settings.group_sizes if -(-weight.shape[-1] // size) == scales.shape[-1]), None
        )
    encoding = product_encoding(scales, encodings)
    return scaled_tensor(name, weight, scales, encoding, block, parts.get(".weight_zero_point"))


PACKING = Packing(
    name="compressed-tensors",
    label="compressed-tensors",
    description="pack-quantized and int-quantized integers, float-quantized FP8, NVFP4 and MXFP4",
    methods=("compressed-tensors",),
    recognises=_recognises,
    unpack=_unpack,
)
