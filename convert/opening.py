"""From a path to a model, by whichever reader recognises it. Imports nothing that only a conversion needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UnknownFormatError
from ..formats.base import Format, Model
from ..plugins.manager import Registries
from .unrecognised import absent, unrecognised

__all__ = ["detect", "open_model"]


def detect(path: Path, registries: Registries) -> Format:
    """Return the format of ``path``, judged by content; raises MissingFileError or UnknownFormatError."""
    if not path.exists():
        raise absent(path)
    if not path.is_dir() and not path.is_file():  # to open a pipe would wait for whoever writes into it
        raise UnknownFormatError(
            "this is no regular file", path=path, remedy="Copy the model to a disk, and name that."
        )
    found = _recognised(path, registries)
    if found is not None:
        return found
    readable = [name for name, it in registries.formats.items() if it.open is not None]
    raise unrecognised(path, readable, lambda other: _recognised(other, registries) is not None)


def _recognised(path: Path, registries: Registries) -> Format | None:
    return next((candidate for candidate in registries.formats.values() if candidate.detect(path)), None)


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

    Without its weights a folder may be recognised by none: where the vocabulary alone is wanted, the reader ``expected`` is tried.
    """
    try:
        reader = detect(path, registries)
    except UnknownFormatError:
        if expected is None or not (vocabulary_only and path.is_dir()):
            raise
        reader = registries.formats[expected]
    if reader.open is None:
        raise UnknownFormatError(f"{reader.name} files can be written but not read", path=path)
    with reader.open(path, registries.open_context(architecture, pre_tokenizer, vocabulary_only)) as model:
        yield model
