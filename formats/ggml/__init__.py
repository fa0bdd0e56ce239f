"""The files of llama.cpp before GGUF: ggml, ggmf and ggjt (versions 1 to 3) are read, ggjt version 3 is written.

Importing this package imports neither numba nor the gguf package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..base import Format, Layout, Model, OpenContext, OutputTensor, WriteOptions
from ..metadata import Field
from .constants import CONTAINERS, FOREIGN_MAGICS, WRITABLE

__all__ = ["FORMAT", "detect_ggml", "lay_out_ggjt", "open_ggml", "prepare_for_ggjt"]


def detect_ggml(path: Path) -> bool:
    """Whether ``path`` is a file that starts with a magic number of the family; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(4) in {*CONTAINERS, *FOREIGN_MAGICS}
    except OSError:
        return False


def open_ggml(path: Path, context: OpenContext) -> Model:
    """Open a file as :func:`reader.open_ggml` does, importing block layouts only now."""
    from .reader import open_ggml as open_file

    return open_file(path, context)


def lay_out_ggjt(
    path: Path, metadata: Mapping[str, Field], tensors: Sequence[OutputTensor], options: WriteOptions
) -> Layout:
    """Lay out a ggjt file as :func:`writer.lay_out_ggjt` does."""
    from .writer import lay_out_ggjt as lay_out

    return lay_out(path, metadata, tensors, options)


def prepare_for_ggjt(model: Model, context: OpenContext | None = None) -> Model:
    """Make a model what ggjt can hold, as :func:`prepare.prepare_for_ggjt` does; nothing depends on the context."""
    from .prepare import prepare_for_ggjt as prepare

    return prepare(model)


FORMAT = Format(
    name="ggml",
    description="llama.cpp's files before GGUF: ggml, ggmf and ggjt are read, ggjt version 3 is written",
    detect=detect_ggml,
    open=open_ggml,
    lay_out=lay_out_ggjt,
    prepare=prepare_for_ggjt,
    encodings=WRITABLE,
    aliases=("ggjt",),
    suffixes=(".ggjt", ".bin"),
)
