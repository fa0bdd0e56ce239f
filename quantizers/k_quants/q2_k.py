"""Q2_K: 2.625 bits per weight, with a scale and a minimum in 4 bits for each 16 weights.

A super-block of 256 weights is sixteen sub-blocks of 16; a weight is ``d * scale * code - dmin * minimum``, codes having 2 bits.

Layout of its 84 bytes. Each half of the super-block is four *quarters* of 32 weights, numbered 0–3:

===========  ========================================================================================================================
0 … 15       scales (low nibble) and minima (high nibble)
16 … 79      codes, 32 bytes for each half: bits 0–1 those of quarter 0, bits 2–3 of quarter 1, and so on
80 … 81      ``d``, float16
82 … 83      ``dmin``, float16
===========  ========================================================================================================================

Objective: the sum of ``w * (x - q)**2`` over a super-block, with ``w``

* ``ggml``: ``abs(x)``; with importance, ``importance * sqrt(8 * mean(x**2 of the super-block) + x**2)``;
* ``plain``: 1;
* ``importance``: the importance, or 1 where there is none.

Search: :mod:`.affine_search`, with 3 as the largest code and 15 as the largest scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import Codec
from ..superblocks import STAGED, SUPERBLOCK, balance, load_group, weigh_by_deviation, weigh_by_magnitude
from ..vectors import simd as v
from ..vectors.kernel import GGML, block_codec, inlined, kernel, scratch
from .affine_search import AFFINE_SCRATCH, DMIN, INVERSE, MINIMUM, OFFSET, SCALE, D, affine_code, affine_search

if TYPE_CHECKING:
    from ..vectors.simd import ByteArray, FloatArray

__all__ = ["codec"]

BLOCK_BYTES = 84
CODES, D_PLACE, DMIN_PLACE = 16, 80, 82
LENGTH, HALF, QUARTER = 16, 128, 32  # weights
TOP, LARGEST_SCALE = 3, 15
SPREAD = 8.0  # share of the mean square in the objective with importance

# by effort: candidates of the real scale (their first and step are relative to TOP), refinements, reach of integer scales
FIRST, STEP, TRIES = (-0.6, -0.8, -1.2), (0.5, 0.4, 0.15), (4, 6, 16)
REFINEMENTS, REACH = (0, 1, 2), (1, 1, 2)


@inlined
def _pack(work: FloatArray, out: ByteArray, start: int) -> None:
    v.store_bytes(out, start, v.to_int(v.load(work, SCALE)) | v.to_int(v.load(work, MINIMUM)) << 4)
    for half in range(2):
        for offset in range(0, QUARTER, LENGTH):
            byte = v.splat_int(0)
            for quarter in range(4):
                place = half * HALF + quarter * QUARTER + offset
                lane = place // LENGTH
                inverse, shift = v.splat(work[INVERSE + lane]), v.splat(work[OFFSET + lane])
                code = v.to_int(affine_code(v.load(work, STAGED + place), inverse, shift, TOP))
                byte |= code << (2 * quarter)
            v.store_bytes(out, start + CODES + half * QUARTER + offset, byte)
    v.store_short(out, start + D_PLACE, v.float_to_half(work[D]))
    v.store_short(out, start + DMIN_PLACE, v.float_to_half(work[DMIN]))


@kernel
def _encode(
    rows: FloatArray, columns: int, importance: FloatArray, effort: int, objective: int, out: ByteArray
) -> None:
    work = scratch(AFFINE_SCRATCH)
    count = rows.size // SUPERBLOCK
    for block in range(count):
        load_group(rows, columns, importance, block, count - 1, LENGTH, work)
        if objective == GGML:
            if importance.size > 0:
                weigh_by_deviation(work, LENGTH, SPREAD)
            else:
                weigh_by_magnitude(work, LENGTH, False)
        balance(work, LENGTH)
        affine_search(
            work,
            LENGTH,
            TOP,
            LARGEST_SCALE,
            FIRST[effort],
            STEP[effort],
            TRIES[effort],
            REFINEMENTS[effort],
            REACH[effort],
            REACH[effort],
        )
        _pack(work, out, block * BLOCK_BYTES)


@kernel
def _decode(data: ByteArray, out: FloatArray) -> None:
    for block in range(data.size // BLOCK_BYTES):
        start = block * BLOCK_BYTES
        d = v.half_to_float(v.load_short(data, start + D_PLACE))
        dmin = v.half_to_float(v.load_short(data, start + DMIN_PLACE))
        packed = v.load_bytes(data, start)
        scales, minima = v.to_float(packed & 15) * d, v.to_float(packed >> 4) * dmin
        for half in range(2):
            for offset in range(0, QUARTER, LENGTH):
                byte = v.load_bytes(data, start + CODES + half * QUARTER + offset)
                for quarter in range(4):
                    place = half * HALF + quarter * QUARTER + offset
                    lane = place // LENGTH
                    scaled = v.to_float(byte >> (2 * quarter) & 3) * v.extract(scales, lane)
                    v.store(out, block * SUPERBLOCK + place, scaled - v.extract(minima, lane))


_CODEC = block_codec(_decode, _encode)


def codec(name: str) -> Codec:
    """Return the codec of ``Q2_K``."""
    return _CODEC
