"""Files that one process at a time holds: a second one is told so at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ..errors import BusyError, OutputError

try:
    import fcntl
except ImportError:  # Windows: the open temporary file itself keeps a second writer out
    fcntl = None  # type: ignore[assignment]  # the module is absent there

__all__ = ["lock_path", "open_locked", "sole_writer"]


def open_locked(path: Path) -> IO[str]:
    """Open a text file for reading and appending, made if need be, that no other process holds.

    Raises BusyError where one does, OutputError where the folder is not writable.

    Closing the file releases it, and so does the end of the process, however it comes. The owner may delete the file before closing it.
    """
    while True:
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"nothing can be written into this folder ({error.strerror})",
                path=path.parent,
                remedy="Choose another one for the output, or change its permissions.",
            ) from error
        try:
            if fcntl is not None:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise BusyError(
                "another process is writing this output", path=path, remedy="Wait for it, or choose another output."
            ) from error
        try:
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                file.seek(0)
                return file
        except FileNotFoundError:
            pass  # the owner finished and removed it between our open and our lock: open a new one
        file.close()


def lock_path(output: Path) -> Path:
    """Return the name of the file that :func:`sole_writer` holds."""
    return output.with_name(output.name + ".qconv-lock")


@contextmanager
def sole_writer(output: Path) -> Iterator[None]:
    """Keep other processes from writing ``output`` meanwhile; raises BusyError where one does already, OutputError where the folder is not writable."""
    path = lock_path(output)
    with open_locked(path):
        try:
            yield
        finally:
            with suppress(PermissionError):  # Windows keeps what is open
                path.unlink(missing_ok=True)
