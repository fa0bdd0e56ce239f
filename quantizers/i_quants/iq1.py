"""IQ1_S and IQ1_M: 1.5625 and 1.75 bits per weight; eight weights are a shifted point of a codebook with coordinates -1, 0 and 1.

A super-block of 256 weights has sub-blocks of 32 (IQ1_S) or 16 (IQ1_M). A weight is ``d * factor * (coordinate + shift)``: ``d`` is a float16,
``factor`` an odd number from 1 to 15 stored in 3 bits as ``(factor - 1) / 2``, and the shift 1/8 or, where its bit is set, -1/8: one for a
sub-block in IQ1_S, one for each eight weights in IQ1_M. Eight weights in a row take the coordinates of one of 2048 points.

**Layout** (multi-byte numbers are little-endian):

=======  =====  ====================================================================================================================
IQ1_S    0      ``d``, float16
50       2      32 bytes: low 8 bits of the points
bytes    34     u16 per sub-block: three more bits of its four points from bit 0 on, the factor in bits 12 … 14, the shift in bit 15
IQ1_M    0      32 bytes: low 8 bits of the points
56       32     byte per sub-block: three more bits of a point and its shift, in the low nibble for the first
bytes    48     four u16, each with four factors from bit 0 on, and in bits 12 … 15 a nibble of ``d``, float16, the lowest first
=======  =====  ====================================================================================================================

**Objective**: the sum of ``w * (x - decoded)**2`` with ``w``

* ``ggml``: ``importance * sqrt(2 * mean(x**2 of the super-block) + x**2)``, as llama.cpp weighs them;
* ``plain``: 1;
* ``importance``: the importance.

**Search**: :mod:`.codebook_search`, in eighths: coordinates -8, 0 and 8, shifted by one. Real scales are tried with both shifts.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from ..base import Codec
from ..superblocks import SUPERBLOCK
from ..vectors import simd as v
from ..vectors.kernel import BEST, DEFAULT, FAST, kernel, merged, scratch
from .codebook import EXPAND_SCRATCH, expand, load_codebook, load_word, pair, run_of_pair
from .codebook_points import PICKS, measure_eight, measure_shifted
from .codebook_search import (
    LANE_SHIFT,
    NO_SHIFT,
    UNITS,
    Search,
    codebook_codec,
    factor_code,
    load_weighted,
    room,
    search_scales,
)
from .codebook_tables import point_tables

if TYPE_CHECKING:
    from ..vectors.simd import ByteArray, FloatArray, IntArray
    from .codebook_tables import PointTables

__all__ = ["codec"]

POINTS = 2048
UNIT, TOP = 0.125, 15
SPREAD = 2  # of the weights of errors
S_BYTES, S_HIGH, S_LENGTH = 50, 34, 32
M_BYTES, M_HIGH, M_SCALES, M_LENGTH = 56, 32, 48, 16

CENTRES, EDGES = np.array([-8.9, -2.4, 2.4, 8.9], np.float32), (-5.0, 5.0)
"""Cells of the rough search, without shift: means and boundaries that suit normally distributed weights."""

_BEST = Search(8.0, 2.0, 6, exact_scales=True, fractions=24, reach=1, exact_factors=True, rounds=3)
SEARCHES = {
    "IQ1_S": {FAST: Search(10.0, 5.0, 2), DEFAULT: Search(9.0, 4.0, 3), BEST: _BEST},
    "IQ1_M": {FAST: Search(12.0, 1.0, 1), DEFAULT: Search(10.0, 4.0, 2, fractions=8), BEST: _BEST},
}


# --- decode ---------------------------------------------------------------------------------------------------------------------


@kernel
def _decode_s(data: ByteArray, words: IntArray, out: FloatArray) -> None:
    work = scratch(EXPAND_SCRATCH)
    run = v.lane_indices()
    for block in range(data.size // S_BYTES):
        start = block * S_BYTES
        low = v.load_shorts(data, start + 2)
        # a load of sixteen shorts that ends with the block has its last eight in the upper lanes
        packed = run_of_pair(v.load_shorts(data, start + S_BYTES - 32))
        high = packed >> (run & 1) * 6
        lowered = (packed >> 15) << 11
        scale = v.half_to_float(v.load_short(data, start)) * np.float32(0.125)
        scales = v.to_float((packed >> 12 & 7) * 2 + 1) * scale
        points = pair(words, low & 255 | (high & 7) << 8 | lowered) + pair(words, low >> 8 | (high & 56) << 5 | lowered)
        expand(points, v.splat_int(0), scales, work, out, block * SUPERBLOCK)


@kernel
def _decode_m(data: ByteArray, words: IntArray, out: FloatArray) -> None:
    work = scratch(EXPAND_SCRATCH)
    run = v.lane_indices()
    for block in range(data.size // M_BYTES):
        start = block * M_BYTES
        low = v.load_shorts(data, start)
        high = v.load_bytes(data, start + M_HIGH)
        first, second = load_word(data, start + M_SCALES), load_word(data, start + M_SCALES + 4)
        half = first >> 12 & 15 | first >> 24 & 240 | second >> 4 & 3840 | second >> 16 & 61440
        codes = v.select(run < 8, v.splat_int(first), v.splat_int(second)) >> (run >> 2 & 1) * 16 + (run & 3) * 3 & 7
        scales = v.to_float(codes * 2 + 1) * (v.half_to_float(half) * np.float32(0.125))
        points = pair(words, low & 255 | (high & 15) << 8) + pair(words, low >> 8 | (high & 240) << 4)
        expand(points, v.splat_int(0), scales, work, out, block * SUPERBLOCK)


# --- pack -----------------------------------------------------------------------------------------------------------------------


@merged
def _pack_s(work: FloatArray, numbers: IntArray, lane: int, out: ByteArray, start: int) -> None:
    """Write the super-block whose first sub-block is in ``lane``."""
    v.store_short(out, start, v.float_to_half(work[UNITS + lane]))
    for j in range(SUPERBLOCK // S_LENGTH):
        packed = factor_code(work, lane + j) << 12 | numbers[PICKS + lane + j] >> 11 << 15
        for group in range(4):
            pick = numbers[PICKS + group * v.LANES + lane + j]
            out[start + 2 + 4 * j + group] = pick
            packed |= (pick >> 8 & 7) << 3 * group
        v.store_short(out, start + S_HIGH + 2 * j, packed)


@merged
def _pack_m(work: FloatArray, numbers: IntArray, out: ByteArray, start: int) -> None:
    for j in range(SUPERBLOCK // M_LENGTH):
        first, second = numbers[PICKS + j], numbers[PICKS + v.LANES + j]
        out[start + 2 * j] = first
        out[start + 2 * j + 1] = second
        out[start + M_HIGH + j] = first >> 8 | second >> 8 << 4
    half = v.float_to_half(work[UNITS])
    for j in range(4):
        packed = (half >> 4 * j & 15) << 12
        for k in range(4):
            packed |= factor_code(work, 4 * j + k) << 3 * k
        v.store_short(out, start + M_SCALES + 2 * j, packed)


# --- encode ---------------------------------------------------------------------------------------------------------------------


@kernel
def _encode_s(
    rows: FloatArray,
    columns: int,
    importance: FloatArray,
    objective: int,
    search: Search,
    tables: PointTables,
    out: ByteArray,
) -> None:
    work, numbers = room()
    count = rows.size // SUPERBLOCK
    for first in range(0, count, 2):
        load_weighted(rows, columns, importance, objective, SPREAD, first, S_LENGTH, work)
        search_scales(work, numbers, tables, measure_eight, S_LENGTH, UNIT, TOP, LANE_SHIFT, objective, search)
        for block in range(first, min(first + 2, count)):
            _pack_s(work, numbers, (block - first) * 8, out, block * S_BYTES)


@kernel
def _encode_m(
    rows: FloatArray,
    columns: int,
    importance: FloatArray,
    objective: int,
    search: Search,
    tables: PointTables,
    out: ByteArray,
) -> None:
    work, numbers = room()
    for block in range(rows.size // SUPERBLOCK):
        load_weighted(rows, columns, importance, objective, SPREAD, block, M_LENGTH, work)
        # the shift of each eight weights is chosen where their point is
        search_scales(work, numbers, tables, measure_shifted, M_LENGTH, UNIT, TOP, NO_SHIFT, objective, search)
        _pack_m(work, numbers, out, block * M_BYTES)


@cache
def codec(name: str) -> Codec:
    """Return the codec of IQ1_S or IQ1_M."""
    decode_kernel, encode_kernel = {"IQ1_S": (_decode_s, _encode_s), "IQ1_M": (_decode_m, _encode_m)}[name]
    book = load_codebook(name)
    tables = partial(point_tables, book, book.points[:POINTS] - 1, CENTRES, EDGES)
    return codebook_codec(book.words, decode_kernel, encode_kernel, SEARCHES[name], tables)
