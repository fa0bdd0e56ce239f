"""The search of the k-quants with a scale and a minimum: Q2_K, Q4_K, Q5_K.

A weight of sub-block ``j`` is ``d * scale[j] * code - dmin * minimum[j]``: ``d`` and ``dmin`` are float16 per super-block,
``scale`` and ``minimum`` small integers per sub-block, ``code`` a small integer per weight. All are non-negative. The search
has three steps.

1. *Real scales.* For each sub-block, a few widely spaced inverse scales, of which the first maps its range exactly to all
   codes, each give codes; codes give the least-squares scale and minimum in closed form. One more try starts from the best.
2. *Integer scales.* ``d`` and ``dmin`` are float16 numbers near the largest scale and minimum divided by their largest
   integer, those of a few that all real scales and minima are best rounded to multiples of. Then each sub-block tries the
   integers around its real scale, each with the two around the minimum that goes with it, by the true error of its weights.
3. *Refinement.* ``d`` and ``dmin`` become the least-squares ones of these integers, the integers are searched again, and
   each super-block keeps the better of before and after.

Residuals rather than moments of the weights enter the refinement, so that nothing cancels where weights share an offset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..superblocks import GROUP_SCRATCH, SUPERBLOCK, W, X, superblock_max, superblock_sum
from ..vectors import simd as v
from ..vectors.kernel import inlined, merged

if TYPE_CHECKING:
    from ..vectors.simd import FloatArray, Floats

__all__ = ["AFFINE_SCRATCH", "DMIN", "INVERSE", "MINIMUM", "OFFSET", "SCALE", "D", "affine_code", "affine_search"]

# results of the search, one float per lane; d and dmin are already float16 numbers
D, DMIN, SCALE, MINIMUM, INVERSE, OFFSET = (GROUP_SCRATCH + row * v.LANES for row in range(6))
AFFINE_SCRATCH = GROUP_SCRATCH + 6 * v.LANES
"""Floats of scratch that :func:`affine_search` takes."""

_HUGE = 3e38
# a lower bound of zero itself would be a comparison and a mask, where any other is one instruction
_ROUNDS_TO_ZERO = 1e-30
_SMALLEST_HALF = 2.0**-24
# a determinant below this share of its first term is mostly rounding: the codes that count are all alike
_DEGENERATE = 1e-3
# errors that differ by less than this share of the weights' own sum of squares are equal: real scales of alike sub-blocks
# must not scatter
_NOISE = 1e-6
# a sub-block that counts for less than this share of another has no say in the common step
_NEGLIGIBLE = 1e-12
# candidates of a common step: integers from the largest down that the largest scale is to be, and halvings of it
_STEPS, _OCTAVES = 4, 3


@inlined
def affine_code(x: Floats, inverse: Floats, offset: Floats, top: int) -> Floats:
    """Return the code of ``x``: ``x * inverse + offset`` rounded into 0 ... ``top``."""
    return v.round_even(v.minimum(v.maximum(x * inverse + offset, _ROUNDS_TO_ZERO), top))


@inlined
def _reciprocal(value: Floats) -> Floats:
    """Return 1 / value, or 0 where value is not positive."""
    positive = value > 0
    return v.select(positive, 1 / v.select(positive, value, 1.0), 0.0)


@inlined
def _fit(scratch: FloatArray, length: int, top: int, inverse: Floats, offset: Floats) -> tuple[Floats, Floats, Floats]:
    """Return sums over the weights of w * code, w * code**2 and w * x * code for the codes at ``inverse`` and ``offset``."""
    codes = v.splat(0)
    squares = v.splat(0)
    products = v.splat(0)
    for place in range(length):
        x = v.load(scratch, X + place * v.LANES)
        code = affine_code(x, inverse, offset, top)
        weighted = v.load(scratch, W + place * v.LANES) * code
        codes += weighted
        squares += weighted * code
        products += weighted * x
    return codes, squares, products


@inlined
def _real_scales(
    scratch: FloatArray, length: int, top: int, first: float, step: float, tries: int
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Return the least-squares scale and minimum of each sub-block, the curvatures of its error along the two, and its sum of w * x.

    Candidates of the inverse scale are ``top / range`` and ``(top + first + step * k) / range``.
    """
    lowest = v.splat(_HUGE)
    highest = v.splat(-_HUGE)
    sum_w = v.splat(0)
    sum_x = v.splat(0)
    sum_xx = v.splat(0)
    for place in range(length):
        x = v.load(scratch, X + place * v.LANES)
        w = v.load(scratch, W + place * v.LANES)
        counts = w > 0
        lowest = v.minimum(lowest, v.select(counts, x, lowest))
        highest = v.maximum(highest, v.select(counts, x, highest))
        sum_w += w
        sum_x += w * x
        sum_xx += w * x * x
    lowest = v.minimum(lowest, 0.0)
    extent = v.maximum(highest - lowest, 0.0)
    per_range = _reciprocal(extent)
    best = v.splat(_HUGE)
    scale = extent * (1 / top)
    minimum = -lowest
    curvature = sum_w
    noise = sum_xx * _NOISE
    for k in range(tries + 2):
        if k <= tries:
            inverse = per_range * (top + (first + step * (k - 1) if k > 0 else 0))
            offset = -lowest * inverse
        else:
            inverse = _reciprocal(scale)
            offset = minimum * inverse
        codes, squares, products = _fit(scratch, length, top, inverse, offset)
        determinant = sum_w * squares - codes * codes
        sound = determinant > sum_w * squares * _DEGENERATE
        share = 1 / v.select(sound, determinant, 1.0)
        new_scale = (sum_w * products - sum_x * codes) * share
        new_minimum = (codes * products - squares * sum_x) * share
        usable = sound & (new_minimum > 0)
        new_scale = v.select(usable, new_scale, products * _reciprocal(squares))
        new_minimum = v.select(usable, new_minimum, 0.0)
        error = sum_xx - new_scale * products + new_minimum * sum_x
        better = (error < best - noise) & (new_scale > 0)
        best = v.select(better, error, best)
        scale = v.select(better, new_scale, scale)
        minimum = v.select(better, new_minimum, minimum)
        stiffness = v.select(usable, determinant * _reciprocal(sum_w), squares)
        curvature = v.select(better, stiffness, curvature)
    return scale, minimum, curvature, sum_w, sum_x


