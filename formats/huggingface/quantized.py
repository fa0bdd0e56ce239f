"""Folders that a quantizer wrote: its settings, wherever they lie, and the packing that turns its tensors into weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ...errors import FormatError, QconvError, ShapeError
from ...quantizers.base import Encoding
from ..architectures import Architecture, NameMap, at_layer, map_names
from ..architectures.transforms import TRANSFORMS
from ..base import Tensor
from ..metadata import Scalar
from ..packed import PACKINGS, Packing, Unpacked
from ..packed.base import method
from ..stored import CheckpointTensor, StoredTensor
from .json_files import read_json_object

__all__ = ["Weights", "unpack_weights", "with_quantization", "without_padding", "without_spares"]

# where quantizers leave their settings beside config.json, and the method that a file of this name implies
_SETTINGS_FILES = (
    ("quantize_config.json", "gptq"),
    ("quant_config.json", "awq"),
    ("hf_quant_config.json", "modelopt"),
)
# layers that transformers keeps as (in, out), and quantizers as (out, in) like all others
_CONV1D = re.compile(r"(?:.*\.)?(?:c_attn|c_fc|c_proj|q_attn)\.weight")
_CONV1D_MODELS = ("gpt2",)
# A row is the least that is unpacked at once, and two bits become sixteen times as many: this one is 4 MiB of float32.
_ROW_MAX = 1 << 20


@dataclass(frozen=True)
class Weights:
    """A checkpoint's tensors as an architecture expects them, and what a packing has told of them.

    Attributes:
        tensors: Hugging Face names to tensors.
        notes: what the user should know.
        container: facts for ``inspect``.
        spare: biases of zeros that a quantizer added.
        row_padding: rows of unpacked tensors are filled up to a multiple of it.
        column_padding: the same of columns.
        scales: of NVFP4 tensors, by the tensor's name.
    """

    tensors: Mapping[str, CheckpointTensor]
    notes: tuple[str, ...] = ()
    container: Mapping[str, Scalar] = field(default_factory=lambda: MappingProxyType({}))
    spare: Mapping[str, CheckpointTensor] = field(default_factory=lambda: MappingProxyType({}))
    row_padding: int = 1
    column_padding: int = 1
    scales: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))


def with_quantization(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration with the quantizer's settings under ``quantization_config``, wherever the folder has them."""
    if isinstance(config.get("quantization_config"), dict):
        return config
    text = config.get("text_config")
    if isinstance(text, dict) and isinstance(text.get("quantization_config"), dict):
        return MappingProxyType({**config, "quantization_config": text["quantization_config"]})
    for name, implied in _SETTINGS_FILES:
        if (folder / name).is_file():
            found = read_json_object(folder / name, "the quantizer's settings")
            return MappingProxyType({**config, "quantization_config": {"quant_method": implied, **found}})
    return config


def unpack_weights(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], encodings: Mapping[str, Encoding]
) -> Weights:
    """Return the tensors, unpacked where a packing recognises them.

    ``config`` is that of :func:`with_quantization`. Raises FormatError for a quantizer that no packing knows, and what the packing raises, with
    the folder as path where it names none.
    """
    packing = next((packing for packing in PACKINGS if packing.recognises(config, tensors)), None)
    if packing is None:
        if tensors:
            _refuse_unknown(folder, config)
        return Weights(tensors)
    try:
        unpacked = packing.unpack(tensors, config, encodings)
    except QconvError as error:
        if error.path is None:
            error.path = folder
        raise
    _check_rows(folder, unpacked)
    found = {name: _transposed(name, tensor, config) for name, tensor in unpacked.tensors.items()}
    return Weights(
        MappingProxyType(found),
        (_note(packing, unpacked), *unpacked.notes),
        MappingProxyType({"packing": packing.name, **unpacked.facts}),
        unpacked.spare,
        unpacked.row_padding,
        unpacked.column_padding,
        unpacked.scales,
    )


