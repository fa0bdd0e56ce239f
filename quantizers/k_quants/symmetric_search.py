"""The search of the k-quants without a minimum: Q3_K and Q6_K.

A weight of sub-block ``j`` is ``d * scale[j] * code``: ``d`` is float16 per super-block, ``scale`` a small integer per
sub-block, ``code`` one per weight. Codes reach from ``-bottom`` to ``bottom - 1``, so the weight that is largest in absolute
value takes the side with one code more, and scales have a sign. The steps are those of :mod:`.affine_search`: a few widely
spaced real scales with their least-squares fit; the ``d`` that they are best rounded to multiples of, and the integers around
them by the true error; a least-squares ``d`` for these and the integers again, keeping the better for each super-block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..superblocks import GROUP_SCRATCH, W, X
from ..vectors import simd as v
from ..vectors.kernel import inlined, merged

if TYPE_CHECKING:
    from ..vectors.simd import FloatArray, Floats
    from ..vectors.simd_values import Real

__all__ = ["INVERSE", "LENGTH", "SCALE", "SYMMETRIC_SCRATCH", "symmetric_code", "symmetric_search"]

LENGTH = 16
"""Weights of a sub-block; sixteen sub-blocks are one super-block and fill the lanes."""

# results of the search, one float per lane
SCALE, INVERSE = GROUP_SCRATCH, GROUP_SCRATCH + v.LANES
SYMMETRIC_SCRATCH = GROUP_SCRATCH + 2 * v.LANES
"""Floats of scratch that :func:`symmetric_search` takes."""

_HUGE = 3e38
_SMALLEST_HALF = 2.0**-24
# sums that differ by less are equal: real scales of alike sub-blocks must not scatter by rounding
_NOISE = 1.0000005
# a sub-block that counts for less than this share of another has no say in the common step
_NEGLIGIBLE = 1e-12
_OCTAVES = 3


@inlined
def symmetric_code(x: Floats, inverse: Floats, bottom: int) -> Floats:
    """Return the code of ``x``: ``x * inverse`` rounded into ``-bottom`` ... ``bottom - 1``."""
    return v.round_even(v.minimum(v.maximum(x * inverse, -bottom), bottom - 1))


@inlined
def _reciprocal(value: Floats) -> Floats:
    """Return 1 / value, or 0 where value is 0."""
    zero = value == 0
    return v.select(zero, v.splat(0), 1 / v.select(zero, v.splat(1), value))


@inlined
def _real_scales(scratch: FloatArray, bottom: int, first: float, step: float, tries: int) -> tuple[Floats, Floats]:
    """Return the least-squares scale of each sub-block and the sum of w * code**2 that its codes have.

    Candidates map its extreme to ``-bottom`` and to ``-(bottom + first + step * k)``.
    """
    highest = v.splat(0)
    lowest = highest
    for place in range(LENGTH):
        counts = v.load(scratch, W + place * v.LANES) > 0
        x = v.select(counts, v.load(scratch, X + place * v.LANES), 0.0)
        highest = v.maximum(highest, x)
        lowest = v.minimum(lowest, x)
    per_extreme = -_reciprocal(v.select(highest > -lowest, highest, lowest))
    gained = v.splat(0)
    scale = v.splat(0)
    curvature = v.splat(0)
    for k in range(tries + 2):
        if k <= tries:
            inverse = per_extreme * (bottom + (first + step * (k - 1) if k > 0 else 0))
        else:
            inverse = _reciprocal(scale)
        squares = v.splat(0)
        products = v.splat(0)
        for place in range(LENGTH):
            x = v.load(scratch, X + place * v.LANES)
            code = symmetric_code(x, inverse, bottom)
            weighted = v.load(scratch, W + place * v.LANES) * code
            squares += weighted * code
            products += weighted * x
        fitted = products * _reciprocal(squares)
        gain = fitted * products
        better = gain > gained * _NOISE
        gained = v.select(better, gain, gained)
        scale = v.select(better, fitted, scale)
        curvature = v.select(better, squares, curvature)
    return scale, curvature


@inlined
def _to_half(value: Real) -> Real:
    """Return the nearest finite float16 number, of magnitude 2**-24 at least unless ``value`` is 0."""
    if 0 < value < _SMALLEST_HALF:
        return np.float32(_SMALLEST_HALF)
    if -_SMALLEST_HALF < value < 0:
        return np.float32(-_SMALLEST_HALF)
    return v.half_to_float(v.saturating_half(value))


@inlined
def _common_step(real: Floats, curvature: Floats, largest: int, tries: int) -> Real:
    """Return the ``d``, a float16 number, that real scales are best rounded to multiples of.

    Each counts by its ``curvature``. Candidates make the largest scale that counts an integer near ``-largest``, or a half, a
    quarter and an eighth of it: a lone large scale is met more closely where float16 has more digits.
    """
    counting = v.select(curvature > v.lane_max(curvature) * _NEGLIGIBLE, real, 0.0)
    highest, lowest = v.lane_max(counting), v.lane_min(counting)
    extreme = highest if highest > -lowest else lowest
    best: Real = np.float32(_HUGE)
    chosen = _to_half(extreme * np.float32(-1 / largest))
    for k in range(tries + _OCTAVES):
        multiple = largest - k if k < tries else largest >> (k - tries + 1)
        d = _to_half(extreme * np.float32(-1 / multiple))
        nearest = v.minimum(v.maximum(v.round_even(real * _reciprocal(v.splat(d))), -largest), largest - 1)
        residual = real - nearest * d
        error = v.lane_sum(curvature * residual * residual)
        if error < best:
            best = error
            chosen = d
    return chosen


@inlined
def _integer_scales(
    scratch: FloatArray, bottom: int, largest: int, reach: int, d: Floats, scale: Floats
) -> tuple[Floats, Floats]:
    """Return the least error of each sub-block and its integer: up to ``reach`` steps from the real ``scale``."""
    nearest = v.round_even(scale)
    best = v.splat(_HUGE)
    chosen = v.splat(0)
    for change in range(-reach, reach + 1):
        trial = v.minimum(v.maximum(nearest + change, -largest), largest - 1)
        size = trial * d
        inverse = _reciprocal(size)
        error = v.splat(0)
        for place in range(LENGTH):
            x = v.load(scratch, X + place * v.LANES)
            residual = x - symmetric_code(x, inverse, bottom) * size
            error += v.load(scratch, W + place * v.LANES) * residual * residual
        better = error < best
        best = v.select(better, error, best)
        chosen = v.select(better, trial, chosen)
    return best, chosen


@inlined
def _refit(scratch: FloatArray, bottom: int, d: Real, scale: Floats) -> Real:
    """Return the least-squares ``d`` for the integers and codes at hand."""
    size = scale * d
    inverse = _reciprocal(size)
    squares = v.splat(0)
    slope = v.splat(0)
    for place in range(LENGTH):
        x = v.load(scratch, X + place * v.LANES)
        code = symmetric_code(x, inverse, bottom)
        weighted = v.load(scratch, W + place * v.LANES) * code
        squares += weighted * code
        slope += weighted * (x - code * size)
    curvature = v.lane_sum(scale * scale * squares)
    return d + v.lane_sum(scale * slope) / curvature if curvature > 0 else d


@merged
def symmetric_search(
    scratch: FloatArray,
    bottom: int,
    largest: int,
    first: float,
    step: float,
    tries: int,
    refinements: int,
    reach: int,
) -> Real:
    """Quantize the super-block in ``scratch``; return ``d``, a float16 number, and leave the rest in rows ``SCALE`` and ``INVERSE``.

    Args:
        scratch: what ``load_group`` filled, ``SYMMETRIC_SCRATCH`` floats.
        bottom: codes are ``-bottom`` ... ``bottom - 1``.
        largest: integer scales are ``-largest`` ... ``largest - 1``.
        first, step, tries: the candidates of step 1 map the extreme of a sub-block to ``-(bottom + first + step * k)``.
        refinements: how often ``d`` is fitted anew.
        reach: how many integer scales to either side are tried.
    """
    real, curvature = _real_scales(scratch, bottom, first, step, tries)
    d = _common_step(real, curvature, largest, min(8, largest // 4))
    errors, scale = _integer_scales(scratch, bottom, largest, reach, v.splat(d), real * _reciprocal(v.splat(d)))
    total = v.lane_sum(errors)
    for _ in range(refinements):
        new_d = _to_half(_refit(scratch, bottom, d, scale))
        start = scale * v.splat(d) * _reciprocal(v.splat(new_d))
        errors, new_scale = _integer_scales(scratch, bottom, largest, reach, v.splat(new_d), start)
        new_total = v.lane_sum(errors)
        if new_total < total:
            total = new_total
            d = new_d
            scale = new_scale
    v.store(scratch, SCALE, scale)
    v.store(scratch, INVERSE, _reciprocal(scale * d))
    return d
