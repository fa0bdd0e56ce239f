"""Signs and scales of super-blocks whose weights are points of a codebook; shared by IQ1, IQ2 and IQ3.

A super-block has one float16 scale ``d``, and each of its sub-blocks an odd factor ``2 l + 1``: a weight is ``d * unit * factor * q``, with a
coordinate ``q`` of a point and a constant ``unit``. The search keeps one sub-block per lane:

1. a real scale per sub-block: from one that puts the largest weight at the largest coordinate downwards, points are chosen for
   a number of scales, the least-squares scale of these points is taken, and the one that leaves the least error stays;
2. ``d`` from these scales: it is tried as a fraction of the largest and of the weightiest scale;
3. *rounds*: each factor and its neighbours are tried, points are chosen exactly, and ``d`` is fitted to all points of the super-block.
   The round that leaves the least error, measured with ``d`` rounded, stays;
4. where there were several rounds, points are chosen exactly for the scales that stayed;
5. in the objective ``ggml``, ``d`` is fitted once more, with the error along the weights counted several times (:func:`fit_along`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

import numpy as np

from ..base import Codec
from ..superblocks import SUPERBLOCK, W, X, balance, load_group, superblock_max, superblock_sum
from ..vectors import simd as v
from ..vectors.kernel import GGML, PLAIN, block_codec, inlined, merged, scratch, scratch_int
from .codebook_points import FLOAT_ROOM, INT_ROOM, SHIFTS, SIGNS, Sums
from .codebook_tables import PointTables

if TYPE_CHECKING:
    from ..vectors.simd import ByteArray, FloatArray, Floats, IntArray

    Measure: TypeAlias = Callable[[FloatArray, IntArray, PointTables, Floats, int, bool], Sums]

__all__ = [
    "LANE_SHIFT",
    "NO_SHIFT",
    "UNITS",
    "Search",
    "codebook_codec",
    "factor_code",
    "fit_along",
    "load_weighted",
    "nearest_half",
    "room",
    "search_scales",
    "take_signs",
    "where_most",
]

UNITS, _FACTORS = FLOAT_ROOM, FLOAT_ROOM + v.LANES
"""Where :func:`search_scales` leaves ``d`` of each lane."""

NO_SHIFT, LANE_SHIFT = 1, 2
"""Values of ``shifts`` in :func:`search_scales`: how many shifts of points are tried."""

ALONG = 5
"""How often the error along the weights counts when ``d`` is fitted, in the objective ``ggml``."""

GROWTH = np.float32(0.04)
"""By what part of itself the squared error may grow for it."""

_FLOAT_ROOM = _FACTORS + v.LANES
_LARGEST_HALF = 65504.0
_HUGE = np.float32(3e38)


class Search(NamedTuple):
    """How hard to search. Fields keep their types, because kernels are compiled for them.

    Attributes:
        first, step, tries: the largest weight is put at coordinate ``first``, ``first + step``, ...
        exact_scales: whether points are chosen exactly for these scales.
        fractions: how many fractions of the largest or weightiest scale are tried as ``d``.
        reach: how many factors on either side are tried, if any.
        exact_factors: whether points are chosen exactly for them.
        rounds: how often factors are tried and ``d`` is fitted; at least 1.
    """

    first: float
    step: float
    tries: int
    exact_scales: bool = False
    fractions: int = 12
    reach: int = 0
    exact_factors: bool = False
    rounds: int = 1


class EncodeTables(Protocol):
    """An encoder that is given tables: arguments as :class:`.EncodeKernel`, less ``effort``."""

    def __call__(
        self,
        rows: FloatArray,
        columns: int,
        importance: FloatArray,
        objective: int,
        search: Search,
        tables: PointTables,
        out: ByteArray,
    ) -> None: ...


def codebook_codec(
    words: IntArray,
    decode: Callable[[ByteArray, IntArray, FloatArray], None],
    encode: EncodeTables,
    searches: Mapping[int, Search],
    tables: Callable[[], PointTables],
) -> Codec:
    """Return the codec of two kernels. ``words`` are the codebook's; ``searches``: by effort; ``tables`` is called by the first encoding."""
    cached = cache(tables)

    def decode_blocks(data: ByteArray, out: FloatArray) -> None:
        decode(data, words, out)

    def encode_rows(
        rows: FloatArray, columns: int, importance: FloatArray, effort: int, objective: int, out: ByteArray
    ) -> None:
        encode(rows, columns, importance, objective, searches[effort], cached(), out)

    return block_codec(decode_blocks, encode_rows)