def _refuse_unknown(folder: Path, config: Mapping[str, Any]) -> None:
    found = method(config)
    known = tuple(dict.fromkeys(name for packing in PACKINGS for name in packing.methods))
    if found is not None and found not in known:
        raise FormatError(
            f"quantization_config has quant_method: {found[:40]!r}, which qconv does not know; it knows {', '.join(known)}",
            path=folder,
            remedy="Convert the original BF16 or F16 model.",
        )


def _check_rows(folder: Path, unpacked: Unpacked) -> None:
    """Refuse unpacked rows that are longer than any model's."""
    for tensor in unpacked.tensors.values():
        if isinstance(tensor, Tensor) and tensor.columns > _ROW_MAX:
            raise ShapeError(
                f"has rows of {tensor.columns} weights, more than the {_ROW_MAX} of any model's",
                path=folder,
                tensor=tensor.name,
                remedy="The file is damaged; download it again.",
            )


def _note(packing: Packing, unpacked: Unpacked) -> str:
    return (
        f"the source was already quantized ({packing.label}, {unpacked.summary}): its losses stay, "
        "and quantizing it again adds to them"
    )


def _transposed(name: str, tensor: CheckpointTensor, config: Mapping[str, Any]) -> CheckpointTensor:
    if isinstance(tensor, Tensor) and config.get("model_type") in _CONV1D_MODELS and _CONV1D.fullmatch(name):
        return TRANSFORMS["transpose"].forward([tensor], {})[0]
    return tensor


def without_spares(weights: Weights, architecture: Architecture, values: Mapping[str, object]) -> Weights:
    """Return the weights with those of the spare biases that the architecture cannot do without."""
    if not weights.spare:
        return weights
    missing = map_names(architecture, weights.tensors, values).missing
    wanted = {name: weights.spare[name] for name in missing if name in weights.spare}
    return replace(weights, tensors=MappingProxyType({**weights.tensors, **wanted})) if wanted else weights


def without_padding(weights: Weights, names: NameMap, values: Mapping[str, object]) -> Weights:
    """Return the weights with padded rows and columns cut to the numbers that the architecture gives."""
    if weights.row_padding == weights.column_padding == 1:
        return weights
    found = dict(weights.tensors)
    for item in names.mapped:
        for index, source in enumerate(item.sources):
            tensor = found[source]
            if not isinstance(tensor, Tensor) and not source.endswith(".bias"):
                continue
            sizes = [
                it.evaluate(at_layer(values, item.layer)) for it in item.entry.shapes[index % len(item.entry.shapes)]
            ]
            if tensor.shape and _is_padded(tensor.shape[0], sizes[0], weights.row_padding):
                found[source] = tensor = _cut(tensor, sizes[0])
            if not isinstance(tensor, Tensor) or len(tensor.shape) != 2 or len(sizes) != 2:
                continue
            if _is_padded(tensor.shape[1], sizes[1], weights.column_padding):
                found[source] = _cut_columns(tensor, sizes[1])
    return replace(weights, tensors=MappingProxyType(found))


def _is_padded(found: int, wanted: int, multiple: int) -> bool:
    return 0 < wanted < found == -(-wanted // multiple) * multiple


def _cut_columns(tensor: Tensor, columns: int) -> Tensor:
    """Return the first elements of each row."""
    width = columns * tensor.encoding.block_bytes
    return replace(
        tensor,
        shape=(*tensor.shape[:-1], columns),
        read=lambda start, stop: np.ascontiguousarray(tensor.read(start, stop)[:, :width]),
    )


def _cut(tensor: CheckpointTensor, rows: int) -> CheckpointTensor:
    """Return the first rows of a matrix, or the first elements of a vector."""
    shape = (rows, *tensor.shape[1:])
    if isinstance(tensor, StoredTensor):
        return replace(tensor, shape=shape, nbytes=tensor.nbytes // tensor.shape[0] * rows)
    return replace(tensor, shape=shape)
