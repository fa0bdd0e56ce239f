"""IQ4_NL and IQ4_XS: 4.5 and 4.25 bits per weight, with sixteen unevenly spaced levels.

A code of four bits stands for a level, an integer from -127 to 113, denser around zero; a weight is ``scale * level``, and the scale may be
negative. In IQ4_NL a block of 32 weights has a float16 scale. In IQ4_XS a super-block of 256 is eight sub-blocks of 32, whose scales
are ``d * (factor - 32)`` with factors of six bits.

**Layout** (multi-byte numbers are little-endian):

=======  =====  ====================================================================================================================
IQ4_NL   0      ``d``, float16
18 byte  2      16 bytes: codes of weights 0 … 15 in the low nibbles, 16 … 31 in the high ones
IQ4_XS   0      ``d``, float16
136      2      u16: bits 4 and 5 of the eight factors, two bits each
bytes    4      4 bytes: low nibbles of the factors, the even sub-block's first
         8      16 bytes per sub-block, codes as above
=======  =====  ====================================================================================================================

**Objective**: the sum of ``w * (x - decoded)**2`` with ``w``

* ``ggml``: ``importance * sqrt(8 * mean(x**2) + x**2)``, the mean over the block or super-block. llama.cpp has 2 instead of 8, and does not
  always get the least error by it that importance alone weighs. Without importance the same with an importance of 1 (llama.cpp takes
  ``x**2`` then, which leaves the many small weights to chance);
* ``plain``: 1;
* ``importance``: the importance, or 1 where there is none.

**Search**: lane = 32 weights. Every trial scale gets the nearest codes and, from the residuals in units of the scale, the
least-squares correction for these codes; the error of the corrected scale follows from the same sums. Trials begin at scales that put
the outermost weight at or a little beyond the outermost level, in both directions. IQ4_XS then chooses ``d`` for the eight scales that
were found, tries the factors on both sides with their true error, fits ``d`` to all codes of the super-block, and keeps what is better.
At last, in the objective ``ggml``, the scale or ``d`` is lengthened along the weights (:func:`.codebook_search.fit_along`).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from gguf.quants import IQ4_NL

from ..base import Codec
from ..superblocks import GROUP_SCRATCH, STAGED, SUPERBLOCK, W, X, balance, superblock_max, superblock_sum
from ..vectors import simd as v
from ..vectors.kernel import GGML, PLAIN, block_codec, inlined, kernel, scratch
from .codebook import load_word, store_word
from .codebook_search import fit_along, load_weighted, nearest_half, where_most

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..vectors.simd import ByteArray, FloatArray, Floats, IntArray, Ints

__all__ = ["codec"]

LENGTH = 32
SPREAD = 8  # of the weights of errors
NL_BYTES = 18
XS_BYTES, XS_LOW, XS_CODES = 136, 4, 8
LEAST_FACTOR, LARGEST_FACTOR = -32, 31

CELLS = 512  # of half a unit: a boundary between levels is halfway between two integers
CENTRE = 256
LARGEST = 3e8  # far more than a float16 scale can express
LOWEST, HIGHEST = 127.0, 113.0  # magnitudes of the outermost levels
# coefficients of a polynomial that maps levels to their codes: it misses no boundary between two by more than 0.012 of a code
CODE = (7.88341, 0.0866481, -3.30473e-06, -3.80015e-06, 6.3592e-10, 2.67205e-10, -9.40468e-14, -8.8518e-15)
ROUNDER = 1.5 * 2**23  # added to a small number, it rounds it to an integer, which the lowest bits hold then


UNITS = 40  # trials of IQ4_XS's ``d``
ROUNDS = (1, 2, 4)  # of trying factors and fitting ``d``, by effort

_IMPORTANCE, _SCALES, _FACTORS, ROOM = GROUP_SCRATCH, GROUP_SCRATCH + 512, GROUP_SCRATCH + 528, GROUP_SCRATCH + 544


@cache
def _tables() -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int32]]:
    """Return the two levels of each byte (the low nibble's in the low byte), the levels, and the code that is nearest to each cell."""
    levels = np.array(IQ4_NL.kvalues, np.int32)
    byte = np.arange(256)
    pairs = (levels[byte & 15] & 255) | (levels[byte >> 4] & 255) << 8
    middle = (np.arange(CELLS) - CENTRE + 0.5) / 2
    codes = np.abs(middle[:, None] - levels).argmin(1).astype(np.int32)
    reals = levels.astype(np.float32)
    for table in (pairs, reals, codes):
        table.flags.writeable = False
    return pairs.astype(np.int32), reals, codes


# --- decode ---------------------------------------------------------------------------------------------------------------------


@inlined
def _decode_codes(data: ByteArray, codes: int, scale: float, pairs: IntArray, out: FloatArray, place: int) -> None:
    both = v.gather_int(pairs, v.load_bytes(data, codes))
    v.store(out, place, v.to_float(both << 24 >> 24) * scale)
    v.store(out, place + v.LANES, v.to_float(both << 16 >> 24) * scale)


@kernel
def _decode_nl(data: ByteArray, pairs: IntArray, out: FloatArray) -> None:
    for block in range(data.size // NL_BYTES):
        start = block * NL_BYTES
        _decode_codes(data, start + 2, v.half_to_float(v.load_short(data, start)), pairs, out, block * LENGTH)


@kernel
def _decode_xs(data: ByteArray, pairs: IntArray, out: FloatArray) -> None:
    for block in range(data.size // XS_BYTES):
        start = block * XS_BYTES
        scale = v.half_to_float(v.load_short(data, start))
        high, low = v.load_short(data, start + 2), load_word(data, start + XS_LOW)
        for j in range(SUPERBLOCK // LENGTH):
            factor = (low >> 4 * j & 15 | (high >> 2 * j & 3) << 4) + LEAST_FACTOR
            place = block * SUPERBLOCK + j * LENGTH
            _decode_codes(data, start + XS_CODES + 16 * j, scale * factor, pairs, out, place)


# --- search ---------------------------------------------------------------------------------------------------------------------


@inlined
def _cell(scaled: Floats) -> Ints:
    """Return the cell, of half a unit, of weights in units of the scale."""
    return v.to_int(v.minimum(v.maximum(scaled * 2 + CENTRE, 0), CELLS - 1))


@inlined
def _inverse(scale: Floats) -> Floats:
    """Return ``1 / scale``, and 0 for 0."""
    return v.select(scale == 0, v.splat(0), 1 / scale)


@inlined
def _level(scaled: Floats, levels: FloatArray) -> Floats:
    """Return the nearest level, or beside a boundary sometimes the other; packing is exact, and this needs no gather, which AVX2 is slow at."""
    x = v.minimum(v.maximum(scaled, -LOWEST), HIGHEST)
    odd = ((CODE[7] * x + CODE[6]) * x + CODE[5]) * x + CODE[4]
    code = (((odd * x + CODE[3]) * x + CODE[2]) * x + CODE[1]) * x + CODE[0]
    return v.lookup(levels, v.bits(code + ROUNDER))


@inlined
def _residuals(work: FloatArray, scale: Floats, levels: FloatArray) -> tuple[Floats, Floats, Floats]:
    """Return the sums of ``w r r``, ``w r l`` and ``w l l`` for levels ``l``, with ``r = x / scale - l``."""
    inverse = _inverse(scale)
    rr, rl, ll = v.splat(0), v.splat(0), v.splat(0)
    for place in range(LENGTH):
        scaled = v.load(work, X + place * v.LANES) * inverse
        level = _level(scaled, levels)
        residual = scaled - level
        weighted, pull = v.load(work, W + place * v.LANES) * residual, v.load(work, W + place * v.LANES) * level
        rr += weighted * residual
        rl += weighted * level
        ll += pull * level
    return rr, rl, ll


@inlined
def _error(scale: Floats, changed: Floats, rr: Floats, rl: Floats, ll: Floats) -> Floats:
    """Return the error when ``scale``, whose residuals are summed, becomes ``changed`` and codes stay."""
    difference = changed - scale
    return scale * scale * rr - 2 * scale * difference * rl + difference * difference * ll


@inlined
def _extremes(work: FloatArray) -> tuple[Floats, Floats, Floats]:
    """Return the largest weight above and below zero (as magnitude) of each lane, and the sum of ``w x x``."""
    above, below, energy = v.splat(0), v.splat(0), v.splat(0)
    for place in range(LENGTH):
        x = v.load(work, X + place * v.LANES)
        above, below = v.maximum(above, x), v.maximum(below, -x)
        energy += v.load(work, W + place * v.LANES) * x * x
    return above, below, energy


@inlined
def _search(
    work: FloatArray, levels: FloatArray, starts: FloatArray, both_ways: int, halves: bool
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return the best scale found, rounded to float16 if ``halves``, its error, its curvature, and the error of a scale of zero.

    Each of ``starts`` is where the outermost weight lies at first, relative to the outermost level. The first ``both_ways`` are tried in
    both directions, the others in the better one, and at last the best scale itself.
    """
    above, below, energy = _extremes(work)
    upright = v.maximum(above * (1 / HIGHEST), below * (1 / LOWEST))
    mirrored = -v.maximum(above * (1 / LOWEST), below * (1 / HIGHEST))
    best, least, curvature = v.splat(0), energy, v.splat(0)
    direction = upright
    last = starts.size + both_ways
    for trial in range(last + 1):
        if trial < 2 * both_ways:
            scale = (upright if trial & 1 else mirrored) * (1 / starts[trial >> 1])
        elif trial < last:
            scale = direction * (1 / starts[trial - both_ways])
        else:
            scale = best
        rr, rl, ll = _residuals(work, scale, levels)
        if trial == last:
            # residuals of the very scale tell its error without the rounding of a correction
            least, curvature = v.select(scale == 0, energy, scale * scale * rr), ll
        fitted = scale + scale * v.select(ll > 0, rl / ll, 0)
        if halves:
            fitted = nearest_half(fitted)
        error = _error(scale, fitted, rr, rl, ll)
        better = error < least
        best, least = v.select(better, fitted, best), v.select(better, error, least)
        curvature = v.select(better, ll, curvature)
        direction = v.select(best < 0, mirrored, upright)
    return best, least, curvature, energy


# --- pack -----------------------------------------------------------------------------------------------------------------------


@inlined
def _peak(work: FloatArray) -> Floats:
    """Return the largest ``w x x`` of each lane."""
    peak = v.splat(0)
    for place in range(LENGTH):
        x = v.load(work, X + place * v.LANES)
        peak = v.maximum(peak, v.load(work, W + place * v.LANES) * x * x)
    return peak


@inlined
def _lengthened(step: Floats, product: Floats, square: Floats, energy: Floats, peak: Floats) -> Floats:
    """Return a float16 step of either sign by :func:`fit_along`, from sums of ``w (x / step) z``, ``w z z`` and ``w x x``, where ``step * z`` is decoded.

    Where one weight, whose ``w x x`` is ``peak``, outweighs all others, the step is left as it is: that weight is not shrunk.
    """
    magnitude = v.absolute(step)
    longer = v.select(2 * peak > energy, magnitude, fit_along(magnitude * product, square, energy, magnitude))
    return v.select(step < 0, -longer, longer)


@inlined
def _pack_codes(work: FloatArray, staged: int, scale: float, codes: IntArray, out: ByteArray, place: int) -> None:
    """Write the 16 bytes of the codes that are nearest at ``scale`` to the 32 weights at ``staged``."""
    inverse = _inverse(v.splat(scale))
    lower = v.gather_int(codes, _cell(v.load(work, staged) * inverse))
    upper = v.gather_int(codes, _cell(v.load(work, staged + v.LANES) * inverse))
    v.store_bytes(out, place, lower | upper << 4)


# --- IQ4_NL ---------------------------------------------------------------------------------------------------------------------


@inlined
def _load_blocks(
    rows: FloatArray, columns: int, importance: FloatArray, first: int, last: int, work: FloatArray
) -> None:
    """Fill ``STAGED``, ``X`` and ``W`` with sixteen blocks from ``first`` on; the call's ``last`` fills lanes of missing ones."""
    for lane in range(v.LANES):
        block = min(first + lane, last)
        for half in range(0, LENGTH, v.LANES):
            x = v.minimum(v.maximum(v.load(rows, block * LENGTH + half), -LARGEST), LARGEST)
            w = v.load(importance, block * LENGTH % columns + half) if importance.size > 0 else v.splat(1)
            v.store(work, STAGED + lane * LENGTH + half, x)
            v.store(work, _IMPORTANCE + lane * LENGTH + half, w)
    for half in range(0, LENGTH, v.LANES):
        v.transpose(work, STAGED + half, LENGTH, work, X + half * v.LANES, v.LANES)
        v.transpose(work, _IMPORTANCE + half, LENGTH, work, W + half * v.LANES, v.LANES)


@inlined
def _weigh_by_deviation(work: FloatArray) -> None:
    """Multiply the weights of errors by ``sqrt(8 * mean(x**2) + x**2)``, the mean over the block."""
    mean = v.splat(0)
    for place in range(LENGTH):
        x = v.load(work, X + place * v.LANES)
        mean += x * x * (SPREAD / LENGTH)
    for place in range(LENGTH):
        x, w = v.load(work, X + place * v.LANES), v.load(work, W + place * v.LANES)
        v.store(work, W + place * v.LANES, w * v.sqrt(mean + x * x))


@kernel
def _encode_nl(
    rows: FloatArray,
    columns: int,
    importance: FloatArray,
    objective: int,
    levels: FloatArray,
    starts: FloatArray,
    both_ways: int,
    codes: IntArray,
    out: ByteArray,
) -> None:
    work = scratch(ROOM)
    count = rows.size // LENGTH
    used = importance[:0] if objective == PLAIN else importance
    for first in range(0, count, v.LANES):
        _load_blocks(rows, columns, used, first, count - 1, work)
        if objective == GGML:
            _weigh_by_deviation(work)
        balance(work, LENGTH)
        scale, _, _, energy = _search(work, levels, starts, both_ways, True)
        if objective == GGML:
            _, rl, ll = _residuals(work, scale, levels)
            scale = _lengthened(scale, rl + ll, ll, energy, _peak(work))
        v.store(work, _SCALES, scale)
        for lane in range(min(v.LANES, count - first)):
            start = (first + lane) * NL_BYTES
            v.store_short(out, start, v.float_to_half(work[_SCALES + lane]))
            _pack_codes(work, STAGED + lane * LENGTH, work[_SCALES + lane], codes, out, start + 2)


# --- IQ4_XS ---------------------------------------------------------------------------------------------------------------------


@inlined
def _choose_unit(scale: Floats, curvature: Floats) -> tuple[Floats, Floats]:
    """Return ``d`` and the factors that fit the scales of a super-block best, as float16 and integers."""
    largest = where_most(v.absolute(scale), scale, 8)
    heaviest = where_most(curvature * scale * scale, scale, 8)
    best, factors, least = v.splat(0), v.splat(0), superblock_sum(curvature * scale * scale, 8)
    for trial in range(UNITS):
        # that scale becomes factor -32, -31 ... or, with the other sign, 32, 31 ...
        divisor = np.float32(LEAST_FACTOR + (trial >> 2))
        d = nearest_half((largest if trial & 1 == 0 else heaviest) / (divisor if trial & 2 == 0 else -divisor))
        factor = v.minimum(v.maximum(v.round_even(scale * _inverse(d)), LEAST_FACTOR), LARGEST_FACTOR)
        miss = scale - d * factor
        error = superblock_sum(curvature * miss * miss, 8)
        better = error < least
        best, factors, least = (
            v.select(better, d, best),
            v.select(better, factor, factors),
            v.select(better, error, least),
        )
    return best, factors


@inlined
def _refine(
    work: FloatArray, levels: FloatArray, d: Floats, factors: Floats, energy: Floats
) -> tuple[Floats, Floats, Floats]:
    """Return ``d``, factors and the super-block's error after a search of neighbouring factors and a fit of ``d``."""
    least, best = v.splat(np.float32(3e38)), factors
    best_rr, best_rl, best_ll = v.splat(0), v.splat(0), v.splat(0)
    for step in range(-1, 2):
        factor = v.minimum(v.maximum(factors + step, LEAST_FACTOR), LARGEST_FACTOR)
        rr, rl, ll = _residuals(work, d * factor, levels)
        error = v.select(d * factor == 0, energy, d * factor * d * factor * rr)
        better = error < least
        best, least = v.select(better, factor, best), v.select(better, error, least)
        best_rr, best_rl, best_ll = (
            v.select(better, rr, best_rr),
            v.select(better, rl, best_rl),
            v.select(better, ll, best_ll),
        )
    return _fit_unit(d, best, least, best_rr, best_rl, best_ll)


@inlined
def _fit_unit(
    d: Floats, factors: Floats, error: Floats, rr: Floats, rl: Floats, ll: Floats
) -> tuple[Floats, Floats, Floats]:
    """Return ``d`` fitted to the codes whose residuals are summed, if that lowers the super-block's error; the factors, and that error."""
    square = superblock_sum(factors * factors * ll, 8)
    fitted = nearest_half(d + d * v.select(square > 0, superblock_sum(factors * factors * rl, 8) / square, 0))
    before = superblock_sum(error, 8)
    after = superblock_sum(v.select(d * factors == 0, error, _error(d * factors, fitted * factors, rr, rl, ll)), 8)
    better = after < before
    return v.select(better, fitted, d), factors, v.select(better, after, before)


@inlined
def _pack_superblock(work: FloatArray, part: int, codes: IntArray, out: ByteArray, start: int) -> None:
    """Write the ``part``-th super-block of the group."""
    d = work[_SCALES + 8 * part]
    low, high = 0, 0
    for j in range(8):
        factor = work[_FACTORS + 8 * part + j]
        stored = int(factor) - LEAST_FACTOR
        low |= (stored & 15) << 4 * j
        high |= (stored >> 4) << 2 * j
        _pack_codes(work, STAGED + part * SUPERBLOCK + j * LENGTH, d * factor, codes, out, start + XS_CODES + 16 * j)
    v.store_short(out, start, v.float_to_half(d))
    v.store_short(out, start + 2, high)
    store_word(out, start + XS_LOW, low)


@kernel
def _encode_xs(
    rows: FloatArray,
    columns: int,
    importance: FloatArray,
    rounds: int,
    objective: int,
    levels: FloatArray,
    starts: FloatArray,
    both_ways: int,
    codes: IntArray,
    out: ByteArray,
) -> None:
    work = scratch(ROOM)
    count = rows.size // SUPERBLOCK
    for first in range(0, count, 2):
        load_weighted(rows, columns, importance, objective, SPREAD, first, LENGTH, work)
        scale, _, curvature, energy = _search(work, levels, starts, both_ways, False)
        d, factors = _choose_unit(scale, curvature)
        least = superblock_sum(energy, 8)
        best, best_factors = v.splat(0), v.splat(0)
        for _ in range(rounds):
            d, factors, error = _refine(work, levels, d, factors, energy)
            better = error < least
            best, best_factors = v.select(better, d, best), v.select(better, factors, best_factors)
            least = v.select(better, error, least)
        if objective == GGML:
            _, rl, ll = _residuals(work, best * best_factors, levels)
            squares = best_factors * best_factors
            square = superblock_sum(squares * ll, 8)
            product, peak = superblock_sum(squares * rl, 8) + square, superblock_max(_peak(work), 8)
            best = _lengthened(best, product, square, superblock_sum(energy, 8), peak)
        v.store(work, _SCALES, best)
        v.store(work, _FACTORS, best_factors)
        for part in range(min(2, count - first)):
            _pack_superblock(work, part, codes, out, (first + part) * XS_BYTES)


# by effort: where the outermost weight lies at first, relative to the outermost level, and how many of these are tried in both directions
_FEW, _SEVERAL = "1.0 1.06 1.12", "1.0 1.08 1.14 0.96 1.04 1.11"
_MANY = "0.94 0.96 0.98 1.0 1.02 1.04 1.06 1.08 1.1 1.12 1.14 1.16 1.18 1.2 1.22 1.24 1.26 1.28"
_STARTS = {
    "IQ4_NL": ((_FEW, 3), (_SEVERAL, 6), (_MANY, 18)),
    "IQ4_XS": ((_FEW, 3), (_SEVERAL, 3), (_MANY, 18)),
}


@cache
def codec(name: str) -> Codec:
    """Return the codec of IQ4_NL or IQ4_XS."""
    pairs, levels, codes = _tables()
    starts = [(np.array(text.split(), np.float32), both_ways) for text, both_ways in _STARTS[name]]

    def decode(data: ByteArray, out: FloatArray) -> None:
        (_decode_nl if name == "IQ4_NL" else _decode_xs)(data, pairs, out)

    def encode(
        rows: FloatArray, columns: int, importance: FloatArray, effort: int, objective: int, out: ByteArray
    ) -> None:
        if name == "IQ4_NL":
            _encode_nl(rows, columns, importance, objective, levels, *starts[effort], codes, out)
        else:
            _encode_xs(rows, columns, importance, ROUNDS[effort], objective, levels, *starts[effort], codes, out)

    return block_codec(decode, encode)
