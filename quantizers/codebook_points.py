"""The point of a codebook that is nearest to weights, in vectors: a rough search by one look-up, and an exact one.

Sixteen sub-blocks, one per lane, lie transposed in scratch (:mod:`.superblocks`); their groups of four or eight weights are searched one after
the other. A point costs the sum over its coordinates ``q`` of ``w * (x - scale * q)**2``.

**Rough**: each coordinate of ``x / scale`` falls into one of 16 cells (four coordinates) or 4 cells (eight), and a table of 65536 entries
has the point that is nearest to the middle of all of them. It knows nothing of ``w``, but is an order of magnitude faster than the

**exact** search. A point is a pair of *patterns*, of the first and second half of its coordinates, of which there are few (8 * 8 or
3 ** 4), so each pattern's cost is computed once. Which pairs are points is a matrix of bits. It is covered by rectangles, and the
cheapest point of a rectangle is the cheapest of its first patterns with the cheapest of its second: a rectangle of 10 by 22 takes 32
steps instead of 220. Costs are integers, in units of 2**-17 of the largest of the group, above the number of the pattern: the
minimum brings its own index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from . import simd as v
from .codebook import Codebook, pair
from .kernel import inlined, merged, subroutine
from .superblocks import GROUP_SCRATCH, W, X

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .simd import ByteArray, FloatArray, Floats, IntArray, Ints

__all__ = [
    "FLOAT_ROOM",
    "INT_ROOM",
    "PICKS",
    "SHIFTS",
    "SIGNS",
    "PointTables",
    "Sums",
    "measure_eight",
    "measure_four",
    "point_tables",
]

SHIFTS = GROUP_SCRATCH
FLOAT_ROOM = SHIFTS + 4 * v.LANES
"""Floats of scratch: those of :mod:`.superblocks`, then what all coordinates of a point are shifted by, a vector for each group of eight."""

SIGNS, PICKS = 0, 4 * v.LANES
_DIGITS = PICKS + 8 * v.LANES
_PATTERNS = _DIGITS + 4 * 9 * v.LANES
INT_ROOM = _PATTERNS + 2 * 81 * v.LANES
"""Integers of scratch: sign bits of groups of eight, points of groups, and the costs of patterns."""

_PATTERN_BITS = 7
_COST_RANGE = 2.0**31 * (1 - 2**-20)  # less what rounding may add
_LEAST_COST = 1e-30

# shapes of rectangles, and how many cells a large one has to cover; loops of fixed length are several times faster than others
LARGE, SMALL, _LEAST_COVERED = (8, 10), (2, 3), 18
_SEEDS = 8  # rows that a rectangle is begun from, before the best is taken


class PointTables(NamedTuple):
    """What the searches of one codebook look up.

    Attributes:
        levels: float32, the values of coordinates, ascending.
        cell: float32 (2,), cells per unit, and the number of the cell that zero lies in, as a fraction.
        nearest: int32 (65536,), the rough search's point for the numbers of all cells, the first coordinate's lowest.
        large, small: uint8, the rectangles of either shape: little-endian uint16, offsets of the costs of their patterns in scratch.
        points: int32 (16384,), the point for a first pattern (upper 7 bits) and a second.
        words: int32, :attr:`.Codebook.words`.
        shifted: int32 (1,), what to add to the number of a point where coordinates are shifted down.
    """

    levels: NDArray[np.float32]
    cell: NDArray[np.float32]
    nearest: NDArray[np.int32]
    large: NDArray[np.uint8]
    small: NDArray[np.uint8]
    points: NDArray[np.int32]
    words: NDArray[np.int32]
    shifted: NDArray[np.int32]


class Sums(NamedTuple):
    """Sums over the weights of each lane, with ``r = x - scale * q``: of ``w r r``, ``w r q`` and ``w q q``."""

    rr: Floats
    rq: Floats
    qq: Floats


# --- tables ---------------------------------------------------------------------------------------------------------------------


def point_tables(
    book: Codebook, points: NDArray[np.float32], centres: NDArray[np.float32], edges: tuple[float, float]
) -> PointTables:
    """Return the tables for ``points``, float32 (count, coordinates).

    ``centres``: of the cells of one coordinate; ``edges``: upper end of the first cell, and width of the others.
    """
    levels = np.unique(points)
    half = points.shape[1] // 2
    digits = np.searchsorted(levels, points)
    place = len(levels) ** np.arange(half)[::-1]
    first, second = digits[:, :half] @ place, digits[:, half:] @ place
    count = len(levels) ** half
    pairs = np.zeros((count, count), np.bool_)
    pairs[first, second] = True
    missing = pairs.copy()
    large = _rectangles(pairs, missing, LARGE, _LEAST_COVERED)
    small = _rectangles(pairs, missing, SMALL, 1)
    of_patterns = np.zeros(1 << 2 * _PATTERN_BITS, np.int32)
    of_patterns[first << _PATTERN_BITS | second] = np.arange(len(points))
    return PointTables(
        levels.astype(np.float32),
        np.array([1 / edges[1], 1 - edges[0] / edges[1]], np.float32),
        _nearest_to_cells(points, centres),
        large,
        small,
        of_patterns,
        book.words,
        np.array([len(points)], np.int32),
    )


def _nearest_to_cells(points: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.int32]:
    """Return the number of the point nearest to the middle of every combination of cells."""
    cells = np.arange(len(centres) ** points.shape[1])
    shifts = (len(centres) - 1).bit_length() * np.arange(points.shape[1])
    half_squares = (points**2).sum(1) / 2
    nearest = np.empty(len(cells), np.int32)
    for part in np.split(cells, 16):
        middle = centres[part[:, None] >> shifts & len(centres) - 1]
        nearest[part] = (middle @ points.T - half_squares).argmax(1)
    return nearest


def _rectangles(
    cells: NDArray[np.bool_], missing: NDArray[np.bool_], shape: tuple[int, int], least: int
) -> NDArray[np.uint8]:
    """Cover cells that are ``missing`` by rectangles of true cells, greedily, while each covers at least ``least``; update ``missing``.

    Returns the columns behind the rows of each, as little-endian uint16; where there are fewer than ``shape`` says, one is repeated.
    """
    found = []
    while missing.any():
        trials = [_grow(cells, missing, int(row), shape) for row in np.argsort(-missing.sum(1), kind="stable")[:_SEEDS]]
        rows, columns = max(trials, key=lambda sides: int(missing[np.ix_(*sides)].sum()))
        if missing[np.ix_(rows, columns)].sum() < least:
            break
        missing[np.ix_(rows, columns)] = False
        found.append(np.concatenate([np.resize(rows, shape[0]), len(cells) + np.resize(columns, shape[1])]))
    return (np.array(found).reshape(-1) * v.LANES).astype("<u2").view(np.uint8)


def _grow(
    cells: NDArray[np.bool_], missing: NDArray[np.bool_], row: int, shape: tuple[int, int]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return rows and columns of a rectangle that starts as a row, and takes in rows while its best columns gain by it."""
    rows, common, gain = [row], cells[row].copy(), missing[row].astype(np.intp)
    value = np.sort(gain * common)[-shape[1] :].sum()
    while len(rows) < shape[0]:
        gains = (gain + missing) * (common & cells)
        values = np.sort(gains, axis=1)[:, -shape[1] :].sum(1)
        values[rows] = 0
        best = int(values.argmax())
        if values[best] <= value:
            break
        value = values[best]
        rows.append(best)
        common &= cells[best]
        gain = gain + missing[best]
    columns = np.flatnonzero(common)
    return np.array(rows), columns[np.argsort(-gain[columns], kind="stable")[: shape[1]]]


