"""Files read by position: any thread, any offset, no shared cursor and no memory map that a shrinking file could break."""

from __future__ import annotations

import errno
import os
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from ..errors import FormatError, MissingFileError, TruncatedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ContiguousRows", "PositionalFile"]

_SEEK_LOCK = threading.Lock()
_CANNOT_COPY = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, errno.EPERM}


@final
@dataclass(frozen=True, slots=True)
class ContiguousRows:
    """A tensor's ``read`` where its rows lie one after another in a file, so that a copy can be left to the system.

    Attributes:
        file: the open file.
        offset: position of the first row.
        row_bytes: bytes of a row.
        rows: number of rows.
        tensor: name in the file, for messages.
    """

    file: PositionalFile
    offset: int
    row_bytes: int
    rows: int
    tensor: str

    def __call__(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return uint8 (stop - start, row_bytes); raises TruncatedError where the file has become shorter."""
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"rows {start} to {stop} of tensor {self.tensor}, which has {self.rows}")
        out = np.empty((stop - start, self.row_bytes), np.uint8)
        if out.size:  # a view of nothing cannot be cast to bytes
            self.file.read_into(out.data, self.offset + start * self.row_bytes, self.tensor)
        return out


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
        except (FileNotFoundError, NotADirectoryError):
            raise MissingFileError("there is no such file", path=path) from None
        if not stat.S_ISREG(mode):
            what = "a folder, no regular file" if stat.S_ISDIR(mode) else "no regular file"
            raise FormatError(f"this is {what}", path=path, remedy="Name the file itself.")
        try:
            self._file = path.open("rb", buffering=0)
        except PermissionError:
            raise FormatError("you may not read this file", path=path, remedy="Change its permissions.") from None
        self.size = os.fstat(self._file.fileno()).st_size

    def read_into(self, out: bytearray | memoryview, offset: int, tensor: str | None = None) -> None:
        """Fill the C-contiguous ``out`` from byte ``offset`` on.

        Raises TruncatedError (naming ``tensor``, if given) where the file ends before, ValueError where it is closed.
        """
        view = memoryview(out).cast("B")
        done = 0
        while done < len(view):
            count = self._read_once(view[done:], offset + done)
            if count == 0:
                raise TruncatedError(
                    f"{len(view)} bytes were to be read from byte {offset}, but the file ends {len(view) - done} too early",
                    path=self.path,
                    tensor=tensor,
                    offset=offset + done,
                    remedy="Download or copy it again.",
                )
            done += count

    def _read_once(self, view: memoryview, offset: int) -> int:
        """Read what the system gives at once; return the number of bytes, 0 at the end of the file."""
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [view], offset)
        with _SEEK_LOCK:  # Windows: a seek and a read that no other thread may come between
            self._file.seek(offset)
            return self._file.readinto(view) or 0

    def read(self, offset: int, count: int) -> bytes:
        """Return ``count`` bytes from byte ``offset`` on; raises as :meth:`read_into`."""
        out = bytearray(count)
        self.read_into(out, offset)
        return bytes(out)

    def copy_into(self, descriptor: int, target: int, offset: int, count: int) -> bool:
        """Have the system copy bytes ``offset`` on to byte ``target`` of another file; return whether it did.

        False where it cannot (another file system, no such call) or the file ends before; what is then in the target is undefined.
        """
        if not hasattr(os, "copy_file_range"):
            return False
        done = 0
        try:
            while done < count:
                moved = os.copy_file_range(self._file.fileno(), descriptor, count - done, offset + done, target + done)
                if moved == 0:
                    return False
                done += moved
        except OSError as error:
            if error.errno in _CANNOT_COPY:
                return False
            raise
        return True

    def close(self) -> None:
        """Give the descriptor back; closing twice is harmless."""
        self._file.close()