@merged
def room() -> tuple[FloatArray, IntArray]:
    """Return the scratch arrays of a search; points are not shifted."""
    work, numbers = scratch(_FLOAT_ROOM), scratch_int(INT_ROOM)
    for group in range(0, FLOAT_ROOM - SHIFTS, v.LANES):
        v.store(work, SHIFTS + group, v.splat(0))
    return work, numbers


@merged
def _weigh_by_deviation(work: FloatArray, length: int, spread: float) -> None:
    """Multiply the weights of errors by ``sqrt(spread * mean(x**2) + x**2)``, the mean over the super-block."""
    mean = v.splat(0)
    for place in range(length):
        x = v.load(work, X + place * v.LANES)
        mean += x * x
    mean = superblock_sum(mean, SUPERBLOCK // length) * (spread / SUPERBLOCK)
    for place in range(length):
        x, w = v.load(work, X + place * v.LANES), v.load(work, W + place * v.LANES)
        v.store(work, W + place * v.LANES, w * v.sqrt(mean + x * x))


@merged
def load_weighted(
    rows: FloatArray,
    columns: int,
    importance: FloatArray,
    objective: int,
    spread: float,
    first: int,
    length: int,
    work: FloatArray,
) -> None:
    """Load the group of super-blocks from ``first`` on, and weigh its errors by the objective.

    That of ``ggml`` is ``importance * sqrt(spread * mean(x**2) + x**2)``.
    """
    used = importance[:0] if objective == PLAIN else importance
    load_group(rows, columns, used, first, rows.size // SUPERBLOCK - 1, length, work)
    if objective == GGML:
        _weigh_by_deviation(work, length, spread)
    balance(work, length)


@merged
def take_signs(work: FloatArray, numbers: IntArray, length: int, even: bool) -> None:
    """Replace weights by their magnitudes, and store the signs of each group of eight at ``numbers[SIGNS:]``.

    If ``even``, only an even number of them can be negative: otherwise the weight with the least ``w * x**2`` is given the wrong sign, and
    becomes a negative magnitude. The least ``w * abs(x)`` errs a little less, but on a trained model IQ2_XS diverged 2 % more with it.
    """
    for group in range(length // 8):
        negative, odd = v.splat_int(0), v.splat_int(0)
        cheapest, least = v.splat_int(0), v.splat(_HUGE)
        for i in range(8):
            place = (group * 8 + i) * v.LANES
            x = v.load(work, X + place)
            sign = v.logical_shift(v.bits(x), 31)
            negative |= sign << i
            odd ^= sign
            magnitude = v.absolute(x)
            v.store(work, X + place, magnitude)
            cost = v.load(work, W + place) * magnitude * magnitude
            cheapest, least = v.select(cost < least, v.splat_int(1 << i), cheapest), v.minimum(cost, least)
        if even:
            wrong = v.select(odd == 1, cheapest, 0)
            negative ^= wrong
            for i in range(8):
                place = (group * 8 + i) * v.LANES
                magnitude = v.load(work, X + place)
                v.store(work, X + place, v.select((wrong & 1 << i) == 0, magnitude, -magnitude))
        v.store(numbers, SIGNS + group * v.LANES, negative)


@inlined
def factor_code(work: FloatArray, lane: int) -> int:
    """Return ``l`` of the factor ``2 l + 1`` that was found for ``lane``."""
    return int(work[_FACTORS + lane]) >> 1


@inlined
def nearest_half(value: Floats) -> Floats:
    """Return the nearest finite float16."""
    return v.halves_to_floats(v.floats_to_halves(v.minimum(v.maximum(value, -_LARGEST_HALF), _LARGEST_HALF)))


@merged
def where_most(size: Floats, value: Floats, subblocks: int) -> Floats:
    """Return ``value`` of the lane where ``size`` is largest in the super-block."""
    return superblock_max(v.select(size == superblock_max(size, subblocks), value, -_HUGE), subblocks)


@merged
def _outline(work: FloatArray, length: int) -> tuple[Floats, Floats]:
    """Return the largest weight of each lane, and the sum of ``w x x``."""
    largest, energy = v.splat(0), v.splat(0)
    for place in range(length):
        x = v.load(work, X + place * v.LANES)
        largest = v.maximum(largest, v.absolute(x))
        energy += v.load(work, W + place * v.LANES) * x * x
    return largest, energy


@merged
def _shift_all(work: FloatArray, shift: Floats) -> None:
    for group in range(0, FLOAT_ROOM - SHIFTS, v.LANES):
        v.store(work, SHIFTS + group, shift)


@merged
def _real_scales(
    work: FloatArray, numbers: IntArray, tables: PointTables, measure: Measure, length: int, shifts: int, search: Search
) -> tuple[Floats, Floats, Floats]:
    """Return the best real scale of each lane, how steeply the error grows around it (the sum of ``w q q``), and the sum of ``w x x``."""
    largest, energy = _outline(work, length)
    least = energy
    # to be bettered: a scale that leaves all of the energy
    best = largest * np.float32(1 / search.first)
    steepness = v.select(best > 0, least / best / best, 0)
    shift, best_shift = v.splat(1), v.splat(1)
    trials = search.tries * shifts
    for trial in range(trials + 1):
        scale = best if trial == trials else largest / np.float32(search.first + search.step * (trial // shifts))
        if shifts == LANE_SHIFT:
            shift = best_shift if trial == trials else v.splat(1 - 2 * (trial & 1))
            _shift_all(work, shift)
        sums = measure(work, numbers, tables, scale, length, search.exact_scales)
        change = v.select(sums.qq > 0, sums.rq / sums.qq, 0)
        error = sums.rr - change * sums.rq
        better = (error < least) & (scale + change > 0)
        best, steepness = v.select(better, scale + change, best), v.select(better, sums.qq, steepness)
        least = v.select(better, error, least)
        best_shift = v.select(better, shift, best_shift)
    if shifts == LANE_SHIFT:
        _shift_all(work, best_shift)
    return best, steepness, energy


@merged
def _odd_factor(ratio: Floats, top: int) -> Floats:
    """Return the nearest of 1, 3, ..., ``top``."""
    return v.minimum(v.maximum(v.floor(ratio * 0.5) * 2 + 1, 1), top)


@merged
def _choose_unit(scale: Floats, steepness: Floats, subblocks: int, top: int, trials: int) -> tuple[Floats, Floats]:
    """Return the step of scales (float16 in each super-block) and the factors that suit the real scales best."""
    energy = steepness * scale * scale
    largest, weightiest = superblock_max(scale, subblocks), where_most(energy, scale, subblocks)
    best, factors, least = v.splat(0), v.splat(1), superblock_sum(energy, subblocks)
    for trial in range(trials):
        step = nearest_half((largest if trial & 1 == 0 else weightiest) * np.float32(1 / (top + 2 - (trial >> 1))))
        factor = _odd_factor(scale * v.select(step > 0, 1 / step, 0), top)
        miss = scale - step * factor
        error = superblock_sum(steepness * miss * miss, subblocks)
        better = error < least
        best, factors = v.select(better, step, best), v.select(better, factor, factors)
        least = v.select(better, error, least)
    return best, factors


@inlined
def fit_along(projection: Floats, square: Floats, energy: Floats, step: Floats) -> Floats:
    """Return the ``step``, a float16, that leaves the least error if what is left along the weights counts :data:`ALONG` times.

    Least squares leave ``x - y`` at right angles to the decoded ``y``, so ``y`` is ``x`` shrunk by the share of its energy that is lost, plus noise.
    Noise of many weights averages out in a product; what is shrunk adds up, over the columns of a row, the rows and the layers. The error is
    ``sum w (x - y)**2 + (ALONG - 1) * (sum w x (x - y))**2 / sum w x**2``; the step is not lengthened further than :data:`GROWTH` allows.

    ``projection``, ``square``, ``energy``: sums over the super-block of ``w x z``, ``w z z`` and ``w x x``, for ``y = step * z``.
    """
    usable = (projection > 0) & (energy > 0)
    least = projection / square
    kept = v.minimum(least * (projection / energy), 1)
    longer = v.minimum(ALONG / (1 + (ALONG - 1) * kept), 1 + v.sqrt(GROWTH * (1 - kept)))
    return v.select(usable, nearest_half(least * longer), step)


@merged
def search_scales(
    work: FloatArray,
    numbers: IntArray,
    tables: PointTables,
    measure: Measure,
    length: int,
    unit: float,
    top: int,
    shifts: int,
    objective: int,
    search: Search,
) -> None:
    """Find scales and points for the sub-blocks of ``length`` weights in ``work``; ``top`` is the largest factor.

    Leaves ``d`` at ``work[UNITS:]``, factors for :func:`factor_code` and points at ``numbers[PICKS:]``.
    """
    subblocks = SUPERBLOCK // length
    exact = search.rounds > 0  # always: a constant would have ``measure`` compiled twice
    scale, steepness, energy = _real_scales(work, numbers, tables, measure, length, shifts, search)
    # ``unit`` is a power of two, so a step of float16 is as good as a ``d`` of float16
    step, factor = _choose_unit(scale * (1 / unit), steepness, subblocks, top, search.fractions)
    best, best_factor, least = step, factor, v.splat(_HUGE)
    projection, square = v.splat(0), v.splat(0)
    for _ in range(search.rounds):
        # of neighbouring factors, that with the least error
        centre, smallest = factor, v.splat(_HUGE)
        if search.reach > 0:
            for offset in range(-search.reach, search.reach + 1):
                trial = v.minimum(v.maximum(centre + 2 * offset, 1), top)
                error = measure(work, numbers, tables, step * unit * trial, length, search.exact_factors).rr
                factor, smallest = v.select(error < smallest, trial, factor), v.minimum(error, smallest)
        # the step that fits their points
        grain = unit * factor
        sums = measure(work, numbers, tables, step * grain, length, exact)
        steep = superblock_sum(grain * grain * sums.qq, subblocks)
        slope = superblock_sum(grain * sums.rq, subblocks)
        fitted = nearest_half(step + v.select(steep > 0, slope / steep, 0))
        change = (fitted - step) * grain
        before = superblock_sum(sums.rr, subblocks)
        after = superblock_sum(sums.rr - 2 * change * sums.rq + change * change * sums.qq, subblocks)
        along = step * steep + slope
        fits = (after < before) & (fitted > 0)
        step, after = v.select(fits, fitted, step), v.select(fits, after, before)
        better = after < least
        best, best_factor = v.select(better, step, best), v.select(better, factor, best_factor)
        projection, square = v.select(better, along, projection), v.select(better, steep, square)
        least = v.select(better, after, least)
    if search.rounds > 1:
        grain = unit * best_factor
        sums = measure(work, numbers, tables, best * grain, length, exact)
        square = superblock_sum(grain * grain * sums.qq, subblocks)
        projection = best * square + superblock_sum(grain * sums.rq, subblocks)
    if objective == GGML:
        best = fit_along(projection, square, superblock_sum(energy, subblocks), best)
    v.store(work, UNITS, best)
    v.store(work, _FACTORS, best_factor)
