"""The files of llama.cpp before GGUF: ggml, ggmf and ggjt (versions 1 to 3) are read, ggjt version 3 is written.

Importing this package imports neither numba nor the gguf package.
"""

from __future__ import annotations

from pathlib import Path

from ..base import Format
from .constants import CONTAINERS, FOREIGN_MAGICS
from .prepare import prepare_for_ggjt
from .reader import open_ggml
from .writer import lay_out_ggjt

__all__ = ["FORMAT", "detect_ggml", "lay_out_ggjt", "open_ggml", "prepare_for_ggjt"]


def detect_ggml(path: Path) -> bool:
    """Whether ``path`` is a file that starts with a magic number of the family; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(4) in {*CONTAINERS, *FOREIGN_MAGICS}
    except OSError:
        return False


FORMAT = Format(
    name="ggml",
    description="llama.cpp's files before GGUF: ggml, ggmf and ggjt are read, ggjt version 3 is written",
    detect=detect_ggml,
    open=open_ggml,
    lay_out=lay_out_ggjt,
)
