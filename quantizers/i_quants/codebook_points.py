"""The point of a codebook that is nearest to weights, in vectors: a rough search by one look-up, and an exact one.

Sixteen sub-blocks, one per lane, lie transposed in scratch (:mod:`.superblocks`); their groups of four or eight weights are searched one after
the other. A point costs the sum over its coordinates ``q`` of ``w * (x - scale * q)**2``.

**Rough**: each coordinate of ``x / scale`` falls into one of 16 cells (four coordinates) or 4 cells (eight), and a table of 65536 entries
has the point that is nearest to the middle of all of them. It knows nothing of ``w``, but is an order of magnitude faster than the

**exact** search. A point is a pair of *patterns*, of the first and second half of its coordinates, of which there are few (8 * 8 or
3 ** 4), so each pattern's cost is computed once. Which pairs are points is a matrix of bits. It is covered by rectangles, and the
cheapest point of a rectangle is the cheapest of its first patterns with the cheapest of its second: a rectangle of 8 by 10 takes 18
steps instead of 80. Costs are integers, in units of 2**-17 of the largest of the group, above the number of the pattern: the
minimum brings its own index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..superblocks import GROUP_SCRATCH, W, X
from ..vectors import simd as v
from ..vectors.kernel import inlined, merged, subroutine
from .codebook import pair
from .codebook_tables import LARGE, PATTERN_BITS, POINTS, SMALL, PointTables

if TYPE_CHECKING:
    from ..vectors.simd import ByteArray, FloatArray, Floats, IntArray, Ints

__all__ = [
    "FLOAT_ROOM",
    "INT_ROOM",
    "PICKS",
    "SHIFTS",
    "SIGNS",
    "Sums",
    "measure_eight",
    "measure_four",
    "measure_shifted",
]

SHIFTS = GROUP_SCRATCH
FLOAT_ROOM = SHIFTS + 4 * v.LANES
"""Floats of scratch: those of :mod:`.superblocks`, then what all coordinates of a point are shifted by, a vector for each group of eight."""

SIGNS, PICKS = 0, 4 * v.LANES
_DIGITS = PICKS + 8 * v.LANES
_PATTERNS = _DIGITS + 4 * 9 * v.LANES
INT_ROOM = _PATTERNS + 2 * 81 * v.LANES
"""Integers of scratch: sign bits of groups of eight, points of groups, and the costs of patterns."""

_COST_RANGE = 2.0**31 * (1 - 2**-20)  # less what rounding may add
_LEAST_COST = 1e-30
_HUGE = np.float32(3e38)


class Sums(NamedTuple):
    """Sums over the weights of each lane, with ``r = x - scale * q``: of ``w r r``, ``w r q`` and ``w q q``."""

    rr: Floats
    rq: Floats
    qq: Floats


# --- searches -------------------------------------------------------------------------------------------------------------------


@merged
def _least_of(numbers: IntArray, patterns: ByteArray, start: int, count: int) -> Ints:
    """Return the least cost of ``count`` patterns."""
    least = v.load_int(numbers, _PATTERNS + v.load_short(patterns, start))
    for member in range(1, count):
        least = v.minimum(least, v.load_int(numbers, _PATTERNS + v.load_short(patterns, start + 2 * member)))
    return least


@merged
def _cheapest(numbers: IntArray, tables: PointTables) -> Ints:
    """Return the cheapest point by the costs of all patterns at ``_PATTERNS``."""
    least = v.splat_int(0x7FFFFFFF)
    for start in range(0, tables.large, 2 * (LARGE[0] + LARGE[1])):
        first = _least_of(numbers, tables.rectangles, start, LARGE[0])
        least = v.minimum(least, first + _least_of(numbers, tables.rectangles, start + 2 * LARGE[0], LARGE[1]))
    for start in range(tables.large, tables.rectangles.size, 2 * (SMALL[0] + SMALL[1])):
        first = _least_of(numbers, tables.rectangles, start, SMALL[0])
        least = v.minimum(least, first + _least_of(numbers, tables.rectangles, start + 2 * SMALL[0], SMALL[1]))
    return v.gather_int(tables.numbers, (least & (1 << 2 * PATTERN_BITS) - 1) + POINTS)


@merged
def _combine(numbers: IntArray, width: int) -> None:
    """Add the costs of ``width`` digits of either half's two places to those of all patterns."""
    for half in range(2):
        for j in range(width):
            row = v.load_int(numbers, _DIGITS + (2 * half * width + j) * v.LANES)
            target = _PATTERNS + (half * width + j) * width * v.LANES
            for k in range(width):
                cost = row + v.load_int(numbers, _DIGITS + ((2 * half + 1) * width + k) * v.LANES)
                v.store(numbers, target + k * v.LANES, cost)


