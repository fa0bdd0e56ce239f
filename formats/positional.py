"""Files read by position: any thread, any offset, no shared cursor and no memory map that a shrinking file could break."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import final

from ..errors import FormatError, MissingFileError, TruncatedError

__all__ = ["PositionalFile"]


@final
class PositionalFile:
    """A regular file open for reading at any offset from any thread.

    Raises MissingFileError where there is no such file, FormatError where the path is a folder, a pipe or a device.

    Attributes:
        path: the file.
        size: its bytes when it was opened.
    """

    __slots__ = ("_file", "path", "size")

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            raise MissingFileError("there is no such file", path=path) from None
        if not stat.S_ISREG(mode):
            raise FormatError("this is no regular file", path=path)
        self._file = path.open("rb", buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size

    def read_into(self, out: bytearray | memoryview, offset: int, tensor: str | None = None) -> None:
        """Fill the C-contiguous ``out`` from byte ``offset`` on.

        Raises TruncatedError (naming ``tensor``, if given) where the file ends before, ValueError where it is closed.
        """
        view = memoryview(out).cast("B")
        done = 0
        while done < len(view):
            count = os.preadv(self._file.fileno(), [view[done:]], offset + done)
            if count == 0:
                raise TruncatedError(
                    f"{len(view)} bytes were to be read from byte {offset}, but the file ends {len(view) - done} too early",
                    path=self.path,
                    tensor=tensor,
                    offset=offset + done,
                    remedy="Download or copy it again.",
                )
            done += count

    def read(self, offset: int, count: int) -> bytes:
        """Return ``count`` bytes from byte ``offset`` on; raises as :meth:`read_into`."""
        out = bytearray(count)
        self.read_into(out, offset)
        return bytes(out)

    def close(self) -> None:
        """Give the descriptor back; closing twice is harmless."""
        self._file.close()
