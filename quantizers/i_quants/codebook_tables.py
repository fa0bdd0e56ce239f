"""What the searches of :mod:`.codebook_points` look up, made from a codebook when something is first encoded.

For the rough search: the point nearest to the middle of each cell. For the exact one: the matrix that says which patterns of the first
half of the coordinates go with which of the second, covered by rectangles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..vectors.simd import LANES
from .codebook import Codebook

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LARGE", "PATTERN_BITS", "POINTS", "SMALL", "PointTables", "point_tables"]

PATTERN_BITS = 7
"""Bits of the number of a pattern: there are 8 * 8 or 3 ** 4."""

POINTS = 1 << 16
"""Where points by their patterns begin in :attr:`PointTables.numbers`."""

LARGE, SMALL = (8, 10), (2, 3)
"""Rows and columns of rectangles; loops of fixed length are several times faster than others."""

_LEAST_COVERED = 18  # cells, by a large rectangle
_SEEDS = 8  # rows that a rectangle is begun from, before the best is taken


class PointTables(NamedTuple):
    """What the searches of one codebook look up; few arrays, because each makes a kernel compile longer.

    Attributes:
        levels: float32, the values of coordinates, ascending; behind them cells per unit, and the number of the cell that zero lies in, as a
            fraction.
        numbers: int32. From 0 on, the rough search's point for the numbers of all cells, the first coordinate's lowest; from
            :data:`POINTS` on, the point for a first pattern (upper 7 bits) and a second.
        words: int32, :attr:`.Codebook.words`.
        rectangles: uint8, little-endian uint16: offsets of the costs of patterns in scratch, first of the large rectangles.
        large: bytes of the large rectangles.
        shifted: what to add to the number of a point where coordinates are shifted down.
    """

    levels: NDArray[np.float32]
    numbers: NDArray[np.int32]
    words: NDArray[np.int32]
    rectangles: NDArray[np.uint8]
    large: int
    shifted: int


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
    of_patterns = np.zeros(1 << 2 * PATTERN_BITS, np.int32)
    of_patterns[first << PATTERN_BITS | second] = np.arange(len(points))
    cells = [1 / edges[1], 1 - edges[0] / edges[1]]
    return PointTables(
        np.concatenate([levels, cells]).astype(np.float32),
        np.concatenate([_nearest_to_cells(levels, pairs, centres, of_patterns), of_patterns]),
        book.words,
        np.concatenate([large, small]),
        large.size,
        len(points),
    )


def _nearest_to_cells(
    levels: NDArray[np.float32], pairs: NDArray[np.bool_], centres: NDArray[np.float32], of_patterns: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Return the number of the point nearest to the middle of every combination of cells of 16 bits."""
    count = len(pairs)
    half = round(np.log(count) / np.log(len(levels)))
    patterns = levels[np.arange(count)[:, None] // len(levels) ** np.arange(half)[::-1] % len(levels)]
    middles = centres[np.arange(256)[:, None] >> 8 // half * np.arange(half) & len(centres) - 1]
    scores = middles @ patterns.T - (patterns**2).sum(1) / 2  # the nearest has the highest
    partners = [np.flatnonzero(row) for row in pairs]
    best = np.full((256, count), -np.inf, np.float32)
    seconds = np.zeros((256, count), np.int32)
    for first, partner in enumerate(partners):
        if partner.size:
            best[:, first] = scores[:, partner].max(1)
            seconds[:, first] = partner[scores[:, partner].argmax(1)]
    # the first half's cells are the lower eight bits
    firsts = (scores[None] + best[:, None]).argmax(2)
    found: NDArray[np.int32] = of_patterns[firsts << PATTERN_BITS | np.take_along_axis(seconds, firsts, axis=1)]
    return found.reshape(-1)


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
    return (np.array(found).reshape(-1) * LANES).astype("<u2").view(np.uint8)


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
