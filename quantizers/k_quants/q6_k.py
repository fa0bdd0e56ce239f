"""Q6_K: 6.5625 bits per weight, with a signed 8-bit scale for each 16 weights.

A super-block of 256 weights is sixteen sub-blocks of 16; a weight is ``d * scale * (code - 32)``, codes having 6 bits.

Layout of its 210 bytes. Each half of the super-block is four *quarters* of 32 weights, numbered 0–3:

===========  ========================================================================================================================
0 … 127      low 4 bits of the codes, 64 bytes for each half: in the first 32 quarter 0 (low nibble) and 2 (high nibble), then 1 and 3
128 … 191    upper 2 bits, 32 bytes for each half: bits 0–1 those of quarter 0, bits 2–3 of quarter 1, and so on
192 … 207    scales, int8
208 … 209    ``d``, float16
===========  ========================================================================================================================

Objective: the sum of ``w * (x - q)**2`` over a super-block, with ``w``

* ``ggml``: ``x**2``; with importance, the importance;
* ``plain``: 1;
* ``importance``: the importance, or 1 where there is none.

Search: :mod:`.symmetric_search`, with 32 codes and 128 scales below zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import Codec
from ..superblocks import STAGED, SUPERBLOCK, balance, load_group, weigh_by_square
from ..vectors import simd as v
from ..vectors.kernel import GGML, block_codec, inlined, kernel, scratch
from .symmetric_search import INVERSE, LENGTH, SCALE, SYMMETRIC_SCRATCH, symmetric_code, symmetric_search

if TYPE_CHECKING:
    from ..vectors.simd import ByteArray, FloatArray, Ints
    from ..vectors.simd_values import Real

__all__ = ["codec"]

BLOCK_BYTES = 210
UPPER_BITS, SCALES, D = 128, 192, 208
HALF, QUARTER = 128, 32  # weights
BOTTOM, LOWEST_SCALE = 32, 128

# by effort: candidates of the real scale (their first and step are relative to BOTTOM), refinements, reach of integer scales
FIRST, STEP, TRIES = (-1.6, -2.8, -6.0), (0.8, 0.7, 0.3), (3, 6, 24)
REFINEMENTS, REACH = (0, 1, 2), (1, 1, 2)


# --- pack ---


@inlined
def _codes(work: FloatArray, place: int) -> Ints:
    """Return the codes, 0 to 63, of the sub-block that starts at ``place``."""
    inverse = v.splat(work[INVERSE + place // LENGTH])
    return v.to_int(symmetric_code(v.load(work, STAGED + place), inverse, BOTTOM)) + BOTTOM


@inlined
def _pack(work: FloatArray, d: Real, out: ByteArray, start: int) -> None:
    for half in range(2):
        for offset in range(0, QUARTER, LENGTH):
            place = half * HALF + offset
            quarter0 = _codes(work, place)
            quarter1 = _codes(work, place + QUARTER)
            quarter2 = _codes(work, place + 2 * QUARTER)
            quarter3 = _codes(work, place + 3 * QUARTER)
            low = start + half * 2 * QUARTER + offset
            v.store_bytes(out, low, (quarter0 & 15) | (quarter2 & 15) << 4)
            v.store_bytes(out, low + QUARTER, (quarter1 & 15) | (quarter3 & 15) << 4)
            upper = quarter0 >> 4 | (quarter1 >> 4) << 2 | (quarter2 >> 4) << 4 | (quarter3 >> 4) << 6
            v.store_bytes(out, start + UPPER_BITS + half * QUARTER + offset, upper)
    v.store_bytes(out, start + SCALES, v.to_int(v.load(work, SCALE)))
    v.store_short(out, start + D, v.float_to_half(d))


# --- encode and decode ---


@kernel
def _encode(
    rows: FloatArray, columns: int, importance: FloatArray, effort: int, objective: int, out: ByteArray
) -> None:
    work = scratch(SYMMETRIC_SCRATCH)
    count = rows.size // SUPERBLOCK
    for block in range(count):
        load_group(rows, columns, importance, block, count - 1, LENGTH, work)
        if objective == GGML and importance.size == 0:
            weigh_by_square(work, LENGTH, 0.0)
        balance(work, LENGTH)
        d = symmetric_search(
            work,
            BOTTOM,
            LOWEST_SCALE,
            FIRST[effort],
            STEP[effort],
            TRIES[effort],
            REFINEMENTS[effort],
            REACH[effort],
        )
        _pack(work, d, out, block * BLOCK_BYTES)


@kernel
def _decode(data: ByteArray, out: FloatArray) -> None:
    for block in range(data.size // BLOCK_BYTES):
        start = block * BLOCK_BYTES
        d = v.half_to_float(v.load_short(data, start + D))
        scales = v.to_float(v.load_signed_bytes(data, start + SCALES)) * d
        for half in range(2):
            for offset in range(0, QUARTER, LENGTH):
                low = v.load_bytes(data, start + half * 2 * QUARTER + offset)
                next_low = v.load_bytes(data, start + half * 2 * QUARTER + QUARTER + offset)
                upper = v.load_bytes(data, start + UPPER_BITS + half * QUARTER + offset)
                quarters = (
                    low & 15 | (upper & 3) << 4,
                    next_low & 15 | (upper >> 2 & 3) << 4,
                    low >> 4 | (upper >> 4 & 3) << 4,
                    next_low >> 4 | (upper >> 6) << 4,
                )
                for quarter in range(4):
                    place = half * HALF + quarter * QUARTER + offset
                    scale = v.extract(scales, place // LENGTH)
                    v.store(out, block * SUPERBLOCK + place, v.to_float(quarters[quarter] - BOTTOM) * scale)


_CODEC = block_codec(_decode, _encode)


def codec(name: str) -> Codec:
    """Return the codec of ``Q6_K``."""
    return _CODEC