@inlined
def _unit(largest: Floats) -> Floats:
    """Return what costs are multiplied by to become integers."""
    return v.select(largest > _LEAST_COST, _COST_RANGE / largest, 0)


@inlined
def _digit(cost: Floats, value: int, table: int) -> Ints:
    """Return an integer cost above the contribution of a digit to the number of its pattern."""
    return v.to_int(cost) & -1 << 2 * PATTERN_BITS | (value << PATTERN_BITS if table < 2 else value)


@merged
def _exact_eight(
    work: FloatArray, numbers: IntArray, tables: PointTables, scale: Floats, offset: Floats, group: int
) -> Ints:
    low, high = scale * tables.levels[0], scale * tables.levels[2]
    largest = v.splat(0)
    for i in range(8):
        place = (group * 8 + i) * v.LANES
        x, w = v.load(work, X + place) - offset, v.load(work, W + place)
        below, above = v.absolute(x - low), v.absolute(x - high)
        worst = v.maximum(below, above)
        largest += w * worst * worst
    unit = _unit(largest)
    for table in range(4):
        place = (group * 8 + 2 * table) * v.LANES
        x0, w0 = v.load(work, X + place) - offset, v.load(work, W + place) * unit
        x1, w1 = v.load(work, X + place + v.LANES) - offset, v.load(work, W + place + v.LANES) * unit
        for j in range(3):
            miss = x0 - scale * tables.levels[j]
            cost = w0 * miss * miss
            for k in range(3):
                miss = x1 - scale * tables.levels[k]
                number = (3 * j + k) * (9 if table & 1 == 0 else 1)
                target = _DIGITS + (9 * table + 3 * j + k) * v.LANES
                v.store(numbers, target, _digit(cost + w1 * miss * miss, number, table))
    _combine(numbers, 9)
    return _cheapest(numbers, tables)


@merged
def _exact_four(work: FloatArray, numbers: IntArray, tables: PointTables, scale: Floats, group: int) -> Ints:
    low, high = scale * tables.levels[0], scale * tables.levels[7]
    largest = v.splat(0)
    for i in range(4):
        place = (group * 4 + i) * v.LANES
        x = v.load(work, X + place)
        worst = v.maximum(v.absolute(x - low), v.absolute(x - high))
        largest += v.load(work, W + place) * worst * worst
    unit = _unit(largest)
    for table in range(4):
        place = (group * 4 + table) * v.LANES
        x, w = v.load(work, X + place), v.load(work, W + place) * unit
        for j in range(8):
            miss = x - scale * tables.levels[j]
            number = j * (8 if table & 1 == 0 else 1)
            v.store(numbers, _DIGITS + (8 * table + j) * v.LANES, _digit(w * miss * miss, number, table))
    _combine(numbers, 8)
    return _cheapest(numbers, tables)


@inlined
def _add_word(work: FloatArray, place: int, word: Ints, scale: Floats, sums: Sums) -> Sums:
    """Add four weights at ``place`` and the coordinates in ``word`` to the sums."""
    rr, rq, qq = sums
    for i in range(4):
        q = v.to_float(word << 24 - 8 * i >> 24)
        w = v.load(work, W + (place + i) * v.LANES)
        residual = v.load(work, X + (place + i) * v.LANES) - scale * q
        weighted = w * residual
        rr += weighted * residual
        rq += weighted * q
        qq += w * q * q
    return Sums(rr, rq, qq)


@merged
def _rough_eight(work: FloatArray, tables: PointTables, inverse: Floats, shift: Floats, group: int) -> Ints:
    first = tables.levels[4] - shift * tables.levels[3]
    key = v.splat_int(0)
    for i in range(8):
        cell = v.load(work, X + (group * 8 + i) * v.LANES) * inverse + first
        key |= v.to_int(v.minimum(v.maximum(cell, 0), 3)) << 2 * i
    return v.gather_int(tables.numbers, key)


@merged
def _add_point(work: FloatArray, tables: PointTables, group: int, pick: Ints, scale: Floats, sums: Sums) -> Sums:
    lower, upper = pair(tables.words, pick)
    sums = _add_word(work, group * 8, lower, scale, sums)
    return _add_word(work, group * 8 + 4, upper, scale, sums)


