"""GGUF, llama.cpp's format: versions 1 to 3 are read, in one file or in parts; version 3 is written.

Importing this package imports neither numba nor the gguf package.
"""

from __future__ import annotations

from pathlib import Path

from ..base import Format, Model, OpenContext
from .constants import MAGIC, MAGIC_DURING_EDIT
from .reader import open_gguf
from .verify import VerifyReport, verify_gguf
from .writer import lay_out_gguf

__all__ = ["FORMAT", "VerifyReport", "detect_gguf", "lay_out_gguf", "open_gguf", "prepare_for_gguf", "verify_gguf"]


def detect_gguf(path: Path) -> bool:
    """Whether ``path`` is a file that starts with GGUF's magic number; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) in (MAGIC, MAGIC_DURING_EDIT)
    except OSError:
        return False


def prepare_for_gguf(model: Model, context: OpenContext) -> Model:
    """Add what :func:`prepare.keep_originals` keeps, importing numerics only now; nothing depends on the context."""
    from .prepare import keep_originals

    return keep_originals(model)


FORMAT = Format(
    name="gguf",
    description="llama.cpp's single-file format, versions 1 to 3, split or whole",
    detect=detect_gguf,
    open=open_gguf,
    lay_out=lay_out_gguf,
    prepare=prepare_for_gguf,
    suffixes=(".gguf",),
)
