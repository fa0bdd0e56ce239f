"""The plugin manager: finds plugins, calls each hook once through a typed function, and gives back filled registries.

Built-ins load first, in the order of ``builtin.BUILT_IN``; then the entry points of group ``qconv``, sorted by distribution and name, so
that two machines with the same packages behave alike. A third-party plugin that cannot be imported, or whose hook raises,
is reported as a warning that names it, and the rest works. ``QCONV_PLUGINS`` restricts third-party code: unset loads every installed
plugin, an empty value loads none, otherwise it is a comma-separated list of distributions.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, TypeVar

import pluggy

from ..errors import PluginError
from . import hookspecs
from .builtin import BUILT_IN
from .installed import may_have_entry_points
from .registry import Registry

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    import typer

    from ..formats.architectures import Architecture
    from ..formats.base import Format, OpenContext
    from ..quantizers.base import Encoding

__all__ = ["PluginInfo", "PluginManager", "PluginWarning", "Registries", "load_plugins"]

T = TypeVar("T")


class PluginWarning(UserWarning):
    """A third-party plugin could not be used; the message names it."""


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One loaded or failed plugin, as ``qconv plugins`` lists it.

    Attributes:
        name: entry-point name, or the dotted name of a built-in.
        distribution: installed distribution, ``qconv`` for built-ins.
        version: the distribution's version.
        hooks: names of the hooks that it implements.
        error: why it was left out, or None.
    """

    name: str
    distribution: str
    version: str
    hooks: tuple[str, ...]
    error: str | None = None


@dataclass(frozen=True)
class Registries:
    """Everything that plugins registered, read-only, by name."""

    encodings: Mapping[str, Encoding]
    formats: Mapping[str, Format]
    architectures: Mapping[str, Architecture]
    providers: Mapping[str, Mapping[str, str]]

    def open_context(
        self, architecture: str | None = None, pre_tokenizer: str | None = None, vocabulary_only: bool = False
    ) -> OpenContext:
        """Return what a reader needs, with the user's choices."""
        from ..formats.base import OpenContext

        return OpenContext(self.encodings, self.architectures, architecture, pre_tokenizer, vocabulary_only)


class _OnFirstUse(Mapping[str, T]):
    """A mapping that is made when somebody looks into it: reading every architecture takes longer than many a command."""

    def __init__(self, make: Callable[[], Mapping[str, T]]) -> None:
        self._made = cache(make)

    def __getitem__(self, name: str) -> T:
        return self._made()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made())

    def __len__(self) -> int:
        return len(self._made())


def _providers(registry: Registry[T]) -> Mapping[str, str]:
    return {name: registry.provider(name) for name in registry.view}