@subroutine
def measure_eight(
    work: FloatArray, numbers: IntArray, tables: PointTables, scale: Floats, length: int, exact: bool
) -> Sums:
    """Choose the points of all groups of eight weights at these scales, one per lane, and return the sums of what is left.

    ``length``: weights per lane. The points are stored at ``numbers[PICKS:]``.
    """
    inverse = v.select(scale > 0, tables.levels[3] / scale, 0)
    sums = Sums(v.splat(0), v.splat(0), v.splat(0))
    for group in range(length // 8):
        shift = v.load(work, SHIFTS + group * v.LANES)
        if exact:
            pick = _exact_eight(work, numbers, tables, scale, scale * shift, group)
        else:
            pick = _rough_eight(work, tables, inverse, shift, group)
        pick += v.select(shift < 0, v.splat_int(tables.shifted), 0)
        v.store(numbers, PICKS + group * v.LANES, pick)
        sums = _add_point(work, tables, group, pick, scale, sums)
    return sums


@merged
def _least_error(
    work: FloatArray, tables: PointTables, scale: Floats, inverse: Floats, shift: Floats, group: int
) -> Floats:
    """Return the error of eight weights if all combinations of coordinates were points."""
    spacing = tables.levels[1] - tables.levels[0]
    error = v.splat(0)
    for i in range(8):
        place = (group * 8 + i) * v.LANES
        x = v.load(work, X + place)
        nearest = v.minimum(v.maximum(v.round_even((x * inverse - shift) * (1 / spacing)), -1), 1)
        miss = x - scale * (nearest * spacing + shift)
        error += v.load(work, W + place) * miss * miss
    return error


@subroutine
def measure_shifted(
    work: FloatArray, numbers: IntArray, tables: PointTables, scale: Floats, length: int, exact: bool
) -> Sums:
    """Do the same where each group is shifted up or down, whichever leaves the lesser error, of all combinations if ``exact``."""
    inverse = v.select(scale > 0, 1 / scale, 0)
    nothing = v.splat(0)
    rr, rq, qq = nothing, nothing, nothing
    for group in range(length // 8):
        least, best_shift, pick = v.splat(_HUGE), nothing, v.splat_int(0)
        best = Sums(nothing, nothing, nothing)
        for direction in range(2):
            shift = v.splat(1 - 2 * direction)
            if exact:
                error = _least_error(work, tables, scale, inverse, shift, group)
            else:
                trial = (
                    _rough_eight(work, tables, inverse * tables.levels[3], shift, group) + direction * tables.shifted
                )
                sums = _add_point(work, tables, group, trial, scale, Sums(nothing, nothing, nothing))
                error = sums.rr
                better = error < least
                pick = v.select(better, trial, pick)
                best = Sums(error, v.select(better, sums.rq, best.rq), v.select(better, sums.qq, best.qq))
            best_shift = v.select(error < least, shift, best_shift)
            least = v.minimum(error, least)
        if exact:
            pick = _exact_eight(work, numbers, tables, scale, scale * best_shift, group)
            pick += v.select(best_shift < 0, v.splat_int(tables.shifted), 0)
            best = _add_point(work, tables, group, pick, scale, Sums(nothing, nothing, nothing))
            least = best.rr
        rr, rq, qq = rr + least, rq + best.rq, qq + best.qq
        v.store(numbers, PICKS + group * v.LANES, pick)
    return Sums(rr, rq, qq)


@subroutine
def measure_four(
    work: FloatArray, numbers: IntArray, tables: PointTables, scale: Floats, length: int, exact: bool
) -> Sums:
    """Do the same for groups of four weights."""
    inverse = v.select(scale > 0, tables.levels[8] / scale, 0)
    sums = Sums(v.splat(0), v.splat(0), v.splat(0))
    for group in range(length // 4):
        if exact:
            pick = _exact_four(work, numbers, tables, scale, group)
        else:
            key = v.splat_int(0)
            for i in range(4):
                cell = v.load(work, X + (group * 4 + i) * v.LANES) * inverse + tables.levels[9]
                key |= v.to_int(v.minimum(v.maximum(cell, 0), 15)) << 4 * i
            pick = v.gather_int(tables.numbers, key)
        v.store(numbers, PICKS + group * v.LANES, pick)
        sums = _add_word(work, group * 4, v.gather_int(tables.words, pick), scale, sums)
    return sums
