"""The hooks: what a plugin may add to qconv.

A plugin is a module (or object) in the entry-point group ``qconv`` with functions of these names, each marked with
``qconv.plugins.hookimpl``. Each receives a ``register`` callback and calls it once per thing that it adds; names are unique over all
plugins. Hooks run once per process, built-ins first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import typer

    from ..formats.architectures import Architecture
    from ..formats.base import Format
    from ..quantizers.base import Encoding

GROUP = "qconv"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)
"""Marks a function of a plugin as the implementation of the hook of its name."""


@hookspec
def register_encodings(register: Callable[[Encoding], None]) -> None:
    """Add encodings: ways to hold the weights of a tensor in bytes."""


@hookspec
def register_formats(register: Callable[[Format], None]) -> None:
    """Add file formats: a reader, a writer, or both."""


@hookspec
def register_architectures(register: Callable[[Architecture], None]) -> None:
    """Add model architectures: name maps and hyper-parameters, usually loaded from a JSON file."""


@hookspec
def register_commands(app: typer.Typer) -> None:
    """Add commands to the command line; import what they need inside the command, so that ``qconv --help`` stays fast."""
