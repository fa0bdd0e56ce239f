"""A registry: names to things of one kind, filled once, read-only outside, in the order of registration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Generic, TypeVar

from ..errors import DuplicateNameError

T = TypeVar("T")

__all__ = ["Registry", "nearest"]


class Registry(Generic[T]):
    """Collects things of one kind under unique names.

    >>> registry = Registry[str]("fruit", str.lower)
    >>> registry.add("Apple", provider="built-in")
    >>> list(registry.view)
    ['apple']
    """

    def __init__(self, kind: str, name: Callable[[T], str]) -> None:
        self.kind = kind
        self._name = name
        self._things: dict[str, T] = {}
        self._providers: dict[str, str] = {}

    def add(self, thing: T, provider: str) -> None:
        """Register ``thing``; raises DuplicateNameError where the name is taken."""
        name = self._name(thing)
        if name in self._things:
            raise DuplicateNameError(
                f"{self.kind} {name!r} is registered by {self._providers[name]} and again by {provider}",
                remedy="Uninstall one of the two, or set QCONV_PLUGINS= to run without third-party plugins.",
            )
        self._things[name] = thing
        self._providers[name] = provider

    @property
    def view(self) -> Mapping[str, T]:
        """Read-only mapping of everything registered."""
        return MappingProxyType(self._things)

    def provider(self, name: str) -> str:
        """Return the plugin that registered ``name``."""
        return self._providers[name]


def nearest(name: str, known: Mapping[str, object]) -> str:
    """Return a sentence with the known names nearest to ``name``, or all where none is near."""
    folded = {key.casefold(): key for key in known}
    close = get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)
    if close:
        return "Nearest: " + ", ".join(folded[key] for key in close) + "."
    return "Known: " + ", ".join(known) + "."
