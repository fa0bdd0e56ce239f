"""String arrays that stay bytes until an element is asked for.

A vocabulary of 128,000 tokens and 280,000 merges is skipped over in a few hundredths of a second, and decoded only where somebody looks.
Strings need not be valid UTF-8 (a damaged vocabulary, byte fragments): invalid bytes become lone surrogates (Python's
``surrogateescape``), and encoding a string back with :func:`encode_text` gives the same bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import final, overload

__all__ = ["LazyStrings", "decode_text", "encode_text"]


def decode_text(data: bytes | bytearray) -> str:
    """Decode UTF-8; each invalid byte becomes one lone surrogate."""
    return data.decode("utf-8", "surrogateescape")


def encode_text(text: str) -> bytes:
    """Encode what :func:`decode_text` returned; raises UnicodeEncodeError for lone surrogates of any other origin."""
    return text.encode("utf-8", "surrogateescape")


@final
class LazyStrings(Sequence[str]):
    """The strings of one array inside a header.

    Args:
        buffer: the header, from the file's first byte on; every string lies wholly inside it.
        starts: position of each string's length field.
        end: position after the last string.
        length: layout of a length field.
        strip_nul: whether a trailing NUL is no part of a string.
    """

    __slots__ = ("_buffer", "_end", "_length", "_starts", "_strip_nul")

    def __init__(self, buffer: bytearray, starts: array[int], end: int, length: Struct, strip_nul: bool) -> None:
        self._buffer = buffer
        self._starts = starts
        self._end = end
        self._length = length
        self._strip_nul = strip_nul

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(map(self._decode, self._starts[index]))
        return self._decode(self._starts[index])

    def __iter__(self) -> Iterator[str]:
        return map(self._decode, self._starts)

    def __repr__(self) -> str:
        return f"<{len(self)} strings>"

    def _decode(self, position: int) -> str:
        start = position + self._length.size
        stop = start + self._length.unpack_from(self._buffer, position)[0]
        if self._strip_nul and stop > start and self._buffer[stop - 1] == 0:
            stop -= 1
        return decode_text(self._buffer[start:stop])

    def version_3_bytes(self) -> bytes | None:
        """All strings as little-endian version 3 stores them, or None where this file stores them otherwise."""
        if self._length.format != "<Q" or self._strip_nul:
            return None
        return bytes(self._buffer[self._starts[0] : self._end]) if self._starts else b""
