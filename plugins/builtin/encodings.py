"""Every encoding that ggml numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..hookspecs import hookimpl

if TYPE_CHECKING:
    from ...quantizers.base import Encoding


@hookimpl
def register_encodings(register: Callable[[Encoding], None]) -> None:
    """Add the catalog."""
    from ...quantizers.catalog import BUILT_IN

    for encoding in BUILT_IN:
        register(encoding)
