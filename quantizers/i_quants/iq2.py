"""IQ2_XXS, IQ2_XS and IQ2_S: 2.0625, 2.3125 and 2.5625 bits per weight; eight magnitudes are a point of a codebook, signs are apart.

A super-block of 256 weights has sub-blocks of 32 (IQ2_XXS) or 16. A weight is ``sign * d / 8 * factor * coordinate``: ``d`` is a float16,
``factor`` an odd number from 1 to 31 stored in 4 bits as ``(factor - 1) / 2``. Eight weights in a row take the coordinates (8, 25 or 43) of
one of 256, 512 or 1024 points.

**Layout** (multi-byte numbers are little-endian):

=======  =====  ====================================================================================================================
IQ2_XXS  0      ``d``, float16
66       2      per sub-block 8 bytes: 4 points, and a u32 with the factor in bits 28 … 31 and for each 8 weights 7 bits of signs,
bytes           from bit 0 on. The eighth sign makes the number of negative ones even
IQ2_XS   0      ``d``, float16
74       2      u16 per 8 weights: the point in bits 0 … 8, signs as above in bits 9 … 15
bytes    66     8 bytes: the factors, the even sub-block's in the low nibble
IQ2_S    0      ``d``, float16
82       2      32 bytes: low 8 bits of the points
bytes    34     32 bytes: a bit per weight, set if it is negative
         66     8 bytes: two more bits of each point, the first point's lowest
         74     8 bytes: the factors, the even sub-block's in the low nibble
=======  =====  ====================================================================================================================

**Objective**: the sum of ``w * (x - decoded)**2`` with ``w``

* ``ggml``: ``importance * sqrt(2 * mean(x**2 of the super-block) + x**2)``, as llama.cpp weighs them; in IQ2_S, which does not need importance, the
  same with an importance of 1 where there is none (llama.cpp takes ``mean(x**2) / 4 + x**2`` then);
* ``plain``: 1;
* ``importance``: the importance, or 1 where there is none.

**Search**: :mod:`.codebook_search`. The smaller codebooks try neighbouring factors with exact points.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from ..base import Codec
from ..superblocks import SUPERBLOCK
from ..vectors import simd as v
from ..vectors.kernel import BEST, DEFAULT, FAST, kernel, merged, scratch, scratch_int
from ..vectors.simd import LANES
from .codebook import EXPAND_SCRATCH, complete_signs, expand, load_codebook, load_word, nibble_of_run, pair, store_word
from .codebook_points import PICKS, SIGNS, measure_eight
from .codebook_search import (
    NO_SHIFT,
    UNITS,
    Search,
    codebook_codec,
    factor_code,
    load_weighted,
    room,
    search_scales,
    take_signs,
)
from .codebook_tables import point_tables

if TYPE_CHECKING:
    from ..vectors.simd import ByteArray, FloatArray, IntArray
    from .codebook_tables import PointTables

__all__ = ["codec"]

UNIT, TOP = 0.125, 31
SPREAD = 2  # of the weights of errors
XXS_BYTES, XXS_LENGTH = 66, 32
LENGTH, SUBBLOCKS = 16, 16  # of the other two
XS_BYTES, XS_SCALES = 74, 66
S_BYTES, S_SIGNS, S_HIGH, S_SCALES = 82, 34, 66, 74

CENTRES, EDGES = np.array([7.9, 21.6, 32.3, 47.5], np.float32), (16.5, 11.0)
"""Cells of the rough search: one below the middle of the lowest two coordinates, and means of normally distributed weights in each."""

_BEST = Search(38.0, 6.0, 6, exact_scales=True, fractions=24, reach=1, exact_factors=True, rounds=3)
_SMALL = {FAST: Search(38.0, 8.0, 4), DEFAULT: Search(34.0, 6.0, 6, reach=1, exact_factors=True), BEST: _BEST}
_LARGE = {FAST: Search(40.0, 8.0, 4), DEFAULT: Search(34.0, 4.0, 8), BEST: _BEST}
SEARCHES = {"IQ2_XXS": _SMALL, "IQ2_XS": _SMALL, "IQ2_S": _LARGE}


# --- decode ---------------------------------------------------------------------------------------------------------------------


@kernel
def _decode_xxs(data: ByteArray, words: IntArray, out: FloatArray) -> None:
    work = scratch(EXPAND_SCRATCH)
    both = scratch_int(LANES)
    run = v.lane_indices()
    for block in range(data.size // XXS_BYTES):
        start = block * XXS_BYTES
        v.store(both, 0, v.load_words(data, start + 2))
        index = v.gather_int(both, run & 14) >> (run & 1) * 16
        packed = v.gather_int(both, run | 1)
        signs = packed >> (run & 1) * 14
        negative = complete_signs(signs & 127) | complete_signs(signs >> 7 & 127) << 8
        scale = v.half_to_float(v.load_short(data, start)) * np.float32(0.25)
        scales = (v.to_float(v.logical_shift(packed, 28)) + 0.5) * scale
        points = pair(words, index & 255) + pair(words, index >> 8 & 255)
        expand(points, negative, scales, work, out, block * SUPERBLOCK)


@kernel
def _decode_xs(data: ByteArray, words: IntArray, out: FloatArray) -> None:
    work = scratch(EXPAND_SCRATCH)
    for block in range(data.size // XS_BYTES):
        start = block * XS_BYTES
        packed = v.load_words(data, start + 2)
        negative = complete_signs(packed >> 9 & 127) | complete_signs(v.logical_shift(packed, 25)) << 8
        codes = nibble_of_run(load_word(data, start + XS_SCALES), load_word(data, start + XS_SCALES + 4))
        scales = (v.to_float(codes) + 0.5) * (v.half_to_float(v.load_short(data, start)) * np.float32(0.25))
        points = pair(words, packed & 511) + pair(words, packed >> 16 & 511)
        expand(points, negative, scales, work, out, block * SUPERBLOCK)


@kernel
def _decode_s(data: ByteArray, words: IntArray, out: FloatArray) -> None:
    work = scratch(EXPAND_SCRATCH)
    for block in range(data.size // S_BYTES):
        start = block * S_BYTES
        low = v.load_shorts(data, start + 2)
        negative = v.load_shorts(data, start + S_SIGNS)
        high = nibble_of_run(load_word(data, start + S_HIGH), load_word(data, start + S_HIGH + 4))
        codes = nibble_of_run(load_word(data, start + S_SCALES), load_word(data, start + S_SCALES + 4))
        scales = (v.to_float(codes) + 0.5) * (v.half_to_float(v.load_short(data, start)) * np.float32(0.25))
        points = pair(words, low & 255 | (high & 3) << 8) + pair(words, low >> 8 | (high & 12) << 6)
        expand(points, negative, scales, work, out, block * SUPERBLOCK)


# --- pack -----------------------------------------------------------------------------------------------------------------------


@merged
def _pack_factors(work: FloatArray, out: ByteArray, start: int) -> None:
    for j in range(0, SUBBLOCKS, 2):
        out[start + j // 2] = factor_code(work, j) | factor_code(work, j + 1) << 4


@merged
def _pack_xxs(work: FloatArray, numbers: IntArray, lane: int, out: ByteArray, start: int) -> None:
    """Write the super-block whose first sub-block is in ``lane``."""
    v.store_short(out, start, v.float_to_half(work[UNITS + lane]))
    for j in range(SUPERBLOCK // XXS_LENGTH):
        packed = factor_code(work, lane + j) << 28
        for group in range(4):
            place = group * v.LANES + lane + j
            out[start + 2 + 8 * j + group] = numbers[PICKS + place]
            packed |= (numbers[SIGNS + place] & 127) << 7 * group
        store_word(out, start + 6 + 8 * j, packed)


@merged
def _pack_xs(work: FloatArray, numbers: IntArray, out: ByteArray, start: int) -> None:
    v.store_short(out, start, v.float_to_half(work[UNITS]))
    for j in range(SUBBLOCKS):
        for group in range(2):
            place = group * v.LANES + j
            packed = numbers[PICKS + place] | (numbers[SIGNS + place] & 127) << 9
            v.store_short(out, start + 2 + 4 * j + 2 * group, packed)
    _pack_factors(work, out, start + XS_SCALES)


@merged
def _pack_s(work: FloatArray, numbers: IntArray, out: ByteArray, start: int) -> None:
    v.store_short(out, start, v.float_to_half(work[UNITS]))
    for j in range(0, SUBBLOCKS, 2):
        high = 0
        for k in range(4):
            place = (k & 1) * v.LANES + j + (k >> 1)
            out[start + 2 + 2 * j + k] = numbers[PICKS + place]
            out[start + S_SIGNS + 2 * j + k] = numbers[SIGNS + place]
            high |= numbers[PICKS + place] >> 8 << 2 * k
        out[start + S_HIGH + j // 2] = high
    _pack_factors(work, out, start + S_SCALES)


# --- encode ---------------------------------------------------------------------------------------------------------------------


@kernel
def _encode_xxs(
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
        load_weighted(rows, columns, importance, objective, SPREAD, first, XXS_LENGTH, work)
        take_signs(work, numbers, XXS_LENGTH, True)
        search_scales(work, numbers, tables, measure_eight, XXS_LENGTH, UNIT, TOP, NO_SHIFT, objective, search)
        for block in range(first, min(first + 2, count)):
            _pack_xxs(work, numbers, (block - first) * 8, out, block * XXS_BYTES)


@kernel
def _encode_xs(
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
        load_weighted(rows, columns, importance, objective, SPREAD, block, LENGTH, work)
        take_signs(work, numbers, LENGTH, True)
        search_scales(work, numbers, tables, measure_eight, LENGTH, UNIT, TOP, NO_SHIFT, objective, search)
        _pack_xs(work, numbers, out, block * XS_BYTES)


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
    for block in range(rows.size // SUPERBLOCK):
        load_weighted(rows, columns, importance, objective, SPREAD, block, LENGTH, work)
        take_signs(work, numbers, LENGTH, False)
        search_scales(work, numbers, tables, measure_eight, LENGTH, UNIT, TOP, NO_SHIFT, objective, search)
        _pack_s(work, numbers, out, block * S_BYTES)


@cache
def codec(name: str) -> Codec:
    """Return the codec of IQ2_XXS, IQ2_XS or IQ2_S."""
    decode_kernel, encode_kernel = {
        "IQ2_XXS": (_decode_xxs, _encode_xxs),
        "IQ2_XS": (_decode_xs, _encode_xs),
        "IQ2_S": (_decode_s, _encode_s),
    }[name]
    book = load_codebook(name)
    tables = partial(point_tables, book, book.points, CENTRES, EDGES)
    return codebook_codec(book.words, decode_kernel, encode_kernel, SEARCHES[name], tables)
