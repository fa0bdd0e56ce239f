"""Which descriptions answer to the architecture that a GGUF file names, under that name or another one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from ...errors import UnknownArchitectureError
from ..metadata import Field
from .base import Architecture, Mark

__all__ = ["answering", "bears", "unknown_architecture"]

# architectures of files that are parts of models, and what to do
_PARTS = {
    "clip": "This is the vision or audio part of a model (mmproj): name the file of its text model.",
    "imatrix": "This is an importance matrix: give it to --imatrix.",
    "control_vector": "This is a control vector: name the model that it is for.",
}


def answering(architectures: Iterable[Architecture], name: str, metadata: Mapping[str, Field]) -> list[Architecture]:
    """Return the descriptions for ``general.architecture`` being ``name``, those first whose own name it is.

    One that answers to it as to an alias is there only where the metadata bear the alias's mark, and reads the keys of that name.
    """
    known = tuple(architectures)
    others = [
        replace(it, gguf=name, mark=alias.mark, aliases=())
        for it in known
        for alias in it.aliases
        if alias.gguf == name and bears(metadata, name, alias.mark)
    ]
    return [*(it for it in known if it.gguf == name), *others]


def bears(metadata: Mapping[str, Field], name: str, mark: Mark) -> bool:
    """Whether the metadata of the GGUF architecture ``name`` bear a mark."""
    field = metadata.get(f"{name}.{mark.key}")
    value = None if field is None else field.value
    return isinstance(value, int) and value >= mark.at_least


def unknown_architecture(
    problem: str, name: str, architectures: Iterable[Architecture], path: Path
) -> UnknownArchitectureError:
    """Return the error for a GGUF architecture that no description answers to."""
    known = ", ".join(sorted({it.gguf for it in architectures}))
    usual = f"Known: {known}. A plugin adds an architecture by a JSON file: see docs/plugins.md."
    return UnknownArchitectureError(problem, path=path, remedy=_PARTS.get(name, usual))
