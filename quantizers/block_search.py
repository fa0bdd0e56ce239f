"""The search for a float16 scale of a block: all types share it whose blocks have one scale and no finer ones.

Sixteen blocks of ``block`` weights make a *tile*, one block per lane: weight ``i`` of block ``k`` lies at ``tile[16 * i + k]``. A scale
``d`` is tried in units of its code: a weight ``x`` lies at ``y = x / d``, takes the nearest code ``l`` and leaves the residual ``r = y - l``. The
sums of ``w r r``, ``w r l`` and ``w l l`` over a block give the least-squares correction of ``d`` for these codes and, after it was rounded to
float16, the error that is really made, without subtracting large numbers from each other. A trial replaces the best one only where that
error is lower, so every step leaves a block as good as it was or better. :mod:`.minimum_search` does the same for a scale and a minimum.

Where the first trials begin is the caller's data: few starts, spread widely, find more than many close ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from .vectors import simd as v
from .vectors.kernel import EncodeKernel, inlined
from .vectors.simd import LANES

if TYPE_CHECKING:
    from .vectors.simd import ByteArray, FloatArray, Floats, Ints

__all__ = [
    "NEGLIGIBLE",
    "Efforts",
    "load_tile",
    "load_weights",
    "nearest_codes",
    "reciprocal",
    "rounded_to_half",
    "row_energies",
    "search_encoder",
    "search_scale",
]

NEGLIGIBLE = np.float32(1e-12)
"""Far below the smallest float16: what is smaller decodes to zero whatever the scale."""

_LARGEST_HALF = np.float32(65504.0)
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
    correction = sum_rl / v.maximum(sum_ll, NEGLIGIBLE)
    scale = rounded_to_half(step + step * correction)
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
    usable = v.absolute(extreme) > NEGLIGIBLE
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
def rounded_to_half(value: Floats) -> Floats:
    """Return the nearest finite float16 as float32; a NaN becomes the smallest one."""
    return v.halves_to_floats(v.floats_to_halves(v.minimum(v.maximum(value, -_LARGEST_HALF), _LARGEST_HALF)))
