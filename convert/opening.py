"""From a path to a model, by whichever reader recognises it. Imports nothing that only a conversion needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import MissingFileError, UnknownFormatError
from ..formats.base import Format, Model
from ..plugins.manager import Registries

__all__ = ["detect", "open_model"]


def detect(path: Path, registries: Registries) -> Format:
    """Return the format of ``path``, judged by content; raises MissingFileError or UnknownFormatError."""
    if not path.exists():
        raise MissingFileError("no such file or folder", path=path)
    for candidate in registries.formats.values():
        if candidate.detect(path):
            return candidate
    raise UnknownFormatError(
        "no reader recognises this " + ("folder" if path.is_dir() else "file"),
        path=path,
        remedy="Readable formats: " + ", ".join(registries.formats) + ".",
    )


@contextmanager
def open_model(
    path: Path,
    registries: Registries,
    architecture: str | None = None,
    pre_tokenizer: str | None = None,
    vocabulary_only: bool = False,
    expected: str | None = None,
) -> Iterator[Model]:
    """Open ``path`` with the reader that recognises it, and close it afterwards.

    A folder that none recognises is given to the reader ``expected``, which can say what it lacks.
    """
    try:
        reader = detect(path, registries)
    except UnknownFormatError:
        if expected is None or not path.is_dir():
            raise
        reader = registries.formats[expected]
    if reader.open is None:
        raise UnknownFormatError(f"{reader.name} files can be written but not read", path=path)
    with reader.open(path, registries.open_context(architecture, pre_tokenizer, vocabulary_only)) as model:
        yield model
