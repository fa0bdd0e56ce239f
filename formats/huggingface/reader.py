"""A Hugging Face folder to a :class:`Model`: configuration, names and shapes first, all of them checked; weights stay on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...errors import FormatError, MissingFileError, UnknownFormatError
from ..architectures import Architecture, NameMap, map_names, whole
from ..architectures.transforms import constant
from ..base import Model, OpenContext, Tensor
from .assembly import assemble, check_names, dropped_notes, measured_values
from .checkpoint import NO_CHECKPOINT, Checkpoint, open_checkpoint
from .configuration import Values, check_configuration, hyper_parameter_metadata, read_hyper_parameters, text_section
from .identity import general_metadata, model_name, read_model_card, size_label
from .json_files import read_json_object
from .matching import choose_architecture, is_headless
from .out.record import describe_weights, record_source
from .pooling import read_pooling
from .quantized import Weights, unpack_weights, with_quantization, without_padding, without_spares
from .rope import RopeResult, read_rope
from .shapes import check_shapes
from .tokenizing.tokenizer import read_tokenizer

__all__ = ["Described", "open_huggingface"]

_CONFIG = "config.json"
_GENERATION = "generation_config.json"
_SIDE_SUFFIXES = (".json", ".model", ".jinja", ".txt", ".tiktoken")
_NO_SIDE = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SIDE_MAX = 64  # files


@dataclass(frozen=True)
class Described:
    """What the configuration and the tensors' names and shapes say together."""

    architecture: Architecture
    values: Values
    names: NameMap
    weights: Weights
    rope: RopeResult
    notes: tuple[str, ...]


def open_huggingface(path: Path, context: OpenContext) -> Model:
    """Open a folder with ``config.json`` and safetensors files; what a quantizer packed is unpacked when it is read.

    No weight is read; every name and shape is checked. Raises FormatError and its kin for files, ModelError and its kin for what they hold.
    """
    folder = _folder(path)
    config = with_quantization(folder, read_json_object(folder / _CONFIG, "the model's configuration"))
    generation_path = folder / _GENERATION
    generation = read_json_object(generation_path, "generation defaults") if generation_path.exists() else {}
    checkpoint = NO_CHECKPOINT if context.vocabulary_only else open_checkpoint(folder)
    try:
        weights = unpack_weights(folder, config, checkpoint.tensors, context.encodings)
        described = _describe(config, weights, context, folder)
        return _model(path, folder, config, generation, checkpoint, described, context)
    except BaseException:
        checkpoint.close()
        raise


def _folder(path: Path) -> Path:
    if not path.exists():
        raise MissingFileError("no such folder", path=path, remedy="Check the spelling of the path.")
    if not path.is_dir():
        raise UnknownFormatError(
            "this is a file, a Hugging Face model is a folder",
            path=path,
            remedy="Name the folder that holds config.json.",
        )
    if not (path / _CONFIG).exists() and (path / "adapter_config.json").exists():
        raise FormatError(
            "this is a LoRA adapter, not a whole model",
            path=path,
            remedy="Merge it into its base model first (peft's merge_and_unload), then convert the result.",
        )
    return path


def _describe(config: Mapping[str, Any], weights: Weights, context: OpenContext, folder: Path) -> Described:
    path = folder / _CONFIG
    architecture = choose_architecture(config, weights.tensors, context, path)
    section = text_section(architecture, config, path)
    values = read_hyper_parameters(architecture, section, path)
    rope = read_rope(architecture, section, values, path)
    notes = [*check_configuration(architecture, section, values, path), *rope.notes]
    weights = without_spares(weights, architecture, values)
    tensors = weights.tensors
    names = map_names(architecture, tensors, values)
    if context.vocabulary_only:
        return Described(architecture, values, names, weights, rope, tuple(notes))
    if is_headless(config) and names.missing and all("lm_head" in name for name in names.missing):
        values = MappingProxyType({**values, "tied": True})
        names = map_names(architecture, tensors, values)
        notes.append("the checkpoint is a bare model without lm_head: the token embedding serves as the output matrix")
    check_names(architecture, names, folder)
    values, measured = measured_values(architecture, names, tensors, values)
    weights = without_padding(weights, names, values)
    check_shapes(names, weights.tensors, values, path)
    return Described(architecture, values, names, weights, rope, (*notes, *measured, *dropped_notes(names)))


def _model(
    path: Path,
    folder: Path,
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    checkpoint: Checkpoint,
    described: Described,
    context: OpenContext,
) -> Model:
    architecture, values = described.architecture, described.values
    tensors: dict[str, Tensor] = {}
    if not context.vocabulary_only:
        for name, table in described.rope.tables.items():
            tensors[name] = constant(name, table, f"{_CONFIG}: rotary scaling")
        tensors |= assemble(
            described.names, described.weights.tensors, values, context.encodings, described.weights.scales
        )
    card, card_notes = read_model_card(folder)
    label = size_label(tensors.values(), whole({"experts": 0, **values}, "experts") or None)
    hints = {**architecture.tokenizer, **{name: whole(values, name) for name in ("token_types",) if name in values}}
    tokenizer = read_tokenizer(folder, config, context, vocab_rows=whole(values, "vocabulary"), hints=hints)
    pooling, pooling_notes = read_pooling(folder, architecture.gguf)
    side_files = _side_files(folder)
    return Model(
        path=path,
        format="huggingface",
        metadata=MappingProxyType(
            {
                **general_metadata(architecture.gguf, model_name(folder, config, card), label, card, generation),
                **hyper_parameter_metadata(architecture, values),
                **described.rope.metadata,
                **pooling,
                **tokenizer.metadata,
                **record_source(folder, config, tokenizer, _weights(described, checkpoint, config)),
            }
        ),
        tensors=MappingProxyType(tensors),
        files=tuple(dict.fromkeys((folder / _CONFIG, *checkpoint.files, *side_files.values()))),
        side_files=MappingProxyType(side_files),
        notes=(
            *checkpoint.notes,
            *described.weights.notes,
            *described.notes,
            *card_notes,
            *pooling_notes,
            *tokenizer.notes,
        ),
        close=checkpoint.close,
        container=described.weights.container,
    )


def _weights(
    described: Described, checkpoint: Checkpoint, config: Mapping[str, Any]
) -> Mapping[str, Mapping[str, Any]]:
    """Return what the names and dtypes of the checkpoint were; nothing for one that a quantizer packed."""
    dtypes = {name: tensor.dtype for name, tensor in checkpoint.tensors.items()}
    if not all(name in dtypes for item in described.names.mapped for name in item.sources):
        return {}
    whole = described.architecture.config_section not in config
    return describe_weights(described.architecture, described.names, dtypes, whole=whole)


def _side_files(folder: Path) -> dict[str, Path]:
    """Return configuration, tokenizer and template files by name."""
    found = sorted(
        item
        for item in folder.iterdir()
        if item.suffix in _SIDE_SUFFIXES
        and item.name not in _NO_SIDE
        and not item.name.startswith(".")
        and item.is_file()
    )
    return {item.name: item for item in found[:_SIDE_MAX]}
