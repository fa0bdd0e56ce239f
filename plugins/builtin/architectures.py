"""The architectures described by JSON files in ``formats/architectures``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..hookspecs import hookimpl

if TYPE_CHECKING:
    from ...formats.architectures import Architecture


@hookimpl
def register_architectures(register: Callable[[Architecture], None]) -> None:
    """Add every description that ships with qconv."""
    from ...formats.architectures import built_in_architectures

    for architecture in built_in_architectures():
        register(architecture)
