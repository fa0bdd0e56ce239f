"""The search for a float16 scale, or scale and minimum, of a block: all types share it whose blocks have one scale and no finer ones.

Sixteen blocks of ``block`` weights make a *tile*, one block per lane: weight ``i`` of block ``k`` lies at ``tile[16 * i + k]``. A scale
``d`` (and minimum ``m``) is tried in units of its code: a weight ``x`` lies at ``y = (x - m) / d``, takes the nearest code ``l`` and leaves
the residual ``r = y - l``. The sums of ``w r``, ``w r r``, ``w r l``, ``w l`` and ``w l l`` over a block give the least-squares correction of ``d`` and
``m`` for these codes and, after both were rounded to float16, the error that is really made, without subtracting large numbers from
each other. A trial replaces the best one only where that error is lower, so every step leaves a block as good as it was or better.

Where the first trials begin is the caller's data: few starts, spread widely, find more than many close ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from . import simd as v
from .kernel import EncodeKernel, inlined
from .simd import LANES

if TYPE_CHECKING:
    from .simd import ByteArray, FloatArray, Floats, Ints

__all__ = [
    "Efforts",
    "load_tile",
    "load_weights",
    "nearest_codes",
    "reciprocal",
    "row_energies",
    "search_encoder",
    "search_minimum_and_scale",
    "search_scale",
]

_LARGEST_HALF = np.float32(65504.0)
_NEGLIGIBLE = np.float32(1e-12)  # far below the smallest float16: what is smaller decodes to zero whatever the scale
_SMALLEST_NORMAL_HALF = np.float32(2.0**-14)
_UNIMPORTANT = np.float32(1e-30)
_TILES_AHEAD = 2  # that are asked for before their turn: a processor by itself does not look beyond the end of a page
_ROUNDER = 1.5 * 2**23
_ROUNDER_BITS = 0x4B400000


# --- options --------------------------------------------------------------------------------------------------------------------

Efforts = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""How many of the starts, and how many refinements, ``fast``, ``default`` and ``best`` take."""


class _SearchKernel(Protocol):
    """A compiled encoder whose search takes no importance."""

    def __call__(self, rows: FloatArray, starts: FloatArray, refinements: int, out: ByteArray) -> None: ...


def search_encoder(run: _SearchKernel, starts: FloatArray, efforts: Efforts) -> EncodeKernel:
    """Return the encoder that turns an effort into the arguments of ``run``; a start is a row of ``starts``."""

    def encode(
        rows: FloatArray, columns: int, importance: FloatArray, effort: int, objective: int, out: ByteArray
    ) -> None:
        count, refinements = efforts[effort]
        run(rows, starts[:count].reshape(-1), refinements, out)

    return encode


# --- tiles ----------------------------------------------------------------------------------------------------------------------


@inlined
def load_tile(rows: FloatArray, block: int, first: int, count: int, padded: FloatArray, tile: FloatArray) -> None:
    """Transpose ``count`` (at most 16) blocks from number ``first`` on into ``tile``; further lanes become zero.

    ``padded`` and ``tile``: room for sixteen blocks.
    """
    start = first * block
    if count == LANES:
        for place in range(0, block * LANES, LANES):
            v.prefetch(rows, start + _TILES_AHEAD * block * LANES + place)
        for place in range(0, block, LANES):
            v.transpose(rows, start + place, block, tile, place * LANES, LANES)
        return
    for place in range(block * LANES):
        padded[place] = rows[start + place] if place < count * block else np.float32(0.0)
    for place in range(0, block, LANES):
        v.transpose(padded, place, block, tile, place * LANES, LANES)


@inlined
def row_energies(rows: FloatArray, columns: int, energies: FloatArray) -> None:
    """Fill ``energies`` with twice the mean square of each row, as many as there is room for."""
    for row in range(energies.size):
        total = v.splat(0.0)
        for column in range(0, columns, LANES):
            weights = v.load(rows, row * columns + column)
            total += weights * weights
        energies[row] = np.float32(2.0) * v.lane_sum(total) / np.float32(columns)


@inlined
def load_weights(
    importance: FloatArray,
    columns: int,
    energies: FloatArray,
    block: int,
    first: int,
    tile: FloatArray,
    weights: FloatArray,
) -> None:
    """Fill ``weights`` with the weights of the squared errors of ``tile``, scaled to a maximum of 1 per block.

    ``importance``: the importance vector of ``columns`` weights, repeated for sixteen blocks beyond its end; ``first``: number of the tile's
    first block. With ``energies`` (per row) the weight is ``importance * sqrt(energy + x**2)``; where ``energies`` is empty, the
    importance alone. A block without any importance is weighted evenly.
    """
    column = first * block % columns
    for place in range(0, block, LANES):
        v.transpose(importance, column + place, block, weights, place * LANES, LANES)
    if energies.size:
        row = first * block // columns
        energy = v.splat(energies[row])
        next_row = (row + 1) * columns // block - first  # the lane where it begins
        while next_row < LANES and row + 1 < energies.size:
            row += 1
            energy = v.select(v.lane_indices() >= next_row, v.splat(energies[row]), energy)
            next_row += columns // block
        for place in range(0, block * LANES, LANES):
            x = v.load(tile, place)
            v.store(weights, place, v.load(weights, place) * v.sqrt(x * x + energy))
    largest = v.splat(0.0)
    for place in range(0, block * LANES, LANES):
        largest = v.maximum(largest, v.load(weights, place))
    important = largest > _UNIMPORTANT
    scale = 1.0 / v.select(important, largest, 1.0)
    offset = v.select(important, v.splat(0.0), 1.0)
    for place in range(0, block * LANES, LANES):
        v.store(weights, place, v.load(weights, place) * scale + offset)