@inlined
def _to_half(value: Floats) -> Floats:
    """Return the nearest positive float16 number of positive lanes, never rounded to zero, and 0 for the others."""
    bounded = v.minimum(v.maximum(value, _SMALLEST_HALF), 65504.0)
    return v.select(value > 0, v.halves_to_floats(v.floats_to_halves(bounded)), 0.0)


@inlined
def _bounded(value: Floats, top: int) -> Floats:
    return v.minimum(v.maximum(value, 0.0), top)


@inlined
def _largest_that_counts(real: Floats, curvature: Floats, subblocks: int) -> Floats:
    counting = curvature > superblock_max(curvature, subblocks) * _NEGLIGIBLE
    return superblock_max(v.select(counting, real, 0.0), subblocks)


@inlined
def _step_error(step: Floats, real: Floats, curvature: Floats, largest: int, subblocks: int) -> Floats:
    residual = real - _bounded(v.round_even(real * _reciprocal(step)), largest) * step
    return superblock_sum(curvature * residual * residual, subblocks)


@inlined
def _common_steps(
    scale: Floats, scale_curvature: Floats, minimum: Floats, minimum_curvature: Floats, largest: int, subblocks: int
) -> tuple[Floats, Floats]:
    """Return the float16 numbers of each super-block that real scales and real minima are best rounded to multiples of.

    Each counts by its curvature. Candidates make the largest number that counts an integer near ``largest``, or a half, a
    quarter and an eighth of it: a lone large number is met more closely where float16 has more digits. The two searches share
    a loop because either is one long chain of dependent operations.
    """
    largest_scale = _largest_that_counts(scale, scale_curvature, subblocks)
    largest_minimum = _largest_that_counts(minimum, minimum_curvature, subblocks)
    best_scale = v.splat(_HUGE)
    best_minimum = v.splat(_HUGE)
    d = v.splat(0)
    dmin = v.splat(0)
    for k in range(_STEPS + _OCTAVES):
        multiple = largest - k if k < _STEPS else largest >> (k - _STEPS + 1)
        share = np.float32(1 / multiple)
        new_d, new_dmin = _to_half(largest_scale * share), _to_half(largest_minimum * share)
        scale_error = _step_error(new_d, scale, scale_curvature, largest, subblocks)
        minimum_error = _step_error(new_dmin, minimum, minimum_curvature, largest, subblocks)
        better = scale_error < best_scale
        best_scale = v.select(better, scale_error, best_scale)
        d = v.select(better, new_d, d)
        better = minimum_error < best_minimum
        best_minimum = v.select(better, minimum_error, best_minimum)
        dmin = v.select(better, new_dmin, dmin)
    return d, dmin


