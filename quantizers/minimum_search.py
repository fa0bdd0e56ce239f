"""The search for a float16 scale and minimum of a block: Q4_1 and Q5_1.

As :mod:`.block_search`, for weights near ``m + d * code``: ``y`` is ``(x - m) / d``, and the sums of ``w r`` and ``w l`` are needed as well.

Without importance a trial takes the sums of ``l``, ``x l`` and ``l l`` only, which is faster, and gets the others by subtraction: of at most 32
steps, rounding leaves enough digits to tell which trial is better.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .block_search import NEGLIGIBLE, reciprocal, rounded_to_half
from .vectors import simd as v
from .vectors.kernel import inlined
from .vectors.simd import LANES

if TYPE_CHECKING:
    from .vectors.simd import FloatArray, Floats

__all__ = ["search_minimum_and_scale"]

_LARGEST_HALF = np.float32(65504.0)
_SMALLEST_NORMAL_HALF = np.float32(2.0**-14)
_NO_LESS = np.float32(1e-38)  # in place of 0, which the bound would need two instructions for


@inlined
def _range(tile: FloatArray, block: int) -> tuple[Floats, Floats]:
    """Return the smallest and the largest weight of each block."""
    # each step waits for the one before: two of each kind, for weights at even and at odd places, wait half as long
    low, low_odd = v.load(tile, 0), v.load(tile, LANES)
    high, high_odd = low, low_odd
    for place in range(2 * LANES, block * LANES, 2 * LANES):
        x, x_odd = v.load(tile, place), v.load(tile, place + LANES)
        low, low_odd = v.minimum(low, x), v.minimum(low_odd, x_odd)
        high, high_odd = v.maximum(high, x), v.maximum(high_odd, x_odd)
    return v.minimum(low, low_odd), v.maximum(high, high_odd)


@inlined
def _subtract(
    tile: FloatArray, weights: FloatArray, weighted: bool, block: int, base: Floats
) -> tuple[Floats, Floats, Floats]:
    """Subtract ``base`` from the tile; return the sum of ``w``, and without importance those of ``x`` and ``x x``."""
    sum_w = v.splat(0.0) if weighted else v.splat(block)
    sum_x, sum_xx, sum_x_odd, sum_xx_odd = v.splat(0.0), v.splat(0.0), v.splat(0.0), v.splat(0.0)
    for place in range(0, block * LANES, 2 * LANES):
        x = v.maximum(v.load(tile, place) - base, _NO_LESS)
        x_odd = v.maximum(v.load(tile, place + LANES) - base, _NO_LESS)
        v.store(tile, place, x)
        v.store(tile, place + LANES, x_odd)
        if weighted:
            sum_w += v.load(weights, place)
            sum_w += v.load(weights, place + LANES)
        else:
            sum_x, sum_x_odd = sum_x + x, sum_x_odd + x_odd
            sum_xx, sum_xx_odd = sum_xx + x * x, sum_xx_odd + x_odd * x_odd
    return sum_w, sum_x + sum_x_odd, sum_xx + sum_xx_odd


@inlined
def _weighted_sums(
    tile: FloatArray,
    weights: FloatArray,
    block: int,
    top: float,
    per_step: Floats,
    offset: Floats,
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Return the sums of ``w r``, ``w l``, ``w r r``, ``w r l`` and ``w l l`` for the codes nearest to ``y = x * per_step + offset``.

    The tile holds weights less the base, and the base has the code ``offset``.
    """
    sum_r, sum_l, sum_rr, sum_rl, sum_ll = v.splat(0.0), v.splat(0.0), v.splat(0.0), v.splat(0.0), v.splat(0.0)
    for place in range(0, block * LANES, LANES):
        y = v.load(tile, place) * per_step + offset
        code = v.minimum(v.maximum(v.round_even(y), 0.0), top)
        residual = y - code
        weight = v.load(weights, place)
        weighted_residual, weighted_code = weight * residual, weight * code
        sum_r += weighted_residual
        sum_l += weighted_code
        sum_rr += weighted_residual * residual
        sum_rl += weighted_residual * code
        sum_ll += weighted_code * code
    return sum_r, sum_l, sum_rr, sum_rl, sum_ll