# --- one scale ------------------------------------------------------------------------------------------------------------------


@inlined
def _try_scale(
    tile: FloatArray,
    weights: FloatArray,
    weighted: bool,
    block: int,
    codes: tuple[float, float],
    step: Floats,
    per_step: Floats,
    best_scale: Floats,
    best_error: Floats,
) -> tuple[Floats, Floats]:
    """Return the better of the best scale so far and the least-squares scale for the codes that ``step`` leads to, with its error.

    ``per_step`` is the reciprocal of ``step``, or both are zero; ``codes``: the lowest and the highest.
    """
    lowest, highest = codes
    sum_rr, sum_rl, sum_ll = v.splat(0.0), v.splat(0.0), v.splat(0.0)
    for place in range(0, block * LANES, LANES):
        y = v.load(tile, place) * per_step
        code = v.minimum(v.maximum(v.round_even(y), lowest), highest)
        residual = y - code
        if weighted:
            weight = v.load(weights, place)
            sum_rr += weight * residual * residual
            weight = weight * code
            sum_rl += weight * residual
            sum_ll += weight * code
        else:
            sum_rr += residual * residual
            sum_rl += residual * code
            sum_ll += code * code
    correction = sum_rl / v.maximum(sum_ll, _NEGLIGIBLE)
    scale = _rounded_to_half(step + step * correction)
    change = scale * per_step - 1.0
    error = (sum_rr + change * (change * sum_ll - 2.0 * sum_rl)) * (step * step)
    better = error < best_error
    return v.select(better, scale, best_scale), v.select(better, error, best_error)


@inlined
def search_scale(
    tile: FloatArray,
    weights: FloatArray,
    weighted: bool,
    block: int,
    codes: tuple[float, float],
    starts: FloatArray,
    refinements: int,
) -> Floats:
    """Return, per lane, the float16 scale (as float32) of codes ``lowest`` to ``highest`` times scale.

    Each of ``starts`` is the code, before clipping, of the weight with the largest magnitude; then ``refinements`` times the codes are chosen
    anew for the best scale.
    """
    low, high = v.splat(0.0), v.splat(0.0)
    for place in range(0, block * LANES, LANES):
        x = v.load(tile, place)
        low, high = v.minimum(low, x), v.maximum(high, x)
    extreme = v.select(-low > high, low, high)
    usable = v.absolute(extreme) > _NEGLIGIBLE
    best_scale, best_error = v.splat(0.0), v.splat(np.inf)
    for trial in range(starts.size + refinements):  # in one loop, so that the body is compiled once
        if trial < starts.size:
            step = extreme / starts[trial]
            per_step = v.select(usable, starts[trial] / extreme, 0.0)
        else:
            step = best_scale
            per_step = reciprocal(step)
        best_scale, best_error = _try_scale(
            tile, weights, weighted, block, codes, step, per_step, best_scale, best_error
        )
    return best_scale


# --- minimum and scale ----------------------------------------------------------------------------------------------------------


@inlined
def _try_minimum_and_scale(
    tile: FloatArray,
    weights: FloatArray,
    weighted: bool,
    block: int,
    clipped: bool,
    top: float,
    sum_w: Floats,
    base: Floats,
    step: Floats,
    per_step: Floats,
    offset: Floats,
    best: tuple[Floats, Floats, Floats],
) -> tuple[Floats, Floats, Floats]:
    """As :func:`_try_scale` for ``base + x`` near ``minimum + scale * code``; ``best`` and the result are (minimum, scale, error).

    The tile holds weights less ``base``, and ``base`` has the code ``offset``. ``clipped``: whether codes can lie outside 0 to ``top`` before
    they are clipped.
    """
    sum_r, sum_l, sum_rr, sum_rl, sum_ll = v.splat(0.0), v.splat(0.0), v.splat(0.0), v.splat(0.0), v.splat(0.0)
    for place in range(0, block * LANES, LANES):
        y = v.load(tile, place) * per_step + offset
        code = v.round_even(y)
        if clipped:
            code = v.minimum(v.maximum(code, 0.0), top)
        residual = y - code
        if weighted:
            weight = v.load(weights, place)
            weighted_residual, weighted_code = weight * residual, weight * code
            sum_r += weighted_residual
            sum_l += weighted_code
            sum_rr += weighted_residual * residual
            sum_rl += weighted_residual * code
            sum_ll += weighted_code * code
        else:
            sum_r += residual
            sum_l += code
            sum_rr += residual * residual
            sum_rl += residual * code
            sum_ll += code * code
    determinant = sum_w * sum_ll - sum_l * sum_l
    solvable = determinant > 1e-5 * sum_w * sum_ll
    shift = v.select(solvable, (sum_r * sum_ll - sum_rl * sum_l) / determinant, offset)
    minimum_ = _rounded_to_half(base + (shift - offset) * step)
    # the minimum is fixed now; its true shift decides the scale
    shift = (minimum_ - base) * per_step + offset
    correction = (sum_rl - shift * sum_l) / v.maximum(sum_ll, _NEGLIGIBLE)
    scale = _rounded_to_half(step + step * correction)
    change = scale * per_step - 1.0
    error = sum_rr + shift * (shift * sum_w - 2.0 * sum_r) + change * (change * sum_ll + 2.0 * (shift * sum_l - sum_rl))
    error = error * (step * step)
    better = error < best[2]
    return v.select(better, minimum_, best[0]), v.select(better, scale, best[1]), v.select(better, error, best[2])