@inlined
def _errors(
    scratch: FloatArray, length: int, top: int, scale: Floats, below: Floats, above: Floats
) -> tuple[Floats, Floats]:
    """Return sums of w * r**2 over the weights of each sub-block at two minima, ``r`` being what quantization leaves of a weight."""
    inverse = _reciprocal(scale)
    offset_below = below * inverse
    offset_above = above * inverse
    error_below = v.splat(0)
    error_above = v.splat(0)
    for place in range(length):
        x = v.load(scratch, X + place * v.LANES)
        w = v.load(scratch, W + place * v.LANES)
        residual = (x + below) - affine_code(x, inverse, offset_below, top) * scale
        error_below += w * residual * residual
        residual = (x + above) - affine_code(x, inverse, offset_above, top) * scale
        error_above += w * residual * residual
    return error_below, error_above


@inlined
def _integer_scales(
    scratch: FloatArray,
    length: int,
    top: int,
    largest: int,
    reach: int,
    d: Floats,
    dmin: Floats,
    scale: Floats,
    minimum: Floats,
    mean: Floats,
) -> tuple[Floats, Floats, Floats]:
    """Return the least error and its integers: scales up to ``reach`` steps from the real ``scale``, each with two minima.

    The minima are the integers on either side of the one that keeps the mean residual at zero while the codes stay as they are.
    ``mean`` is the mean weight of each sub-block.
    """
    mean_code = (mean + minimum * dmin) * _reciprocal(scale * d)
    slope = mean_code * d * _reciprocal(dmin)
    nearest = v.round_even(scale)
    best = v.splat(_HUGE)
    best_scale = _bounded(nearest, largest)
    best_minimum = _bounded(v.round_even(minimum), largest)
    for change in range(-reach, reach + 1):
        new_scale = _bounded(nearest + change, largest)
        floor = v.floor(minimum + (new_scale - scale) * slope)
        below, above = _bounded(floor, largest), _bounded(floor + 1, largest)
        error, error_above = _errors(scratch, length, top, new_scale * d, below * dmin, above * dmin)
        new_minimum = v.select(error_above < error, above, below)
        error = v.minimum(error_above, error)
        better = error < best
        best = v.select(better, error, best)
        best_scale = v.select(better, new_scale, best_scale)
        best_minimum = v.select(better, new_minimum, best_minimum)
    return best, best_scale, best_minimum


