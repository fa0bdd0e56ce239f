"""IQ3_XXS and IQ3_S: 3.0625 and 3.4375 bits per weight; four magnitudes are a point of a codebook, signs are apart.

A super-block of 256 weights is eight sub-blocks of 32. A weight is ``sign * d * unit * factor * coordinate``: ``d`` is a float16, ``factor`` an
odd number from 1 to 31 stored in 4 bits as ``(factor - 1) / 2``, ``unit`` is 1/4 in IQ3_XXS and 1 in IQ3_S. Four weights in a row take
the coordinates of one of 256 points (4, 12, ... 62) or of 512 points (1, 3, ... 15).

**Layout** (multi-byte numbers are little-endian):

=======  =====  ====================================================================================================================
IQ3_XXS  0      ``d``, float16
98       2      64 bytes: points
bytes    66     u32 per sub-block: its factor in bits 28 … 31, and for each 8 weights 7 bits of signs, from bit 0 on. The eighth
                sign makes the number of negative ones even
IQ3_S    0      ``d``, float16
110      2      64 bytes: low 8 bits of the points
bytes    66     8 bytes: their ninth bits, the first point's lowest
         74     32 bytes: a bit per weight, set if it is negative
         106    4 bytes: the factors, the even sub-block's in the low nibble
=======  =====  ====================================================================================================================

**Objective**: the sum of ``w * (x - decoded)**2`` with ``w``

* ``ggml``: ``importance * sqrt(2 * mean(x**2 of the super-block) + x**2)``, as llama.cpp weighs them; without importance the same with an
  importance of 1 (llama.cpp takes ``x**2`` then, and gets a plain error that is a quarter higher);
* ``plain``: 1;
* ``importance``: the importance, or 1 where there is none.

**Search**: :mod:`.codebook_search`. IQ3_XXS, which has few points, tries neighbouring factors with exact points.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from ..base import Codec
from ..superblocks import SUPERBLOCK
from ..vectors import simd as v
from ..vectors.kernel import BEST, DEFAULT, FAST, kernel, merged, scratch
from .codebook import (
    EXPAND_SCRATCH,
    complete_signs,
    expand,
    load_codebook,
    load_word,
    nibble_of_run,
    run_of_pair,
    store_word,
)
from .codebook_points import PICKS, SIGNS, measure_four
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

LENGTH, SUBBLOCKS = 32, 8
SPREAD = 2  # of the weights of errors
TOP = 31
XXS_BYTES, XXS_SIGNS, XXS_UNIT = 98, 66, 0.25
S_BYTES, S_HIGH, S_SIGNS, S_SCALES, S_UNIT = 110, 66, 74, 106, 1.0

CELLS = {"IQ3_XXS": 4.0, "IQ3_S": 1.0}
"""Width of the sixteen cells of the rough search: half of the distance between coordinates."""

SEARCHES = {
    "IQ3_XXS": {
        FAST: Search(48.0, 6.0, 5),
        DEFAULT: Search(48.0, 6.0, 6, reach=1, exact_factors=True),
        BEST: Search(44.0, 4.0, 9, exact_scales=True, fractions=24, reach=1, exact_factors=True, rounds=3),
    },
    "IQ3_S": {
        FAST: Search(12.0, 1.5, 5),
        DEFAULT: Search(11.0, 1.0, 8),
        BEST: Search(11.0, 1.0, 9, exact_scales=True, fractions=24, reach=1, exact_factors=True, rounds=3),
    },
}


# --- decode ---------------------------------------------------------------------------------------------------------------------


@kernel
def _decode_xxs(data: ByteArray, words: IntArray, out: FloatArray) -> None:
    work = scratch(EXPAND_SCRATCH)
    run = v.lane_indices()
    for block in range(data.size // XXS_BYTES):
        start = block * XXS_BYTES
        index = v.load_words(data, start + 2)
        # sixteen words that end with the block: those of the signs are the upper eight
        packed = run_of_pair(v.load_words(data, start + XXS_BYTES - 64))
        signs = packed >> (run & 1) * 14
        negative = complete_signs(signs & 127) | complete_signs(signs >> 7 & 127) << 8
        scale = v.half_to_float(v.load_short(data, start)) * np.float32(2 * XXS_UNIT)
        scales = (v.to_float(v.logical_shift(packed, 28)) + 0.5) * scale
        points = (
            v.gather_int(words, index & 255),
            v.gather_int(words, index >> 8 & 255),
            v.gather_int(words, index >> 16 & 255),
            v.gather_int(words, v.logical_shift(index, 24)),
        )
        expand(points, negative, scales, work, out, block * SUPERBLOCK)


@kernel
def _decode_s(data: ByteArray, words: IntArray, out: FloatArray) -> None:
    work = scratch(EXPAND_SCRATCH)
    run = v.lane_indices()
    for block in range(data.size // S_BYTES):
        start = block * S_BYTES
        low = v.load_words(data, start + 2)
        high = nibble_of_run(load_word(data, start + S_HIGH), load_word(data, start + S_HIGH + 4))
        negative = v.load_shorts(data, start + S_SIGNS)
        codes = v.splat_int(load_word(data, start + S_SCALES)) >> (run >> 1) * 4 & 15
        scales = v.to_float(2 * codes + 1) * v.half_to_float(v.load_short(data, start))
        points = (
            v.gather_int(words, low & 255 | (high & 1) << 8),
            v.gather_int(words, low >> 8 & 255 | (high & 2) << 7),
            v.gather_int(words, low >> 16 & 255 | (high & 4) << 6),
            v.gather_int(words, v.logical_shift(low, 24) | (high & 8) << 5),
        )
        expand(points, negative, scales, work, out, block * SUPERBLOCK)


# --- pack -----------------------------------------------------------------------------------------------------------------------


@merged
def _pack_xxs(work: FloatArray, numbers: IntArray, lane: int, out: ByteArray, start: int) -> None:
    """Write the super-block whose first sub-block is in ``lane``."""
    v.store_short(out, start, v.float_to_half(work[UNITS + lane]))
    for j in range(SUBBLOCKS):
        for group in range(8):
            out[start + 2 + 8 * j + group] = numbers[PICKS + group * v.LANES + lane + j]
        packed = factor_code(work, lane + j) << 28
        for group in range(4):
            packed |= (numbers[SIGNS + group * v.LANES + lane + j] & 127) << 7 * group
        store_word(out, start + XXS_SIGNS + 4 * j, packed)


@merged
def _pack_s(work: FloatArray, numbers: IntArray, lane: int, out: ByteArray, start: int) -> None:
    """Write the super-block whose first sub-block is in ``lane``."""
    v.store_short(out, start, v.float_to_half(work[UNITS + lane]))
    for j in range(SUBBLOCKS):
        ninth = 0
        for group in range(8):
            pick = numbers[PICKS + group * v.LANES + lane + j]
            out[start + 2 + 8 * j + group] = pick
            ninth |= pick >> 8 << group
        out[start + S_HIGH + j] = ninth
        for group in range(4):
            out[start + S_SIGNS + 4 * j + group] = numbers[SIGNS + group * v.LANES + lane + j]
    for j in range(0, SUBBLOCKS, 2):
        out[start + S_SCALES + j // 2] = factor_code(work, lane + j) | factor_code(work, lane + j + 1) << 4


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
        load_weighted(rows, columns, importance, objective, SPREAD, first, LENGTH, work)
        take_signs(work, numbers, LENGTH, True)
        search_scales(work, numbers, tables, measure_four, LENGTH, XXS_UNIT, TOP, NO_SHIFT, objective, search)
        for block in range(first, min(first + 2, count)):
            _pack_xxs(work, numbers, (block - first) * SUBBLOCKS, out, block * XXS_BYTES)


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
        load_weighted(rows, columns, importance, objective, SPREAD, first, LENGTH, work)
        take_signs(work, numbers, LENGTH, False)
        search_scales(work, numbers, tables, measure_four, LENGTH, S_UNIT, TOP, NO_SHIFT, objective, search)
        for block in range(first, min(first + 2, count)):
            _pack_s(work, numbers, (block - first) * SUBBLOCKS, out, block * S_BYTES)


@cache
def codec(name: str) -> Codec:
    """Return the codec of IQ3_XXS or IQ3_S."""
    decode_kernel, encode_kernel = {"IQ3_XXS": (_decode_xxs, _encode_xxs), "IQ3_S": (_decode_s, _encode_s)}[name]
    book, width = load_codebook(name), CELLS[name]
    centres = (np.arange(16, dtype=np.float32) + np.float32(0.5)) * np.float32(width)
    tables = partial(point_tables, book, book.points, centres, (width, width))
    return codebook_codec(book.words, decode_kernel, encode_kernel, SEARCHES[name], tables)