@inlined
def search_minimum_and_scale(
    tile: FloatArray, weights: FloatArray, weighted: bool, block: int, top: float, starts: FloatArray, refinements: int
) -> tuple[Floats, Floats]:
    """Return, per lane, the float16 minimum and scale (as float32) of ``minimum + scale * code``, codes from 0 to ``top``.

    ``starts``: pairs of the number of steps that the block's range is divided into, and of the code, before rounding and clipping, of its
    smallest weight; where there is no importance nothing is clipped, so that codes must come to lie between -0.5 and ``top`` + 0.5.
    Then ``refinements`` times the codes are chosen anew for the best pair. The tile is overwritten.
    """
    low = v.load(tile, 0)
    high = low
    sum_w = v.splat(0.0)
    for place in range(0, block * LANES, LANES):
        x = v.load(tile, place)
        low, high = v.minimum(low, x), v.maximum(high, x)
        if weighted:
            sum_w += v.load(weights, place)
        else:
            sum_w += 1.0
    # from a float16 just below the smallest weight, a block of equal weights is held to twice the digits of a float16
    base = _half_below(low)
    for place in range(0, block * LANES, LANES):
        v.store(tile, place, v.maximum(v.load(tile, place) - base, 0.0))
    extent = high - base
    usable = extent > _NEGLIGIBLE
    best = (base, v.splat(0.0), v.splat(np.inf))
    count = starts.size // 2
    for trial in range(count + refinements):
        if trial < count:
            step = extent / starts[2 * trial]
            per_step = v.select(usable, starts[2 * trial] / extent, 0.0)
            offset = v.splat(starts[2 * trial + 1])
        else:
            step = best[1]
            per_step = reciprocal(step)
            offset = (base - best[0]) * per_step
        clipped = weighted or trial >= count
        best = _try_minimum_and_scale(
            tile, weights, weighted, block, clipped, top, sum_w, base, step, per_step, offset, best
        )
    return best[0], best[1]


@inlined
def reciprocal(scale: Floats) -> Floats:
    """Return ``1 / scale``, and 0 where the scale is 0: the code of every weight is 0 then."""
    return v.select(scale != 0.0, 1.0 / scale, 0.0)


@inlined
def nearest_codes(
    rows: FloatArray, start: int, least: float, per_scale: float, zero: float, lowest: int, highest: int
) -> Ints:
    """Return the codes of sixteen weights, those whose decoded weights are nearest, plus ``zero``, as the low byte of each lane.

    ``lowest`` and ``highest`` bound the codes after ``zero`` was added; ``per_scale`` is from :func:`reciprocal`.
    """
    # above 2**23 float32 are the integers, so that one addition rounds, and their bit patterns count up with them
    rounded = (v.load(rows, start) - least) * per_scale + (_ROUNDER + zero)
    return v.minimum(v.maximum(v.bits(rounded), _ROUNDER_BITS + lowest), _ROUNDER_BITS + highest)


# --- float16 --------------------------------------------------------------------------------------------------------------------


@inlined
def _rounded_to_half(value: Floats) -> Floats:
    """Return the nearest finite float16 as float32; a NaN becomes the smallest one."""
    return v.halves_to_floats(v.floats_to_halves(v.minimum(v.maximum(value, -_LARGEST_HALF), _LARGEST_HALF)))


@inlined
def _half_below(value: Floats) -> Floats:
    """Return the largest float16 that is not above ``value``, as float32; where float16 is subnormal, the nearest."""
    value = v.minimum(v.maximum(value, -_LARGEST_HALF), _LARGEST_HALF)
    half = v.floats_to_halves(value)
    nearest = v.halves_to_floats(half)
    below = v.halves_to_floats(v.select(half >= 0x8000, half + 1, half - 1))
    return v.select((nearest > value) & (v.absolute(value) > _SMALLEST_NORMAL_HALF), below, nearest)