@inlined
def _refit(
    scratch: FloatArray, length: int, top: int, d: Floats, dmin: Floats, scale: Floats, minimum: Floats
) -> tuple[Floats, Floats]:
    """Return the least-squares ``d`` and ``dmin`` of each super-block for the integers and codes at hand."""
    subblocks = SUPERBLOCK // length
    step = scale * d
    floor = minimum * dmin
    inverse = _reciprocal(step)
    offset = floor * inverse
    sum_w = v.splat(0)
    codes = v.splat(0)
    squares = v.splat(0)
    drift = v.splat(0)
    slope = v.splat(0)
    for place in range(length):
        x = v.load(scratch, X + place * v.LANES)
        w = v.load(scratch, W + place * v.LANES)
        code = affine_code(x, inverse, offset, top)
        weighted = w * code
        residual = (x + floor) - code * step
        sum_w += w
        codes += weighted
        squares += weighted * code
        drift += w * residual
        slope += weighted * residual
    dd = superblock_sum(scale * scale * squares, subblocks)
    dm = superblock_sum(scale * minimum * codes, subblocks)
    mm = superblock_sum(minimum * minimum * sum_w, subblocks)
    toward_d = superblock_sum(scale * slope, subblocks)
    toward_dmin = -superblock_sum(minimum * drift, subblocks)
    determinant = dd * mm - dm * dm
    sound = determinant > dd * mm * _DEGENERATE
    share = 1 / v.select(sound, determinant, 1.0)
    alone = toward_d * _reciprocal(dd)
    new_d = _to_half(d + v.select(sound, (mm * toward_d + dm * toward_dmin) * share, alone))
    # the best dmin beside the d that rounding left, not beside the exact one
    new_dmin = _to_half(dmin + (toward_dmin + dm * (new_d - d)) * _reciprocal(mm))
    return new_d, new_dmin


@merged
def affine_search(
    scratch: FloatArray,
    length: int,
    top: int,
    largest: int,
    first: float,
    step: float,
    tries: int,
    refinements: int,
    first_reach: int,
    reach: int,
) -> None:
    """Quantize the group in ``scratch`` and leave the result in its rows ``D`` ... ``OFFSET``.

    Args:
        scratch: what ``load_group`` filled, ``AFFINE_SCRATCH`` floats.
        length: weights of a sub-block, 16 or 32.
        top: largest code.
        largest: largest integer scale and minimum.
        first, step, tries: the candidates of step 1 map the range of a sub-block to ``top`` and to ``top + first + step * k``.
        refinements: how often step 3 is taken.
        first_reach: how many integer scales to either side step 2 tries.
        reach: how many step 3 tries.
    """
    subblocks = SUPERBLOCK // length
    real_scale, real_minimum, curvature, sum_w, sum_x = _real_scales(scratch, length, top, first, step, tries)
    mean = sum_x * _reciprocal(sum_w)
    d, dmin = _common_steps(real_scale, curvature, real_minimum, sum_w, largest, subblocks)
    error, scale, minimum = _integer_scales(
        scratch,
        length,
        top,
        largest,
        first_reach,
        d,
        dmin,
        real_scale * _reciprocal(d),
        real_minimum * _reciprocal(dmin),
        mean,
    )
    total = superblock_sum(error, subblocks)
    for _ in range(refinements):
        new_d, new_dmin = _refit(scratch, length, top, d, dmin, scale, minimum)
        error, new_scale, new_minimum = _integer_scales(
            scratch,
            length,
            top,
            largest,
            reach,
            new_d,
            new_dmin,
            scale * d * _reciprocal(new_d),
            minimum * dmin * _reciprocal(new_dmin),
            mean,
        )
        new_total = superblock_sum(error, subblocks)
        better = new_total < total
        total = v.select(better, new_total, total)
        d = v.select(better, new_d, d)
        dmin = v.select(better, new_dmin, dmin)
        scale = v.select(better, new_scale, scale)
        minimum = v.select(better, new_minimum, minimum)
    inverse = _reciprocal(scale * d)
    v.store(scratch, D, d)
    v.store(scratch, DMIN, dmin)
    v.store(scratch, SCALE, scale)
    v.store(scratch, MINIMUM, minimum)
    v.store(scratch, INVERSE, inverse)
    v.store(scratch, OFFSET, minimum * dmin * inverse)
