"""A folder in Mistral's own form to a :class:`Model`: ``params.json``, names and shapes first, all of them checked; weights stay on disk."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...errors import ModelError, UnknownFormatError
from ..architectures import Architecture, map_names, whole
from ..architectures.transforms import constant
from ..base import Model, OpenContext, Tensor
from ..huggingface.assembly import assemble, dropped_notes, measured_values
from ..huggingface.checkpoint import CONSOLIDATED, NO_CHECKPOINT, Checkpoint, open_checkpoint
from ..huggingface.configuration import Values, check_configuration, hyper_parameter_metadata, read_hyper_parameters
from ..huggingface.identity import general_metadata, model_name, read_model_card, size_label
from ..huggingface.json_files import read_json_object
from ..huggingface.out.configuration import special_ids
from ..huggingface.out.source import PREFIX
from ..huggingface.quantized import Weights, unpack_weights
from ..huggingface.reader import Described
from ..huggingface.rope import read_rope
from ..huggingface.shapes import check_shapes
from ..huggingface.tokenizing.protobuf import read_sentencepiece
from ..huggingface.tokenizing.sentencepiece import sentencepiece_vocabulary
from ..huggingface.tokenizing.tokenizer import TokenizerResult, read_tokenizer
from ..metadata import Field, string
from . import weight_files
from .fused_experts import split_fused_experts
from .names import check_native_names, in_native_form
from .parameters import Parameters, read_parameters
from .tekken import NAME as TEKKEN
from .tekken import tekken_vocabulary

__all__ = ["open_mistral"]

_PARAMETERS, _GENERATION = "params.json", "generation_config.json"
_PIECES = re.compile(r"tokenizer\.model(?:\.v(?P<version>\d{1,3})\w*)?")
_NO_TOKENIZER = f"there is no {TEKKEN} or tokenizer.model: the result runs on token ids only; copy it into the folder"
_NO_TEMPLATE = "the folder has no chat template: for chats, put the model's chat_template.jinja beside params.json before converting"


def open_mistral(path: Path, context: OpenContext) -> Model:
    """Open a folder with ``params.json`` and ``consolidated*.safetensors``; 8-bit weights are unpacked when they are read.

    No weight is read; every name and shape is checked. Raises FormatError and its kin for files, ModelError and its kin for what they hold.
    """
    if not path.is_dir():
        raise UnknownFormatError(
            "this is a file, a model in Mistral's form is a folder",
            path=path,
            remedy=f"Name the folder that holds {_PARAMETERS}.",
        )
    parameters = read_parameters(path / _PARAMETERS)
    architecture = _architecture(parameters, context, path)
    checkpoint = NO_CHECKPOINT if context.vocabulary_only else _checkpoint(path, parameters)
    try:
        weights = unpack_weights(path, parameters.config, checkpoint.tensors, context.encodings)
        described = _describe(parameters, in_native_form(architecture), weights, context, path)
        return _model(path, parameters, checkpoint, described, context)
    except BaseException:
        checkpoint.close()
        raise


def _checkpoint(path: Path, parameters: Parameters) -> Checkpoint:
    checkpoint = open_checkpoint(path, weight_files(path) or CONSOLIDATED)
    if parameters.architecture != "mixtral":
        return checkpoint
    try:
        experts = int(parameters.config["num_local_experts"])
        return replace(checkpoint, tensors=split_fused_experts(checkpoint.tensors, experts))
    except BaseException:
        checkpoint.close()
        raise


def _architecture(parameters: Parameters, context: OpenContext, path: Path) -> Architecture:
    if context.architecture not in (None, parameters.architecture):
        raise ModelError(
            f"by {_PARAMETERS} the model is {parameters.architecture!r}, and cannot be read as {context.architecture!r}",
            path=path,
            remedy="Leave --as-arch out.",
        )
    return context.architectures[parameters.architecture]


def _describe(
    parameters: Parameters, architecture: Architecture, weights: Weights, context: OpenContext, folder: Path
) -> Described:
    path = folder / _PARAMETERS
    values = read_hyper_parameters(architecture, parameters.config, path)
    rope = read_rope(architecture, parameters.config, values, path)
    notes = [*parameters.notes, *check_configuration(architecture, parameters.config, values, path), *rope.notes]
    names = map_names(architecture, weights.tensors, values)
    if not context.vocabulary_only:
        check_native_names(names, folder)
        values, measured = measured_values(architecture, names, weights.tensors, values)
        check_shapes(names, weights.tensors, values, path)
        notes += [*measured, *dropped_notes(names)]
    return Described(architecture, values, names, weights, rope, tuple(notes))


def _model(
    path: Path, parameters: Parameters, checkpoint: Checkpoint, described: Described, context: OpenContext
) -> Model:
    architecture, values = described.architecture, described.values
    tensors: dict[str, Tensor] = {}
    if not context.vocabulary_only:
        for name, table in described.rope.tables.items():
            tensors[name] = constant(name, table, f"{_PARAMETERS}: rotary scaling")
        tensors |= assemble(
            described.names, described.weights.tensors, values, context.encodings, described.weights.scales
        )
    card, card_notes = read_model_card(path)
    generation = read_json_object(path / _GENERATION, "generation defaults") if (path / _GENERATION).exists() else {}
    tokenizer = _tokenizer(path, architecture, whole(values, "vocabulary"), context)
    label = size_label(tensors.values(), whole({"experts": 0, **values}, "experts") or None)
    template = () if "tokenizer.chat_template" in tokenizer.metadata else (_NO_TEMPLATE,)
    return Model(
        path=path,
        format="mistral",
        metadata=MappingProxyType(
            {
                **general_metadata(architecture.gguf, model_name(path, {}, card), label, card, generation),
                **hyper_parameter_metadata(architecture, values),
                **described.rope.metadata,
                **tokenizer.metadata,
                **_record(parameters.config, values, tokenizer, checkpoint, described.weights),
            }
        ),
        tensors=MappingProxyType(tensors),
        files=tuple(dict.fromkeys((path / _PARAMETERS, *checkpoint.files, *tokenizer.files.values()))),
        side_files=tokenizer.files,
        notes=(
            *checkpoint.notes,
            *described.weights.notes,
            *described.notes,
            *card_notes,
            *tokenizer.notes,
            *template,
        ),
        close=checkpoint.close,
        container=described.weights.container,
    )


def _record(
    config: Mapping[str, Any], values: Values, tokenizer: TokenizerResult, checkpoint: Checkpoint, weights: Weights
) -> dict[str, Field]:
    """Return the configuration that a Hugging Face folder of this model has, for the way there, and the dtype where all weights have one."""
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    plain |= {"vocab_size": whole(values, "vocabulary"), **special_ids(tokenizer.metadata)}
    kept = {"config": json.dumps(plain, indent=2) + "\n"}
    dtypes = {tensor.dtype for tensor in checkpoint.tensors.values()}
    if len(dtypes) == 1 and not weights.container:
        kept["dtypes"] = json.dumps({"usual": dtypes.pop()}, separators=(",", ":"))
    return {PREFIX + name: string(text) for name, text in kept.items()}


# --- tokenizer --------------------------------------------------------------------------------------------------------------------


def _tokenizer(folder: Path, architecture: Architecture, rows: int, context: OpenContext) -> TokenizerResult:
    hints = {**architecture.tokenizer, "add_bos_token": True}
    if (folder / TEKKEN).is_file():
        path = folder / TEKKEN
        vocabulary = tekken_vocabulary(path, context.pre_tokenizer)
    else:
        found = _newest_pieces(folder)
        if found is None:
            return TokenizerResult({"tokenizer.ggml.model": string("none")}, (_NO_TOKENIZER,))
        path = found
        vocabulary = sentencepiece_vocabulary(read_sentencepiece(path), path)
    result = read_tokenizer(folder, {}, context, vocab_rows=rows, hints=hints, vocabulary=vocabulary)
    return TokenizerResult(result.metadata, result.notes, {path.name: path, **result.files}, result.found)


def _newest_pieces(folder: Path) -> Path | None:
    """Return the sentencepiece model of the highest version: ``tokenizer.model.v3`` comes before ``tokenizer.model``."""
    found = [(match, item) for item in sorted(folder.iterdir()) if (match := _PIECES.fullmatch(item.name)) and item.is_file()]  # fmt: skip
    return max(found, key=lambda it: int(it[0]["version"] or 0))[1] if found else None
