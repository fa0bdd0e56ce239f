"""A family's description in Mistral's own names; the table is ``names.json``.

The description of :mod:`..architectures` has Hugging Face's names, and their order of rows. Mistral's weights rotate adjacent pairs of dimensions, as
GGUF's do, so that no rows are permuted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...errors import MissingTensorError, UnmappedTensorError
from ..architectures import Architecture, NameMap
from ..architectures.base import Dropped, HyperParameter, TensorMap

__all__ = ["check_native_names", "in_native_form"]

_LISTED = 8
_PERMUTED = "permute_rotary"

# parts of tensor names that give away what kind of checkpoint it is, with what to do
_CAUSES: tuple[tuple[tuple[str, ...], str], ...] = (
    ((".lora_A", ".lora_B", "lora"), "It holds an adapter: merge it into its base model first."),
    (("whisper", "audio"), "It has an audio encoder: convert its text model, saved by itself."),
    (("eagle",), "It is a draft model for speculative decoding, which reads what another model computes."),
    (("model.layers.", "lm_head."), "These are Hugging Face's names: convert the folder with its config.json."),
    (("_scale", "_packed", ".qscale"), "It is quantized in a way that qconv does not know: convert the original BF16 checkpoint."),
    ((".mixer.",), "It is a state-space model, such as Codestral Mamba, of which qconv has no description."),
)  # fmt: skip


def in_native_form(architecture: Architecture) -> Architecture:
    """Return the description with Mistral's tensor names and order of rows; tensors that this form has no name for are left out."""
    table = _table()
    return replace(
        architecture,
        prefixes=MappingProxyType({}),
        hyper_parameters=tuple(_measured(parameter) for parameter in architecture.hyper_parameters),
        tensors=tuple(renamed for entry in architecture.tensors for renamed in _renamed(entry)),
        dropped=tuple(Dropped(pattern, table["reason"]) for pattern in table["dropped"]),
    )


def _renamed(entry: TensorMap) -> Iterator[TensorMap]:
    """Yield the entry once for each of the names that the form has had, the later ones as alternatives."""
    known = [_table()["names"].get(name, []) for name in entry.hf]
    transform, arguments = entry.transform, entry.arguments
    if transform == _PERMUTED:
        transform, arguments = "copy", MappingProxyType({})
    for number in range(min(map(len, known))):
        yield replace(
            entry,
            hf=tuple(names[number] for names in known),
            transform=transform,
            arguments=arguments,
            required=number == 0,
        )


def _measured(parameter: HyperParameter) -> HyperParameter:
    if parameter.measured is None:
        return parameter
    name = _table()["names"][parameter.measured.tensor][0]
    return replace(parameter, measured=replace(parameter.measured, tensor=name))


def check_native_names(names: NameMap, path: Path) -> None:
    """Raise UnmappedTensorError or MissingTensorError where a checkpoint's names are not those that ``params.json`` asks for."""
    if names.unmapped:
        cause = next((text for parts, text in _CAUSES if any(part in name for name in names.unmapped for part in parts)), None)  # fmt: skip
        raise UnmappedTensorError(
            f"{_counted(names.unmapped)} of the checkpoint have no place in the model that params.json describes",
            path=path,
            tensor=names.unmapped[0],
            remedy=cause or "Compare params.json with the checkpoint: it may be of another model.",
        )
    if names.missing:
        raise MissingTensorError(
            f"{_counted(names.missing)} that params.json asks for are not in the checkpoint",
            path=path,
            tensor=names.missing[0],
            remedy="A weight file is missing or of another model; compare the folder with its source.",
        )


def _counted(names: Sequence[str]) -> str:
    shown = ", ".join(ascii(name)[1:-1][:100] for name in names[:_LISTED])
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)} {'tensor' if len(names) == 1 else 'tensors'} ({shown}{more})"


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(files(__package__).joinpath("names.json").read_text(encoding="utf-8"))
    return table
