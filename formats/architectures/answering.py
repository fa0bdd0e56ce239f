"""Which descriptions answer to the architecture that a GGUF file names, under that name or another one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ..metadata import Field
from .base import Architecture, Mark

__all__ = ["answering", "bears"]


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
