"""A model in canonical form as Hugging Face has it: names, rows and documents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from ...architectures import whole
from ...base import Model, OpenContext
from ...predictions import without_predictions
from ...strange_keys import note_strange_keys
from ..pooling import POOLING_FILES, pooling_documents
from .configuration import rebuild_configuration
from .family import Family, find_family, invert_tensors
from .generation import rebuild_generation
from .source import Recorded, read_recorded
from .tokenizer import rebuild_tokenizer
from .writer import DOCUMENTS

__all__ = ["family_of", "prepare_for_huggingface"]

_CONFIG, _GENERATION = "config.json", "generation_config.json"


def prepare_for_huggingface(model: Model, context: OpenContext) -> Model:
    """Return ``model`` with its tensors under Hugging Face's names, transforms inverted, and the folder's other files as documents.

    Where the model comes from a Hugging Face folder, tokenizer and template files go over unchanged, unless metadata that they speak of were
    changed since. Raises UnknownArchitectureError, UnmappedTensorError, MissingTensorError, ShapeError or TokenizerError for what
    cannot be expressed.
    """
    model, notes = without_predictions(model)
    recorded = read_recorded(model.metadata)
    family = family_of(model, context)
    tensors = invert_tensors(family, model, recorded)
    config, more = rebuild_configuration(family, model, recorded.config, recorded.same_tokenizer)
    notes += (*note_strange_keys(family.architecture, model.metadata, family.values), *more)
    documents = {_CONFIG: config.encode()}
    beside = _side_documents(model, recorded)
    if beside:
        documents |= beside
    else:
        generation = rebuild_generation(model.metadata, recorded)
        if generation is not None:
            documents[_GENERATION] = generation.encode()
        rebuilt, more = rebuild_tokenizer(model, recorded, whole({"context": 0, **family.values}, "context"))
        documents |= rebuilt
        notes += more
    pooling, more = pooling_documents(model.metadata, model.architecture, whole(family.values, "hidden"))
    documents |= pooling
    notes += more
    return replace(
        model,
        tensors=MappingProxyType(tensors),
        documents=MappingProxyType(documents),
        notes=(*model.notes, *notes),
    )


def family_of(model: Model, context: OpenContext) -> Family:
    """Return the family by which :func:`prepare_for_huggingface` takes a model back; raises as :func:`find_family`."""
    model, _ = without_predictions(model)
    recorded = read_recorded(model.metadata)
    return find_family(model, context.architectures, _object(recorded.config), recorded)


def _object(text: str | None) -> Mapping[str, Any] | None:
    try:
        found = json.loads(text) if text is not None else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _side_documents(model: Model, recorded: Recorded) -> dict[str, bytes]:
    """Return the files that lie beside a Hugging Face source, where they still say the same; else none."""
    if model.format != "huggingface" or not recorded.same_tokenizer:
        return {}
    return {
        name: path.read_bytes()
        for name, path in model.side_files.items()
        if name not in (_CONFIG, *POOLING_FILES) and any(fnmatchcase(name, known) for known in DOCUMENTS)
    }
