"""Files that appear whole or not at all: written under a temporary name, flushed to disk, renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..errors import OutputError, OutputExistsError

__all__ = ["refuse_existing", "refuse_foreign", "refuse_occupied", "refuse_source", "sync_folder", "whole_file"]


def refuse_existing(path: Path, force: bool, sources: Sequence[Path] = ()) -> None:
    """Raise OutputError where the folder of ``path`` does not exist, and what :func:`refuse_occupied` and :func:`refuse_source` raise."""
    if not path.parent.is_dir():
        raise OutputError("no such folder", path=path.parent, remedy="Create it first, or choose another output.")
    refuse_source(path, sources)
    refuse_occupied(path, force)


def refuse_source(path: Path, sources: Sequence[Path]) -> None:
    """Raise OutputExistsError where ``path`` is one of ``sources``."""
    if path.exists() and any(source.exists() and path.samefile(source) for source in sources):
        raise OutputExistsError("the output is the input itself", path=path, remedy="Choose another output.")


def refuse_occupied(path: Path, force: bool) -> None:
    """Raise OutputExistsError where ``path`` is no file but a folder, a device or a pipe, or, without ``force``, anything at all."""
    _refuse_what_is_no_file(path)
    if os.path.lexists(path) and not force:
        raise OutputExistsError(
            "the output exists", path=path, remedy="Use --force to replace it, or choose another output."
        )


def refuse_foreign(path: Path, start: bytes) -> None:
    """Refuse to write what begins with ``start`` in place of anything else: of a model, for one, that was named by mistake.

    Raises OutputExistsError, or OutputError where the folder does not exist.
    """
    refuse_existing(path, force=True)
    if not path.exists():
        return
    with path.open("rb") as file:
        if file.read(len(start)) != start:
            raise OutputExistsError(
                "it is another kind of file than the one to be written", path=path, remedy="Choose another name."
            )


def _refuse_what_is_no_file(path: Path) -> None:
    """A rename replaces whatever has the name: were it ``/dev/null``, then for every program of the machine."""
    if path.is_dir():
        raise OutputExistsError("the output is a folder", path=path, remedy="Name a file in it.")
    if path.exists() and not path.is_file():
        raise OutputExistsError(
            "the output is a device, a pipe or a socket", path=path, remedy="Name a file in a folder."
        )


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a binary file that takes the name ``path``, replacing what is there, once the block ends without an exception.

    Otherwise nothing is left behind. Raises OutputExistsError where ``path`` is no file, and OSError as the system does.
    """
    _refuse_what_is_no_file(path)
    temporary = path.with_name(path.name + ".qconv-part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