@inlined
def _even_sums(
    tile: FloatArray,
    block: int,
    clipped: bool,
    top: float,
    sum_x: Floats,
    sum_xx: Floats,
    per_step: Floats,
    offset: Floats,
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Return what :func:`_weighted_sums` does where all ``w`` are 1, given the sums of ``x`` and ``x x``.

    ``clipped``: whether codes can lie outside 0 to ``top`` before they are clipped.
    """
    sum_l, sum_xl, sum_ll = v.splat(0.0), v.splat(0.0), v.splat(0.0)
    for place in range(0, block * LANES, LANES):
        x = v.load(tile, place)
        code = v.round_even(x * per_step + offset)
        if clipped:
            code = v.minimum(v.maximum(code, 0.0), top)
        sum_l += code
        sum_xl += x * code
        sum_ll += code * code
    sum_y = sum_x * per_step + block * offset
    sum_yy = (sum_xx * per_step + 2.0 * sum_x * offset) * per_step + block * (offset * offset)
    sum_yl = sum_xl * per_step + sum_l * offset
    sum_rl = sum_yl - sum_ll
    return sum_y - sum_l, sum_l, sum_yy - sum_yl - sum_rl, sum_rl, sum_ll


@inlined
def _better_minimum_and_scale(
    sums: tuple[Floats, Floats, Floats, Floats, Floats],
    sum_w: Floats,
    base: Floats,
    step: Floats,
    per_step: Floats,
    offset: Floats,
    best: tuple[Floats, Floats, Floats],
) -> tuple[Floats, Floats, Floats]:
    """Return the better of ``best`` and the least-squares fit to the ``sums`` of a trial, both (minimum, scale, error)."""
    sum_r, sum_l, sum_rr, sum_rl, sum_ll = sums
    determinant = sum_w * sum_ll - sum_l * sum_l
    solvable = determinant > 1e-5 * sum_w * sum_ll
    per_ll = 1.0 / v.maximum(sum_ll, NEGLIGIBLE)  # here, so that no division waits for the other
    shift = v.select(solvable, (sum_r * sum_ll - sum_rl * sum_l) / determinant, offset)
    minimum_ = rounded_to_half(base + (shift - offset) * step)
    # the minimum is fixed now; its true shift decides the scale
    shift = (minimum_ - base) * per_step + offset
    scale = rounded_to_half(step + step * ((sum_rl - shift * sum_l) * per_ll))
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
    low, high = _range(tile, block)
    # from a float16 just below the smallest weight, a block of equal weights is held to twice the digits of a float16
    base = _half_below(low)
    sum_w, sum_x, sum_xx = _subtract(tile, weights, weighted, block, base)
    extent = high - base
    per_extent = v.select(extent > NEGLIGIBLE, 1.0 / extent, 0.0)
    best = (base, v.splat(0.0), v.splat(np.inf))
    count = starts.size // 2
    for trial in range(count + refinements):
        if trial < count:
            steps, offset = starts[2 * trial], v.splat(starts[2 * trial + 1])
            step, per_step = extent * (np.float32(1.0) / steps), per_extent * steps
        else:
            step = best[1]
            per_step = reciprocal(step)
            offset = (base - best[0]) * per_step
        if weighted:
            sums = _weighted_sums(tile, weights, block, top, per_step, offset)
        else:
            sums = _even_sums(tile, block, trial >= count, top, sum_x, sum_xx, per_step, offset)
        best = _better_minimum_and_scale(sums, sum_w, base, step, per_step, offset, best)
    return best[0], best[1]


@inlined
def _half_below(value: Floats) -> Floats:
    """Return the largest float16 that is not above ``value``, as float32; where float16 is subnormal, the nearest."""
    value = v.minimum(v.maximum(value, -_LARGEST_HALF), _LARGEST_HALF)
    half = v.floats_to_halves(value)
    nearest = v.halves_to_floats(half)
    below = v.halves_to_floats(v.select(half >= 0x8000, half + 1, half - 1))
    return v.select((nearest > value) & (v.absolute(value) > _SMALLEST_NORMAL_HALF), below, nearest)
