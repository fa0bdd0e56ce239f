"""The formats that qconv reads and writes by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..hookspecs import hookimpl

if TYPE_CHECKING:
    from ...formats.base import Format


@hookimpl
def register_formats(register: Callable[[Format], None]) -> None:
    """Add each format package's ``FORMAT``, in the order in which detection tries them."""
    from ...formats import ggml, gguf, huggingface, meta, mistral

    for package in (gguf, huggingface, meta, mistral, ggml):
        register(package.FORMAT)
