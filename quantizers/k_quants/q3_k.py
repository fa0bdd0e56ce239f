"""Q3_K: 3.4375 bits per weight, with a signed 6-bit scale for each 16 weights.

A super-block of 256 weights is sixteen sub-blocks of 16; a weight is ``d * (scale - 32) * (code - 4)``, codes having 3 bits.

Layout of its 110 bytes. Each half of the super-block is four *quarters* of 32 weights, numbered 0–3:

===========  ========================================================================================================================
0 … 31       upper bit of the codes: byte ``i`` those of weight ``i`` of all eight quarters, bit 0 that of the first
32 … 95      low 2 bits, 32 bytes for each half: bits 0–1 those of quarter 0, bits 2–3 of quarter 1, and so on
96 … 107     scales, 6 bits: the low 4 bits of scales 0–7 and 8–15 are the nibbles of bytes 0–7 here; byte ``8 + i`` holds the upper 2
             bits of scales ``i``, ``i + 4``, ``i + 8``, ``i + 12``, the first in bits 0–1
108 … 109    ``d``, float16
===========  ========================================================================================================================

Objective: the sum of ``w * (x - q)**2`` over a super-block, with ``w``

* ``ggml``: ``x**2 + 0.7 * mean(x**2 of the super-block)``; with importance,
  ``importance * sqrt(8 * mean(x**2 of the super-block) + x**2)``;
* ``plain``: 1;
* ``importance``: the importance, or 1 where there is none.

llama.cpp's own weights are ``x**2`` and ``importance * sqrt(2 * mean + x**2)``. The larger constant parts make plain and
importance-weighted errors lower than its, and leave those in its weights lower too.

Search: :mod:`.symmetric_search`, with 4 codes and 32 scales below zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import Codec
from ..superblocks import STAGED, SUPERBLOCK, balance, load_group, weigh_by_deviation, weigh_by_square
from ..vectors import simd as v
from ..vectors.kernel import GGML, block_codec, inlined, kernel, scratch
from .symmetric_search import INVERSE, LENGTH, SCALE, SYMMETRIC_SCRATCH, symmetric_code, symmetric_search

if TYPE_CHECKING:
    from ..vectors.simd import ByteArray, FloatArray, Ints
    from ..vectors.simd_values import Real

__all__ = ["codec"]

BLOCK_BYTES = 110
LOW_BITS, SCALES, D = 32, 96, 108
HALF, QUARTER = 128, 32  # weights
BOTTOM, LOWEST_SCALE = 4, 32
FLOOR, SPREAD = 0.7, 8.0  # shares of the mean square in the objective without and with importance

# by effort: candidates of the real scale (their first and step are relative to BOTTOM), refinements, reach of integer scales
FIRST, STEP, TRIES = (-0.6, -1.0, -2.0), (0.6, 0.4, 0.15), (4, 7, 30)
REFINEMENTS, REACH = (0, 1, 2), (1, 1, 2)


# --- pack ---


@inlined
def _pack_scales(work: FloatArray, out: ByteArray, start: int) -> None:
    for j in range(4):
        upper = 0
        for group in range(4):
            upper |= (int(work[SCALE + j + 4 * group]) + LOWEST_SCALE >> 4) << (2 * group)
        out[start + 8 + j] = upper
    for j in range(8):
        low, high = int(work[SCALE + j]) + LOWEST_SCALE, int(work[SCALE + 8 + j]) + LOWEST_SCALE
        out[start + j] = (low & 15) | (high & 15) << 4


@inlined
def _unpack_scale(data: ByteArray, start: int, j: int) -> int:
    """Return scale ``j``, from -32 to 31."""
    low = int(data[start + j % 8]) >> (4 if j >= 8 else 0) & 15
    upper = int(data[start + 8 + j % 4]) >> (2 * (j // 4)) & 3
    return (low | upper << 4) - LOWEST_SCALE


@inlined
def _codes(work: FloatArray, place: int) -> Ints:
    """Return the codes, 0 to 7, of the sub-block that starts at ``place``."""
    inverse = v.splat(work[INVERSE + place // LENGTH])
    return v.to_int(symmetric_code(v.load(work, STAGED + place), inverse, BOTTOM)) + BOTTOM


@inlined
def _pack(work: FloatArray, d: Real, out: ByteArray, start: int) -> None:
    for offset in range(0, QUARTER, LENGTH):
        upper = v.splat_int(0)
        for half in range(2):
            low = v.splat_int(0)
            for quarter in range(4):
                code = _codes(work, half * HALF + quarter * QUARTER + offset)
                low |= (code & 3) << (2 * quarter)
                upper |= (code >> 2) << (4 * half + quarter)
            v.store_bytes(out, start + LOW_BITS + half * QUARTER + offset, low)
        v.store_bytes(out, start + offset, upper)
    _pack_scales(work, out, start + SCALES)
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
        if objective == GGML:
            if importance.size > 0:
                weigh_by_deviation(work, LENGTH, SPREAD)
            else:
                weigh_by_square(work, LENGTH, FLOOR)
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
        for offset in range(0, QUARTER, LENGTH):
            upper = v.load_bytes(data, start + offset)
            for half in range(2):
                low = v.load_bytes(data, start + LOW_BITS + half * QUARTER + offset)
                for quarter in range(4):
                    place = half * HALF + quarter * QUARTER + offset
                    code = (low >> (2 * quarter) & 3) | (upper >> (4 * half + quarter) & 1) << 2
                    scale = d * _unpack_scale(data, start + SCALES, place // LENGTH)
                    v.store(out, block * SUPERBLOCK + place, v.to_float(code - BOTTOM) * scale)


_CODEC = block_codec(_decode, _encode)


def codec(name: str) -> Codec:
    """Return the codec of ``Q3_K``."""
    return _CODEC
