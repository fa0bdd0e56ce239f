"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: blocks of 32 weights with one float16 scale, and in the ``_1`` types a float16 minimum.

**Layout** (ggml's; multi-byte numbers are little-endian). Code ``i`` is that of weight ``i`` of the block.

=====  =====  ==============================================================  ==========================
type   bytes  fields                                                          weight
=====  =====  ==============================================================  ==========================
Q4_0   18     d: half, nibbles[16]                                            d * (code - 8)
Q4_1   20     d: half, m: half, nibbles[16]                                   d * code + m
Q5_0   22     d: half, fifth bits: u32, nibbles[16]                           d * (code - 16)
Q5_1   24     d: half, m: half, fifth bits: u32, nibbles[16]                  d * code + m
Q8_0   34     d: half, codes: int8[32]                                        d * code
=====  =====  ==============================================================  ==========================

Nibble ``i`` holds the lower four bits of code ``i`` below those of code ``i + 16``; bit ``i`` of the fifth bits is bit 4 of code ``i``.

**Objective.** The sum of ``w * (x - decoded)**2`` over a block, where ``w`` is

* without importance: 1, whatever ``EncodeOptions.objective`` says (llama.cpp rounds to nearest then, which weights nothing);
* ``ggml``: ``importance * sqrt(2 * mean square of the row + x**2)``, as llama.cpp weights the k-quants. It takes the mean square once for the
  types of this module; twice gives lower errors in importance alone, by 0.1 to 0.5 % more than a better search does;
* ``importance``: the importance alone; ``plain``: 1.

Q8_0 takes no importance, as in llama.cpp. Its codes end at -127: kernels of ggml negate them, which -128 does not survive.

**Effort.** ``fast`` tries few starts of the search and refines nothing, ``default`` about twice as many, ``best`` all of the tables
below, and refines four times. With importance more starts pay off, because the largest weight then matters less than its neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from .base import Codec
from .block_search import (
    Efforts,
    load_tile,
    load_weights,
    nearest_codes,
    reciprocal,
    row_energies,
    search_encoder,
    search_scale,
)
from .minimum_search import search_minimum_and_scale
from .vectors import simd as v
from .vectors.kernel import DecodeKernel, EncodeKernel, block_codec, inlined, kernel, scratch, scratch_int
from .vectors.simd import LANES

if TYPE_CHECKING:
    from .vectors.simd import ByteArray, FloatArray, Ints

__all__ = ["codec"]

_BLOCK = 32
_TILE = _BLOCK * LANES
_GGML, _PLAIN = 0, 1  # values of ``objective``, see EncodeKernel


# --- decode ---------------------------------------------------------------------------------------------------------------------


@inlined
def _unpack(data: ByteArray, nibbles: int, fifth_bits: int) -> tuple[Ints, Ints]:
    """Return both halves of a block's codes; ``fifth_bits`` is 0 where there are none."""
    packed = v.load_bytes(data, nibbles)
    lower, upper = packed & 15, packed >> 4
    if fifth_bits:
        lane = v.lane_indices()
        lower |= (v.splat_int(v.load_short(data, fifth_bits)) >> lane & 1) << 4
        upper |= (v.splat_int(v.load_short(data, fifth_bits + 2)) >> lane & 1) << 4
    return lower, upper


@kernel
def _decode_q4_0(data: ByteArray, out: FloatArray) -> None:
    for block in range(data.size // 18):
        place = block * 18
        scale = v.half_to_float(v.load_short(data, place))
        lower, upper = _unpack(data, place + 2, 0)
        v.store(out, block * _BLOCK, v.to_float(lower - 8) * scale)
        v.store(out, block * _BLOCK + LANES, v.to_float(upper - 8) * scale)


@kernel
def _decode_q5_0(data: ByteArray, out: FloatArray) -> None:
    for block in range(data.size // 22):
        place = block * 22
        scale = v.half_to_float(v.load_short(data, place))
        lower, upper = _unpack(data, place + 6, place + 2)
        v.store(out, block * _BLOCK, v.to_float(lower - 16) * scale)
        v.store(out, block * _BLOCK + LANES, v.to_float(upper - 16) * scale)


@kernel
def _decode_q4_1(data: ByteArray, out: FloatArray) -> None:
    for block in range(data.size // 20):
        place = block * 20
        scale, least = v.half_to_float(v.load_short(data, place)), v.half_to_float(v.load_short(data, place + 2))
        lower, upper = _unpack(data, place + 4, 0)
        # the product has at most 16 significant bits: it is exact, fused into the sum or not
        v.store(out, block * _BLOCK, v.to_float(lower) * scale + least)
        v.store(out, block * _BLOCK + LANES, v.to_float(upper) * scale + least)


@kernel
def _decode_q5_1(data: ByteArray, out: FloatArray) -> None:
    for block in range(data.size // 24):
        place = block * 24
        scale, least = v.half_to_float(v.load_short(data, place)), v.half_to_float(v.load_short(data, place + 2))
        lower, upper = _unpack(data, place + 8, place + 4)
        v.store(out, block * _BLOCK, v.to_float(lower) * scale + least)
        v.store(out, block * _BLOCK + LANES, v.to_float(upper) * scale + least)


@kernel
def _decode_q8_0(data: ByteArray, out: FloatArray) -> None:
    for block in range(data.size // 34):
        place = block * 34
        scale = v.half_to_float(v.load_short(data, place))
        v.store(out, block * _BLOCK, v.to_float(v.load_signed_bytes(data, place + 2)) * scale)
        v.store(out, block * _BLOCK + LANES, v.to_float(v.load_signed_bytes(data, place + 18)) * scale)


# --- pack -----------------------------------------------------------------------------------------------------------------------


@inlined
def _pack(out: ByteArray, nibbles: int, fifth_bits: int, lower: Ints, upper: Ints) -> None:
    """Write both halves of a block's codes; ``fifth_bits`` is 0 where there are none."""
    v.store_bytes(out, nibbles, lower & 15 | upper << 4)
    if fifth_bits:
        v.store_short(out, fifth_bits, v.lane_bits(lower & 16 != 0))
        v.store_short(out, fifth_bits + 2, v.lane_bits(upper & 16 != 0))


# --- encode ---------------------------------------------------------------------------------------------------------------------


@kernel
def _encode_scaled(
    rows: FloatArray,
    columns: int,
    importance: FloatArray,
    energies: FloatArray,
    starts: FloatArray,
    refinements: int,
    levels: int,
    out: ByteArray,
) -> None:
    """Q4_0 (``levels`` 16) and Q5_0 (32)."""
    tile, weights, padded = scratch(_TILE), scratch(_TILE), scratch(_TILE)
    scales, per_scale = scratch(LANES), scratch(LANES)
    row_energies(rows, columns, energies)
    size, zero = (18, 8) if levels == 16 else (22, 16)
    codes = (-float(zero), float(zero - 1))
    blocks = rows.size // _BLOCK
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        load_tile(rows, _BLOCK, first, count, padded, tile)
        if importance.size:
            load_weights(importance, columns, energies, _BLOCK, first, tile, weights)
            scale = search_scale(tile, weights, True, _BLOCK, codes, starts, refinements)
        else:
            scale = search_scale(tile, weights, False, _BLOCK, codes, starts, refinements)
        v.store(scales, 0, scale)
        v.store(per_scale, 0, reciprocal(scale))
        for lane in range(count):
            start, place = (first + lane) * _BLOCK, (first + lane) * size
            lower = nearest_codes(rows, start, 0.0, per_scale[lane], -codes[0], 0, levels - 1)
            upper = nearest_codes(rows, start + LANES, 0.0, per_scale[lane], -codes[0], 0, levels - 1)
            v.store_short(out, place, v.float_to_half(scales[lane]))
            if levels == 16:
                _pack(out, place + 2, 0, lower, upper)
            else:
                _pack(out, place + 6, place + 2, lower, upper)


@kernel
def _encode_shifted(
    rows: FloatArray,
    columns: int,
    importance: FloatArray,
    energies: FloatArray,
    starts: FloatArray,
    refinements: int,
    levels: int,
    out: ByteArray,
) -> None:
    """Q4_1 (``levels`` 16) and Q5_1 (32)."""
    tile, weights, padded = scratch(_TILE), scratch(_TILE), scratch(_TILE)
    per_scale, minima, halves = scratch(LANES), scratch(LANES), scratch_int(LANES)
    row_energies(rows, columns, energies)
    size = 20 if levels == 16 else 24
    top = float(levels - 1)
    blocks = rows.size // _BLOCK
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        load_tile(rows, _BLOCK, first, count, padded, tile)
        if importance.size:
            load_weights(importance, columns, energies, _BLOCK, first, tile, weights)
            least, scale = search_minimum_and_scale(tile, weights, True, _BLOCK, top, starts, refinements)
        else:
            least, scale = search_minimum_and_scale(tile, weights, False, _BLOCK, top, starts, refinements)
        v.store(minima, 0, least)
        v.store(per_scale, 0, reciprocal(scale))
        v.store(halves, 0, v.floats_to_halves(scale) | v.floats_to_halves(least) << 16)
        for lane in range(count):
            start, place = (first + lane) * _BLOCK, (first + lane) * size
            lower = nearest_codes(rows, start, minima[lane], per_scale[lane], 0.0, 0, levels - 1)
            upper = nearest_codes(rows, start + LANES, minima[lane], per_scale[lane], 0.0, 0, levels - 1)
            v.store_short(out, place, halves[lane])
            v.store_short(out, place + 2, halves[lane] >> 16)
            if levels == 16:
                _pack(out, place + 4, 0, lower, upper)
            else:
                _pack(out, place + 8, place + 4, lower, upper)


@kernel
def _encode_q8_0(rows: FloatArray, starts: FloatArray, refinements: int, out: ByteArray) -> None:
    tile, padded, scales, per_scale = scratch(_TILE), scratch(_TILE), scratch(LANES), scratch(LANES)
    codes = (-127.0, 127.0)
    blocks = rows.size // _BLOCK
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        load_tile(rows, _BLOCK, first, count, padded, tile)
        scale = search_scale(tile, tile, False, _BLOCK, codes, starts, refinements)
        v.store(scales, 0, scale)
        v.store(per_scale, 0, reciprocal(scale))
        for lane in range(count):
            start, place = (first + lane) * _BLOCK, (first + lane) * 34
            v.store_short(out, place, v.float_to_half(scales[lane]))
            v.store_bytes(out, place + 2, nearest_codes(rows, start, 0.0, per_scale[lane], 0.0, -127, 127))
            v.store_bytes(out, place + 18, nearest_codes(rows, start + LANES, 0.0, per_scale[lane], 0.0, -127, 127))


# --- options --------------------------------------------------------------------------------------------------------------------


# Each list is in the order of what a start adds to those before it, on Gauss and Student weights; an effort takes the first few.
# What the largest weight's code may be before clipping; see search_scale.
_SCALE_STARTS = {
    16: "-8.2, -9, -7.2, -7.8, -8.6, -10.2, -6.2, 8.8, -6.8, -9.6, 9.8, 8.2, -8, -8.4, -5.2, -7.6, -5.8, 10.2, -8.8, -7.4",
    32: "-16, -15.2, -16.8, -14, -16.4, -14.8, -18, -13.2, -12, -19.2, -15.6, -17.2, -10.8, -14.4, -20.4, 16.8, -12.8, -13.6, -18.4, -17.6",
}
# Steps in the range, and code of the smallest weight, none of which is clipped; see search_minimum_and_scale.
_EVEN_STARTS = {
    16: "15.25 0, 15.25 -.375, 15 .375, 15.25 -.125, 14.25 -.125, 15.25 -.25, 15.25 .125, 15.25 -.49, 13 0, 14.25 .75,"
    "14 .125, 15.75 -.375",
    32: "31.25 -.25, 31.25 .125, 30.25 -.125, 29.25 .875, 31 0, 31.25 -.375, 30 .875, 30 .125, 28.5 -.25, 31.25 0,"
    "29.25 -.25, 29 .125",
}
# The same with importance, where clipping an unimportant weight may pay.
_WEIGHTED_STARTS = {
    16: "15.5 -.25, 15.5 -.5, 15.5 0, 14 0, 15.5 .25, 14.5 .25, 16 -1, 13 1, 14 .25, 14 .75, 16.5 -1, 16.5 -.5, 15 -.25,"
    "15 .25, 16.5 -.25, 17 -1.75, 12.5 1.75, 15 0, 16 -.5, 14.5 -.25, 17 0, 17 -2, 13 .25, 15.5 -.75",
    32: "31 0, 30.2 0, 31 .25, 31 -.25, 29.4 .75, 30.2 .75, 28.6 .75, 31.8 -.75, 31.8 -.25, 28.6 1.25, 27 1, 31.8 0,"
    "31.8 -.5, 27.8 0, 26.2 1.75, 29.4 1, 32.6 -1.75, 29.4 .5, 27.8 2.25, 26.2 2, 31.8 -1, 28.6 2, 29.4 .25, 32.6 0",
}
_Q8_0_STARTS = "127, 126.6, 127.4, 126.2, 125.5, 124, 125, 126"


def _table(text: str) -> FloatArray:
    """Return (count, 1) numbers, or (count, 2) where ``text`` holds pairs between commas."""
    return np.array([[float(number) for number in start.split()] for start in text.split(",")], np.float32)


# (starts, refinements) of fast, default, best
_EVEN_SCALE_EFFORT = ((2, 0), (5, 0), (20, 4))
_WEIGHTED_SCALE_EFFORT = ((6, 0), (9, 1), (20, 4))
_EVEN_PAIR_EFFORT = ((1, 0), (2, 0), (12, 4))
_WEIGHTED_PAIR_EFFORT = ((7, 1), (12, 1), (24, 4))
_Q8_0_EFFORT = ((1, 0), (1, 0), (8, 2))


class _Run(Protocol):
    """A compiled encoder whose search takes importance."""

    def __call__(
        self,
        rows: FloatArray,
        columns: int,
        importance: FloatArray,
        energies: FloatArray,
        starts: FloatArray,
        refinements: int,
        levels: int,
        out: ByteArray,
    ) -> None: ...


def _encoder(
    run: _Run,
    levels: int,
    starts: tuple[str, str],
    efforts: tuple[Efforts, Efforts],
) -> EncodeKernel:
    """Return a kernel that turns options into the arguments of ``run``; pairs are (without importance, with importance)."""
    tables = [_table(text) for text in starts]
    nothing = np.empty(0, np.float32)

    def encode(
        rows: FloatArray, columns: int, importance: FloatArray, effort: int, objective: int, out: ByteArray
    ) -> None:
        largest = importance.max() if importance.size and objective != _PLAIN else 0.0
        weighted = bool(largest > 0.0)
        count, refinements = efforts[weighted][effort]
        repeated = np.resize(importance / largest, columns + _TILE) if weighted else nothing
        chosen = tables[weighted][:count].reshape(-1)
        energies = np.empty(rows.size // columns if weighted and objective == _GGML else 0, np.float32)
        run(rows, columns, repeated, energies, chosen, refinements, levels, out)

    return encode


def _encode_scaled_of(levels: int) -> EncodeKernel:
    starts = _SCALE_STARTS[levels]
    return _encoder(_encode_scaled, levels, (starts, starts), (_EVEN_SCALE_EFFORT, _WEIGHTED_SCALE_EFFORT))


def _encode_shifted_of(levels: int) -> EncodeKernel:
    starts = (_EVEN_STARTS[levels], _WEIGHTED_STARTS[levels])
    return _encoder(_encode_shifted, levels, starts, (_EVEN_PAIR_EFFORT, _WEIGHTED_PAIR_EFFORT))


def codec(name: str) -> Codec:
    """Return the codec of one of this module's encodings."""
    return block_codec(*_KERNELS[name])


_KERNELS: dict[str, tuple[DecodeKernel, EncodeKernel]] = {
    "Q4_0": (_decode_q4_0, _encode_scaled_of(16)),
    "Q4_1": (_decode_q4_1, _encode_shifted_of(16)),
    "Q5_0": (_decode_q5_0, _encode_scaled_of(32)),
    "Q5_1": (_decode_q5_1, _encode_shifted_of(32)),
    "Q8_0": (_decode_q8_0, search_encoder(_encode_q8_0, _table(_Q8_0_STARTS), _Q8_0_EFFORT)),
}