# --- searches -------------------------------------------------------------------------------------------------------------------


@inlined
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
    for start in range(0, tables.large.size, 2 * (LARGE[0] + LARGE[1])):
        first = _least_of(numbers, tables.large, start, LARGE[0])
        least = v.minimum(least, first + _least_of(numbers, tables.large, start + 2 * LARGE[0], LARGE[1]))
    for start in range(0, tables.small.size, 2 * (SMALL[0] + SMALL[1])):
        first = _least_of(numbers, tables.small, start, SMALL[0])
        least = v.minimum(least, first + _least_of(numbers, tables.small, start + 2 * SMALL[0], SMALL[1]))
    return v.gather_int(tables.points, least & (1 << 2 * _PATTERN_BITS) - 1)


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
    return v.to_int(cost) & -1 << 2 * _PATTERN_BITS | (value << _PATTERN_BITS if table < 2 else value)


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


@inlined
def _rough_eight(work: FloatArray, tables: PointTables, inverse: Floats, shift: Floats, group: int) -> Ints:
    first = tables.cell[1] - shift * tables.cell[0]
    key = v.splat_int(0)
    for i in range(8):
        cell = v.load(work, X + (group * 8 + i) * v.LANES) * inverse + first
        key |= v.to_int(v.minimum(v.maximum(cell, 0), 3)) << 2 * i
    return v.gather_int(tables.nearest, key)


