"""A checkpoint's tensors under canonical names: all names and shapes first, then lazy transforms."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ...errors import MissingTensorError, ModelError, UnmappedTensorError
from ...quantizers.base import Encoding
from ..architectures import Architecture, NameMap, at_layer
from ..base import Tensor
from ..scales import scale_name
from ..stored import CheckpointTensor, lazy_tensor
from .configuration import Values
from .matching import PLUGIN_HINT
from .tensor_scales import transform_scaled

__all__ = ["assemble", "check_names", "dropped_notes", "measured_values"]

_LISTED = 12
_ANY_LAYER = re.compile(r"\.\d+\.")

# parts of tensor names that give away what kind of checkpoint it is, with what to do
_CAUSES: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (".lora_A", ".lora_B", "lora_embedding", "base_model.model."),
        "This looks like a LoRA adapter: merge it into its base model first (peft's merge_and_unload).",
    ),
    (
        (".qweight", ".qzeros", ".g_idx", ".SCB", ".absmax", "quant_map", ".weight_scale", "_scale_inv", ".weight_packed", ".weight_shape"),
        "This is a quantized checkpoint of a kind that qconv does not know, or a damaged one: convert the original BF16 or F16 model.",
    ),
    (
        ("vision_tower", "vision_model", "visual.", "multi_modal_projector", "mm_projector", "audio_tower", "image_newline"),
        "This has a vision or audio tower: convert its text model, saved by itself.",
    ),
    (
        ("layers.0.attention.wq.", "tok_embeddings."),
        "These are Meta's or Mistral's own names: put the model's params.json beside them and take config.json away, or use Hugging Face's form.",
    ),
    ((".experts.", ".router."), "It has a mixture of experts that this architecture does not have."),
    ((".score.", "score.", "classifier."), "It is a classifier, which predicts no next token."),
)  # fmt: skip


def check_names(architecture: Architecture, names: NameMap, folder: Path) -> None:
    """Raise ModelError, UnmappedTensorError or MissingTensorError, each with every name at fault as far as a message bears."""
    if names.ambiguous:
        one, other = names.ambiguous[0]
        raise ModelError(
            f"{one} and {other} are the same tensor of the architecture {architecture.name}",
            path=folder,
            remedy="Remove the files that do not belong to this model.",
        )
    if names.unmapped:
        missing = f", and {_counted(names.missing)} missing ({_list(names.missing)})" if names.missing else ""
        raise UnmappedTensorError(
            f"the architecture {architecture.name} has no place for {_counted(names.unmapped)} ({_list(names.unmapped)}){missing}",
            path=folder,
            remedy=_cause(architecture, names),
        )
    if names.missing:
        raise MissingTensorError(
            f"the architecture {architecture.name} needs {_counted(names.missing)} that the files lack ({_list(names.missing)})",
            path=folder,
            remedy="A weight file is missing or of another model; compare the folder with its source.",
        )


def _cause(architecture: Architecture, names: NameMap) -> str:
    for parts, sentence in _CAUSES:
        if any(part in name for name in names.unmapped for part in parts):
            return sentence
    places = {_ANY_LAYER.sub(".N.", source, count=1) for item in names.mapped for source in item.sources}
    if not names.missing and all(_ANY_LAYER.sub(".N.", name, count=1) in places for name in names.unmapped):
        return "They are those of further layers: restore the number of layers in config.json."
    if not names.mapped:
        usual = architecture.tensors[0].hf[0]
        return f"None of its names is known, so perhaps a prefix is missing or too much: {usual} is expected."
    return f"Perhaps it is a variant of {architecture.name}. {PLUGIN_HINT}"


def _counted(names: Sequence[str]) -> str:
    return "1 tensor" if len(names) == 1 else f"{len(names)} tensors"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f", and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def dropped_notes(names: NameMap) -> tuple[str, ...]:
    """Return one note per reason for which tensors were left out."""
    reasons: dict[str, list[str]] = {}
    for name, reason in names.dropped:
        if reason is not None:
            reasons.setdefault(reason, []).append(name)
    return tuple(
        f"{_counted(found)} ({found[0]}{', …' if len(found) > 1 else ''}): {reason}"
        for reason, found in reasons.items()
    )


def measured_values(
    architecture: Architecture, names: NameMap, tensors: Mapping[str, CheckpointTensor], values: Values
) -> tuple[Values, tuple[str, ...]]:
    """Return the values with those sizes that tensors tell better than the configuration, and a note for each that differed."""
    found = dict(values)
    notes = []
    for parameter in architecture.hyper_parameters:
        if parameter.measured is None:
            continue
        for item in names.mapped:
            if item.entry.hf == (parameter.measured.tensor,):
                shape = tensors[item.sources[0]].shape
                if parameter.measured.axis < len(shape) and shape[parameter.measured.axis] != values.get(
                    parameter.name
                ):
                    found[parameter.name] = shape[parameter.measured.axis]
                    notes.append(
                        f"{parameter.config[0]} is {values.get(parameter.name)} in the configuration, "
                        f"{item.sources[0]} has {found[parameter.name]} rows: the rows count"
                    )
    return found, tuple(notes)


def assemble(
    names: NameMap,
    tensors: Mapping[str, CheckpointTensor],
    values: Values,
    encodings: Mapping[str, Encoding],
    scales: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return canonical names to lazy tensors, in canonical order; raises EncodingError or ModelError for what cannot be presented.

    ``scales`` are those of NVFP4 tensors, by the tensor's name; they come after the tensors that they belong to.
    """
    found: dict[str, Tensor] = {}
    for item in names.mapped:
        sources = [lazy_tensor(tensors[name], encodings) for name in item.sources]
        scope = at_layer(values, item.layer) if item.entry.arguments else values
        arguments = {name: size.evaluate(scope) for name, size in item.entry.arguments.items()}
        results, scale = transform_scaled(item.entry.transform, sources, scales, arguments)
        for name, result in zip(item.gguf, results, strict=True):
            found[name] = replace(result, name=name)
            if scale is not None:
                if any(scale_name(name) in other.gguf for other in names.mapped):
                    raise ModelError(
                        f"{item.sources[0]} has a scale, whose place {scale_name(name)} in GGUF another tensor of the family takes",
                        remedy="Convert the original BF16 model.",
                    )
                found[scale_name(name)] = replace(scale, name=scale_name(name))
    return found
