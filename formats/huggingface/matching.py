"""Which architecture a configuration asks for; where none answers, which one its tensors resemble."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ...errors import ModelError, UnknownArchitectureError
from ..architectures import Architecture, map_names
from ..base import OpenContext
from ..stored import CheckpointTensor
from .configuration import read_hyper_parameters, text_section
from .shapes import shape_problems

__all__ = ["choose_architecture", "is_headless"]

PLUGIN_HINT = "A plugin adds an architecture by a JSON file: see docs/plugins.md."


def choose_architecture(
    config: Mapping[str, Any], tensors: Mapping[str, CheckpointTensor], context: OpenContext, path: Path
) -> Architecture:
    """Return the user's choice, or the architecture that answers to the class or model type; raises UnknownArchitectureError."""
    known = context.architectures
    if context.architecture is not None:
        if context.architecture in known:
            return known[context.architecture]
        close = get_close_matches(context.architecture.lower(), known, n=1, cutoff=0.4)
        raise UnknownArchitectureError(
            f"no architecture is called {context.architecture!r}",
            path=path,
            remedy=f"{f'Did you mean {close[0]!r}? ' if close else ''}Known: {', '.join(known)}.",
        )
    class_name, model_type = _class_name(config), config.get("model_type")
    answering = [item for item in known.values() if class_name in item.classes]
    if not answering and (class_name is None or not _is_other_task(class_name)):
        answering = [item for item in known.values() if model_type in item.model_types]
    if answering:
        named = [item for item in answering if _is_text_model(item, config)] or answering
        chosen = [item for item in named if _is_chosen(item, config)]
        return (chosen or [item for item in named if not item.chosen_where] or named)[0]
    raise UnknownArchitectureError(
        f"the class {class_name or '(none)'} with model_type {model_type or '(none)'} is not known; "
        f"known architectures: {', '.join(known)}",
        path=path,
        remedy=f"{_nearest(config, tensors, known, path)} {PLUGIN_HINT} To convert it as a known one, pass --as-arch NAME.",
    )


def _is_text_model(architecture: Architecture, config: Mapping[str, Any]) -> bool:
    """Whether it is the architecture of the text model in a configuration of several, whose class says nothing of it."""
    section = config.get(architecture.config_section) if architecture.config_section else None
    return isinstance(section, dict) and section.get("model_type") in architecture.model_types


def _is_chosen(architecture: Architecture, config: Mapping[str, Any]) -> bool:
    """Whether lists of the configuration, or texts of one character per entry, say that it is this one of several architectures that share a class."""
    if not architecture.chosen_where:
        return False
    lists = [(config.get(key), words) for key, words in architecture.chosen_where.items()]
    there = [(found, words) for found, words in lists if isinstance(found, list | str)]
    return bool(there) and all(word in words for found, words in there for word in found)


def is_headless(config: Mapping[str, Any]) -> bool:
    """Whether the class is a bare model (``LlamaModel``), whose checkpoint has no output matrix."""
    name = _class_name(config)
    return name is not None and name.endswith("Model") and "LMHead" not in name


def _is_other_task(class_name: str) -> bool:
    """Whether the class name says that the model classifies, tags or embeds, and so does not predict the next token."""
    return "For" in class_name and not class_name.endswith(("ForCausalLM", "ForConditionalGeneration"))


def _class_name(config: Mapping[str, Any]) -> str | None:
    classes = config.get("architectures")
    return classes[0] if isinstance(classes, list) and classes and isinstance(classes[0], str) else None


def _nearest(
    config: Mapping[str, Any], tensors: Mapping[str, CheckpointTensor], known: Mapping[str, Architecture], path: Path
) -> str:
    """Return a sentence on the architecture whose name map and shapes fit best."""
    best: tuple[int, Architecture, list[str]] | None = None
    fitting = []
    for architecture in known.values():
        try:
            section = text_section(architecture, config, path)
            values = read_hyper_parameters(architecture, section, path)
            names = map_names(architecture, tensors, values)
            differences = []
            if names.unmapped:
                differences.append(f"{len(names.unmapped)} tensors have no place in it, such as {names.unmapped[0]}")
            if names.missing:
                differences.append(f"{len(names.missing)} are missing, such as {names.missing[0]}")
            wrong = shape_problems(names, tensors, values)
            if wrong:
                differences.append(f"{len(wrong)} have other shapes, such as {wrong[0][0]}")
            distance = len(names.unmapped) + len(names.missing) + len(wrong) + len(names.ambiguous)
        except ModelError:
            continue
        if not distance:
            fitting.append(repr(architecture.name))
        if best is None or distance < best[0]:
            best = distance, architecture, differences
    if best is None or 2 * best[0] > len(tensors):
        return "Its tensors resemble none of these."
    if fitting:
        return f"Its tensors fit {' and '.join(fitting)} in names and shapes."
    return f"Nearest by its tensors is {best[1].name!r}, but {' and '.join(best[2])}."