@inlined
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
    inverse = v.select(scale > 0, tables.cell[0] / scale, 0)
    sums = Sums(v.splat(0), v.splat(0), v.splat(0))
    for group in range(length // 8):
        shift = v.load(work, SHIFTS + group * v.LANES)
        if exact:
            pick = _exact_eight(work, numbers, tables, scale, scale * shift, group)
        else:
            pick = _rough_eight(work, tables, inverse, shift, group)
        pick += v.select(shift < 0, v.splat_int(tables.shifted[0]), 0)
        v.store(numbers, PICKS + group * v.LANES, pick)
        sums = _add_point(work, tables, group, pick, scale, sums)
    return sums


@inlined
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
    nothing = Sums(v.splat(0), v.splat(0), v.splat(0))
    rr, rq, qq = nothing
    for group in range(length // 8):
        if exact:
            up = _least_error(work, tables, scale, inverse, v.splat(1), group)
            higher = up <= _least_error(work, tables, scale, inverse, v.splat(-1), group)
            pick = _exact_eight(work, numbers, tables, scale, v.select(higher, scale, -scale), group)
            pick += v.select(higher, v.splat_int(0), tables.shifted[0])
            chosen = _add_point(work, tables, group, pick, scale, nothing)
            rr, rq, qq = rr + chosen.rr, rq + chosen.rq, qq + chosen.qq
        else:
            upper = _rough_eight(work, tables, inverse * tables.cell[0], v.splat(1), group)
            lower = _rough_eight(work, tables, inverse * tables.cell[0], v.splat(-1), group) + tables.shifted[0]
            above = _add_point(work, tables, group, upper, scale, nothing)
            below = _add_point(work, tables, group, lower, scale, nothing)
            higher = above.rr < below.rr
            pick = v.select(higher, upper, lower)
            rr += v.select(higher, above.rr, below.rr)
            rq += v.select(higher, above.rq, below.rq)
            qq += v.select(higher, above.qq, below.qq)
        v.store(numbers, PICKS + group * v.LANES, pick)
    return Sums(rr, rq, qq)


@subroutine
def measure_four(
    work: FloatArray, numbers: IntArray, tables: PointTables, scale: Floats, length: int, exact: bool
) -> Sums:
    """Do the same for groups of four weights."""
    inverse = v.select(scale > 0, tables.cell[0] / scale, 0)
    sums = Sums(v.splat(0), v.splat(0), v.splat(0))
    for group in range(length // 4):
        if exact:
            pick = _exact_four(work, numbers, tables, scale, group)
        else:
            key = v.splat_int(0)
            for i in range(4):
                cell = v.load(work, X + (group * 4 + i) * v.LANES) * inverse + tables.cell[1]
                key |= v.to_int(v.minimum(v.maximum(cell, 0), 15)) << 4 * i
            pick = v.gather_int(tables.nearest, key)
        v.store(numbers, PICKS + group * v.LANES, pick)
        sums = _add_word(work, group * 4, v.gather_int(tables.words, pick), scale, sums)
    return sums
