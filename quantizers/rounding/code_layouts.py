"""Where the codes of a block lie among its bytes, as tables, so that codes can be exchanged while scales stay.

A *unit* is what one code stands for: a weight, or the four weights of a point. A code's bits lie in one to three *pieces*; each is a run of bits of one
byte. What a code means follows from the scales in the rest of the block, and is asked of the encoding's own decoder: blocks whose codes are all the
same give, weight by weight, the value of that code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from ..vectors.kernel import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..vectors.simd import ByteArray, IntArray

__all__ = ["CodeLayout", "code_layout", "write_codes"]

Piece = tuple[int, int, int, int]
"""Byte of the block, its first bit in the byte, its first bit in the code, number of bits."""


@dataclass(frozen=True, eq=False)
class CodeLayout:
    """The codes of one encoding.

    Attributes:
        lowest: least code.
        highest: largest code.
        unit: weights that a code stands for.
        pieces: int32 (units of a block, pieces, 4), see :data:`Piece`. Read-only.
        keep: uint8 (block bytes,): bits that belong to no code. Read-only.
    """

    lowest: int
    highest: int
    unit: int
    pieces: NDArray[np.int32]
    keep: NDArray[np.uint8]


def _nibbles(start: int) -> Callable[[int], Iterator[Piece]]:
    """32 codes in 16 bytes: the first half in the low nibbles."""
    return lambda c: iter([(start + c % 16, c // 16 * 4, 0, 4)])


def _with_fifth(start: int, nibbles: int) -> Callable[[int], Iterator[Piece]]:
    """As :func:`_nibbles`, and a fifth bit each in four bytes from ``start``."""
    return lambda c: iter([(nibbles + c % 16, c // 16 * 4, 0, 4), (start + c // 8, c % 8, 4, 1)])


def _q2_k(c: int) -> Iterator[Piece]:
    half, quarter, place = c // 128, c // 32 % 4, c % 32
    yield 16 + half * 32 + place, 2 * quarter, 0, 2


def _q3_k(c: int) -> Iterator[Piece]:
    half, quarter, place = c // 128, c // 32 % 4, c % 32
    yield 32 + half * 32 + place, 2 * quarter, 0, 2
    yield place, 4 * half + quarter, 2, 1


def _q4_k(c: int) -> Iterator[Piece]:
    yield 16 + c // 64 * 32 + c % 32, c // 32 % 2 * 4, 0, 4


def _q5_k(c: int) -> Iterator[Piece]:
    yield 48 + c // 64 * 32 + c % 32, c // 32 % 2 * 4, 0, 4
    yield 16 + c % 32, c // 32, 4, 1


def _q6_k(c: int) -> Iterator[Piece]:
    half, quarter, place = c // 128, c // 32 % 4, c % 32
    yield half * 64 + quarter % 2 * 32 + place, quarter // 2 * 4, 0, 4
    yield 128 + half * 32 + place, 2 * quarter, 4, 2


def _iq4_xs(c: int) -> Iterator[Piece]:
    yield 8 + c // 32 * 16 + c % 16, c // 16 % 2 * 4, 0, 4


def _iq3_s(c: int) -> Iterator[Piece]:
    """Nine bits for the point, then its four signs."""
    yield 2 + c, 0, 0, 8
    yield 66 + c // 8, c % 8, 8, 1
    yield 74 + c // 2, c % 2 * 4, 9, 4


# name: least and largest code, weights per code, codes and bytes of a block, pieces of a code
_LAYOUTS: dict[str, tuple[int, int, int, int, int, Callable[[int], Iterator[Piece]]]] = {
    "Q4_0": (0, 15, 1, 32, 18, _nibbles(2)),
    "Q4_1": (0, 15, 1, 32, 20, _nibbles(4)),
    "Q5_0": (0, 31, 1, 32, 22, _with_fifth(2, 6)),
    "Q5_1": (0, 31, 1, 32, 24, _with_fifth(4, 8)),
    "Q8_0": (-127, 127, 1, 32, 34, lambda c: iter([(2 + c, 0, 0, 8)])),
    "Q2_K": (0, 3, 1, 256, 84, _q2_k),
    "Q3_K": (0, 7, 1, 256, 110, _q3_k),
    "Q4_K": (0, 15, 1, 256, 144, _q4_k),
    "Q5_K": (0, 31, 1, 256, 176, _q5_k),
    "Q6_K": (0, 63, 1, 256, 210, _q6_k),
    "IQ4_NL": (0, 15, 1, 32, 18, _nibbles(2)),
    "IQ4_XS": (0, 15, 1, 256, 136, _iq4_xs),
    "IQ3_S": (0, 8191, 4, 64, 110, _iq3_s),
}


@cache
def code_layout(name: str) -> CodeLayout | None:
    """Return where an encoding's codes lie, None for one whose codes cannot be exchanged singly."""
    if name not in _LAYOUTS:
        return None
    lowest, highest, unit, units, size, pieces = _LAYOUTS[name]
    table = np.array([list(pieces(c)) for c in range(units)], np.int32)
    keep = np.full(size, 255, np.uint8)
    for byte, shift, _, bits in table.reshape(-1, 4):
        keep[byte] &= 255 ^ ((1 << bits) - 1) << shift
    table.flags.writeable = keep.flags.writeable = False
    return CodeLayout(lowest, highest, unit, table, keep)


@kernel
def _write(codes: IntArray, pieces: IntArray, keep: ByteArray, out: ByteArray) -> None:
    units, parts = pieces.shape[0], pieces.shape[1]
    for row in range(out.shape[0]):
        for block in range(out.shape[1] // keep.size):
            start = block * keep.size
            for byte in range(keep.size):
                out[row, start + byte] &= keep[byte]
            for unit in range(units):
                code = codes[row, block * units + unit]
                for part in range(parts):
                    bits = code >> pieces[unit, part, 2] & (1 << pieces[unit, part, 3]) - 1
                    out[row, start + pieces[unit, part, 0]] |= bits << pieces[unit, part, 1]


def write_codes(codes: NDArray[np.int32], layout: CodeLayout, out: NDArray[np.uint8]) -> None:
    """Put ``codes``, int32 (rows, units), into encoded rows, uint8 (rows, bytes); all other bits stay."""
    _write(np.ascontiguousarray(codes, np.int32), layout.pieces, layout.keep, out)
