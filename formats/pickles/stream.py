"""Bytes of a pickle inside a file, taken in order, and the account of what is made of them."""

from __future__ import annotations

from typing import NoReturn

from ...errors import FormatError, TruncatedError
from ..positional import PositionalFile

__all__ = ["Budget", "PickleStream"]

_CHUNK = 64 << 10
_BUDGET_BASE = 4 << 20
_BUDGET_FACTOR = 8

REMEDY = "Nothing in the file was run. Save the weights alone again, or use the model's safetensors form."


class Budget:
    """Memory that the contents of a file may take: 4 MiB and eight times the file."""

    __slots__ = ("_left", "_limit")

    def __init__(self, file: PositionalFile) -> None:
        self._limit = self._left = _BUDGET_BASE + _BUDGET_FACTOR * file.size

    def spend(self, count: int) -> bool:
        """Take ``count`` bytes off; return whether they were there."""
        self._left -= count
        return self._left >= 0

    @property
    def limit(self) -> int:
        """Bytes at the start."""
        return self._limit


class PickleStream:
    """The bytes ``start`` to ``end`` of a file, read in chunks.

    Attributes:
        position: of the next byte in the file.
    """

    __slots__ = ("_buffer", "_buffer_start", "_end", "_file", "position")

    def __init__(self, file: PositionalFile, start: int, end: int) -> None:
        self._file = file
        self._end = end
        self._buffer = b""
        self._buffer_start = start
        self.position = start

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes; raises TruncatedError where they would pass the end."""
        start = self.position - self._buffer_start
        if start + count > len(self._buffer):
            self._fill(count)
            start = 0
        self.position += count
        return self._buffer[start : start + count]

    def byte(self) -> int:
        """Return the next byte; raises TruncatedError at the end."""
        start = self.position - self._buffer_start
        if start >= len(self._buffer):
            self._fill(1)
            start = 0
        self.position += 1
        return self._buffer[start]

    def number(self, count: int) -> int:
        """Return the next ``count`` bytes as an unsigned little-endian number."""
        return int.from_bytes(self.take(count), "little")

    def line(self, limit: int) -> bytes:
        """Return the bytes before the next line feed, and pass it; raises FormatError where ``limit`` bytes hold none."""
        begin = self.position
        found = bytearray()
        while (value := self.byte()) != 0x0A:
            found.append(value)
            if len(found) > limit:
                self.refuse(f"a name of more than {limit} bytes", begin)
        return bytes(found)

    def refuse(self, problem: str, offset: int | None = None) -> NoReturn:
        """Raise FormatError at ``offset``, or at the next byte."""
        raise FormatError(
            problem, path=self._file.path, offset=self.position if offset is None else offset, remedy=REMEDY
        )

    def _fill(self, count: int) -> None:
        if count > self._end - self.position:
            raise TruncatedError(
                f"the pickle ends {count - (self._end - self.position)} bytes too early",
                path=self._file.path,
                offset=self.position,
                remedy="Download or copy the file again.",
            )
        length = min(max(count, _CHUNK), self._end - self.position)
        self._buffer, self._buffer_start = self._file.read(self.position, length), self.position