class PluginManager:
    """Holds the loaded plugins; the only place that calls hooks."""

    def __init__(self) -> None:
        self._pluggy = pluggy.PluginManager(hookspecs.GROUP)
        self._pluggy.add_hookspecs(hookspecs)
        self._info: dict[str, PluginInfo] = {}
        for name, plugin in BUILT_IN:
            self.add(plugin, PluginInfo(name, "qconv", "", ()))

    @property
    def info(self) -> tuple[PluginInfo, ...]:
        """Every plugin in load order, failed ones included."""
        from .. import __version__  # slow to find, and only this asks for it

        return tuple(
            replace(it, version=__version__) if it.distribution == "qconv" else it for it in self._info.values()
        )

    def add(self, plugin: object, info: PluginInfo) -> None:
        """Register one plugin object; raises PluginError where it has no hook or a hook of another signature."""
        try:
            self._pluggy.register(plugin, name=info.name)
        except pluggy.PluginValidationError as error:
            self._pluggy.unregister(name=info.name)
            raise PluginError(
                f"plugin {info.name} of {info.distribution}: {error}",
                remedy="See docs/plugins.md for the hooks and their arguments.",
            ) from error
        hooks = tuple(caller.name for caller in self._pluggy.get_hookcallers(plugin) or ())
        self._info[info.name] = PluginInfo(info.name, info.distribution, info.version, hooks, info.error)

    def add_entry_point(self, entry: EntryPoint) -> None:
        """Import and register one third-party plugin; a failure becomes a PluginWarning and an entry in ``info``."""
        distribution = entry.dist.name if entry.dist else "unknown"
        version = entry.dist.version if entry.dist else "unknown"
        info = PluginInfo(entry.name, distribution, version, ())
        try:
            if entry.name in self._info:
                raise PluginError(f"the name is taken by a plugin of {self._info[entry.name].distribution}")
            self.add(entry.load(), info)
        except Exception as error:  # noqa: BLE001 - third-party code may raise anything, and must not stop the user
            self._fail(info, error)

    def _fail(self, info: PluginInfo, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        key = info.name if info.name not in self._info else f"{info.distribution}:{info.name}"
        self._info[key] = PluginInfo(info.name, info.distribution, info.version, info.hooks, reason)
        warnings.warn(f"plugin {info.name} of {info.distribution} is left out ({reason})", PluginWarning, stacklevel=3)

    def fill(self, hook: str, registry: Registry[T]) -> Registry[T]:
        """Call ``hook`` of every plugin with a ``register`` callback that adds to ``registry``.

        A name registered twice raises DuplicateNameError; any other failure of a third-party plugin is a PluginWarning.
        """
        self._call(hook, lambda provider: {"register": lambda thing: registry.add(thing, provider)})
        return registry

    def register_commands(self, app: typer.Typer) -> None:
        """Let every plugin add its commands to ``app``."""
        self._call("register_commands", lambda provider: {"app": app})

    def _call(self, hook: str, arguments: Callable[[str], Mapping[str, object]]) -> None:
        # one plugin at a time, in load order: pluggy's own call runs last-registered first and stops at an exception
        for info in list(self._info.values()):
            if hook not in info.hooks:
                continue
            plugin = self._pluggy.get_plugin(info.name)
            others = [other for other in self._pluggy.get_plugins() if other is not plugin]
            caller = self._pluggy.subset_hook_caller(hook, others)
            try:
                caller(**arguments(f"{info.name} ({info.distribution})"))
            except PluginError:
                raise
            except Exception as error:  # as above; a fault of our own is raised again
                if info.distribution == "qconv":
                    raise
                self._fail(info, error)

    def registries(self) -> Registries:
        """Call the hooks and return what they registered; that of architectures is called when one is looked for."""
        encodings: Registry[Encoding] = self.fill("register_encodings", Registry("encoding", attrgetter("name")))
        formats: Registry[Format] = self.fill("register_formats", Registry("format", attrgetter("name")))

        @cache
        def architectures() -> Registry[Architecture]:
            return self.fill("register_architectures", Registry("architecture", attrgetter("name")))

        return Registries(
            encodings.view,
            formats.view,
            _OnFirstUse(lambda: architectures().view),
            {
                "encoding": _providers(encodings),
                "format": _providers(formats),
                "architecture": _OnFirstUse(lambda: _providers(architectures())),
            },
        )


def load_plugins(allowed: str | None = None) -> PluginManager:
    """Return a manager with the built-ins and the third-party plugins that ``allowed`` admits.

    ``allowed`` has the form of the environment variable ``QCONV_PLUGINS``, which is its default.
    """
    manager = PluginManager()
    choice = os.environ.get("QCONV_PLUGINS") if allowed is None else allowed
    names = None if choice is None else {name.strip().casefold() for name in choice.split(",") if name.strip()}
    if (names is not None and not names) or not may_have_entry_points(hookspecs.GROUP):
        return manager
    from importlib.metadata import entry_points

    found = sorted(entry_points(group=hookspecs.GROUP), key=lambda it: (it.dist.name if it.dist else "", it.name))
    for entry in found:
        if names is None or (entry.dist is not None and entry.dist.name.casefold() in names):
            manager.add_entry_point(entry)
    return manager
