"""Q1_0 and Q2_0: blocks of one float16 scale and codes of one or two bits.

**Layout** (llama.cpp's). The scale ``d`` comes first, then the codes, the first in the lowest bits of the first byte.

* Q1_0, 18 bytes: 128 codes of one bit; 1 is ``d``, 0 is ``-d``.
* Q2_0, 18 bytes: 64 codes of two bits; a code decodes to ``d * (code - 1)``, that is -d, 0, d or 2d. ``d`` may be negative.

**Objective.** The sum of squared errors. For Q1_0 the signs and the mean of the magnitudes minimise it, which is what llama.cpp takes. For
Q2_0 it takes the largest magnitude as ``d`` and so never writes the fourth code, which suits ternary weights; these come back exactly
from the search too, and other weights with half the error.

**Effort.** Q2_0: the number of starts of the search for ``d``, and how often the codes are chosen anew. Q1_0 has nothing to search.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .base import Codec
from .block_search import load_tile, nearest_codes, reciprocal, search_encoder, search_scale
from .vectors import simd as v
from .vectors.kernel import block_codec, inlined, kernel, scratch
from .vectors.simd import LANES

if TYPE_CHECKING:
    from .vectors.simd import ByteArray, FloatArray, Ints

__all__ = ["codec"]

_BYTES = 18  # of either type's block
_Q1_BLOCK, _Q2_BLOCK = 128, 64
_Q2_TILE = _Q2_BLOCK * LANES

# the largest weight's code before clipping, in the order of what a start adds on Gauss, Student, Laplace and uniform weights
_Q2_STARTS = np.array([2.4, 1.4, -2.2, 3.2, 1.8, -2.8, 4.0, 2.8, 2.0, -1.8, 2.2, -3.4], np.float32)
_Q2_EFFORT = ((2, 0), (5, 1), (12, 4))  # starts and refinements of fast, default, best


# --- Q1_0 -----------------------------------------------------------------------------------------------------------------------


@kernel
def _decode_q1_0(data: ByteArray, out: FloatArray) -> None:
    lane = v.lane_indices()
    for block in range(data.size // _BYTES):
        place, start = block * _BYTES, block * _Q1_BLOCK
        scale = v.half_to_float(v.load_short(data, place))
        for byte in range(0, 16, 2):
            positive = v.splat_int(v.load_short(data, place + 2 + byte)) >> lane & 1
            v.store(out, start + 8 * byte, v.select(positive != 0, v.splat(scale), -v.splat(scale)))


@kernel
def _encode_q1_0(
    rows: FloatArray, columns: int, importance: FloatArray, effort: int, objective: int, out: ByteArray
) -> None:
    for block in range(rows.size // _Q1_BLOCK):
        place, start = block * _BYTES, block * _Q1_BLOCK
        total = v.splat(0.0)
        for weight in range(0, _Q1_BLOCK, LANES):
            x = v.load(rows, start + weight)
            # the mean of 128 finite magnitudes is finite, their sum need not be
            total += v.absolute(x) * np.float32(1 / _Q1_BLOCK)
            v.store_short(out, place + 2 + weight // 8, v.lane_bits(x >= 0.0))
        v.store_short(out, place, v.saturating_half(v.lane_sum(total)))


# --- Q2_0 -----------------------------------------------------------------------------------------------------------------------


@inlined
def _interleaved(a: Ints, b: Ints, c: Ints, d: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """Return sixty-four numbers with the second half shuffled between those of the first: 0, 32, 1, 33, ..."""
    return v.interleave_low(a, c), v.interleave_high(a, c), v.interleave_low(b, d), v.interleave_high(b, d)


@kernel
def _decode_q2_0(data: ByteArray, out: FloatArray) -> None:
    for block in range(data.size // _BYTES):
        place, start = block * _BYTES, block * _Q2_BLOCK
        scale = v.half_to_float(v.load_short(data, place))
        packed = v.load_bytes(data, place + 2)
        # codes by their place in a byte; two shuffles bring the four of a byte together
        codes = packed & 3, packed >> 2 & 3, packed >> 4 & 3, packed >> 6
        first, second, third, fourth = _interleaved(*_interleaved(*codes))
        v.store(out, start, v.to_float(first - 1) * scale)
        v.store(out, start + LANES, v.to_float(second - 1) * scale)
        v.store(out, start + 2 * LANES, v.to_float(third - 1) * scale)
        v.store(out, start + 3 * LANES, v.to_float(fourth - 1) * scale)


@kernel
def _encode_q2_0(rows: FloatArray, starts: FloatArray, refinements: int, out: ByteArray) -> None:
    tile, padded = scratch(_Q2_TILE), scratch(_Q2_TILE)
    scales, per_scale = scratch(LANES), scratch(LANES)
    blocks = rows.size // _Q2_BLOCK
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        load_tile(rows, _Q2_BLOCK, first, count, padded, tile)
        scale = search_scale(tile, tile, False, _Q2_BLOCK, (-1.0, 2.0), starts, refinements)
        v.store(scales, 0, scale)
        v.store(per_scale, 0, reciprocal(scale))
        for lane in range(count):
            start, place = (first + lane) * _Q2_BLOCK, (first + lane) * _BYTES
            codes = (
                nearest_codes(rows, start, 0.0, per_scale[lane], 1.0, 0, 3),
                nearest_codes(rows, start + LANES, 0.0, per_scale[lane], 1.0, 0, 3),
                nearest_codes(rows, start + 2 * LANES, 0.0, per_scale[lane], 1.0, 0, 3),
                nearest_codes(rows, start + 3 * LANES, 0.0, per_scale[lane], 1.0, 0, 3),
            )
            # four shuffles of sixty-four numbers put every fourth one into the same vector
            zeroth, first_, second, third = _interleaved(*_interleaved(*_interleaved(*_interleaved(*codes))))
            v.store_short(out, place, v.float_to_half(scales[lane]))
            v.store_bytes(out, place + 2, zeroth & 3 | (first_ & 3) << 2 | (second & 3) << 4 | third << 6)


def codec(name: str) -> Codec:
    """Return the codec of one of this module's encodings."""
    if name == "Q1_0":
        return block_codec(_decode_q1_0, _encode_q1_0)
    return block_codec(_decode_q2_0, search_encoder(_encode_q2_0, _Q2_STARTS, _Q2_EFFORT))
