"""A bounded walk over a header: bytes are fetched as they are needed, and no length is believed before it is checked.

A length or count is compared with the bytes that remain in the file before anything of its size is allocated, so a lying header costs
no more memory than a small multiple of its file.
"""

from __future__ import annotations

from array import array
from pathlib import Path
from struct import Struct
from struct import error as StructError
from typing import Protocol, final

import numpy as np
from numpy.typing import NDArray

from ...errors import FormatError, TruncatedError
from .strings import LazyStrings

__all__ = ["Cursor", "HeaderSource"]

_FIRST_FETCH = 2**16
_LARGEST_FETCH = 2**22


class HeaderSource(Protocol):
    """What a header can be read from: a file (:class:`qconv.formats.positional.PositionalFile`), or one that is yet to be."""

    @property
    def path(self) -> Path:
        """Name of the file."""

    @property
    def size(self) -> int:
        """Bytes of the file."""

    def read(self, offset: int, count: int) -> bytes:
        """Return ``count`` bytes from byte ``offset`` on, which are there."""


@final
class Cursor:
    """Position in a file's header, and the number layout of the file.

    Attributes:
        position: bytes consumed.
        strip_nul: whether strings are stored with a trailing NUL, as llama.cpp's own writer did until 2023-08-27. The first
            string of the file decides; only versions 1 and 2 are asked (:meth:`set_layout`).
    """

    __slots__ = ("_buffer", "_count", "_file", "_may_end_in_nul", "_order", "position", "strip_nul")

    def __init__(self, file: HeaderSource) -> None:
        self._file = file
        self._buffer = bytearray()
        self._order = "<"
        self._count = Struct("<Q")
        self._may_end_in_nul = False
        self.position = 0
        self.strip_nul = False

    def set_layout(self, version: int, order: str) -> None:
        """Read lengths as ``version`` stores them, in byte order ``<`` or ``>``."""
        self._order = order
        self._count = Struct(order + ("I" if version == 1 else "Q"))
        self._may_end_in_nul = version <= 2

    @property
    def remaining(self) -> int:
        """Bytes between the position and the end of the file."""
        return self._file.size - self.position

    def fail(self, message: str, tensor: str | None = None, remedy: str | None = None) -> FormatError:
        """Return the error that says ``message`` about this position."""
        return FormatError(message, path=self._file.path, offset=self.position, tensor=tensor, remedy=remedy)

    @property
    def length_width(self) -> int:
        """Bytes of a length, count or dimension."""
        return self._count.size

    @property
    def length_code(self) -> str:
        """Letter of a length, count or dimension in the struct module."""
        return "I" if self._count.size == 4 else "Q"

    def take(self, count: int, what: str) -> bytearray:
        """Consume ``count`` bytes; raises TruncatedError where the file has fewer."""
        self._fetch(self.position + count, what)
        self.position += count
        return self._buffer[self.position - count : self.position]

    def number(self, code: str, what: str) -> int | float:
        """Consume one number, ``code`` being its letter in the struct module."""
        layout = Struct(self._order + code)
        value: int | float = layout.unpack(self.take(layout.size, what))[0]
        return value

    def integer(self, code: str, what: str) -> int:
        """Consume one integer."""
        return int(self.number(code, what))

    def length(self, what: str, cap: int, least_bytes: int = 1) -> int:
        """Consume a count of things that take at least ``least_bytes`` each.

        Raises FormatError where it is above ``cap``, TruncatedError where so many do not fit in the rest of the file.
        """
        start = self.position
        found: int = self._count.unpack(self.take(self._count.size, what))[0]
        if found > self.remaining // least_bytes:
            raise TruncatedError(
                f"{what} is {found}, but only {self.remaining} bytes follow",
                path=self._file.path,
                offset=start,
                remedy="Download or copy it again.",
            )
        if found > cap:
            self.position = start
            raise self.fail(f"{what} is {found}, more than the {cap} that qconv accepts")
        return found

    def string(self, what: str, cap: int) -> bytearray:
        """Consume one string; a trailing NUL is dropped in files that store one."""
        data = self.take(self.length(f"the length of {what}", cap), what)
        if self._may_end_in_nul:
            self.strip_nul = data.endswith(b"\0")
            self._may_end_in_nul = False
        if self.strip_nul and data.endswith(b"\0"):
            del data[-1]
        return data

    def name(self, what: str, cap: int) -> str:
        """Consume a key or tensor name: not empty, valid UTF-8."""
        start = self.position
        data = self.string(what, cap)
        try:
            found = data.decode()
        except UnicodeDecodeError:
            found = ""
        if not found:
            self.position = start
            raise self.fail(f"{what} is {'no valid UTF-8' if data else 'empty'}")
        return found

    def strings(self, count: int, what: str, cap: int) -> LazyStrings:
        """Consume ``count`` strings without decoding them."""
        unpack, width = self._count.unpack_from, self._count.size
        buffer, position = self._buffer, self.position
        starts = array("Q")
        append = starts.append
        while len(starts) < count:
            try:
                (size,) = unpack(buffer, position)
            except StructError:
                self._fetch(position + width, what)
                continue
            if size > cap:
                self.position = position
                raise self.fail(
                    f"element {len(starts)} of {what} has {size} bytes, more than the {cap} that qconv accepts"
                )
            append(position)
            position += width + size
        self._fetch(position, what)
        self.position = position
        return LazyStrings(buffer, starts, position, self._count, self.strip_nul)

    def numbers(self, count: int, dtype: str, what: str) -> NDArray[np.generic]:
        """Consume ``count`` numbers of NumPy type ``dtype`` (without byte order); returns them in native order."""
        stored = np.dtype(self._order + dtype)
        data = self.take(count * stored.itemsize, what)
        return np.frombuffer(data, stored).astype(stored.newbyteorder("="), copy=False)

    def _fetch(self, end: int, what: str) -> None:
        """Have the bytes up to ``end`` in the buffer."""
        if end > self._file.size:
            raise TruncatedError(
                f"the file ends inside {what}",
                path=self._file.path,
                offset=self._file.size,
                remedy="Download or copy it again.",
            )
        have = len(self._buffer)
        if end <= have:
            return
        ahead = min(max(have, _FIRST_FETCH), _LARGEST_FETCH)
        stop = min(max(end, have + ahead), self._file.size)
        self._buffer += self._file.read(have, stop - have)
