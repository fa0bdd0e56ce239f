"""Encode weights block by block with error feedback (:mod:`.feedback`): scales by the encoding's own search, codes column by column.

When a block's turn comes, its targets are known but for the errors within it. The encoder chooses scales for them, errors weighing as
:attr:`.Factor.weights` says; then the codes are chosen anew, one after another, each from a target that knows the errors of all
before it. The block keeps its format: only codes are exchanged.

Codes of most encodings stand for evenly spaced values (IQ4's: for sixteen levels) between two that the block's scales and
minima give. IQ3_S has a code per four weights, a point of a codebook with four signs: signs are those of the best real numbers, and of all points the
one with the least error counts, errors in later columns of the four included.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np

from ...errors import EncodingError
from ..i_quants.codebook import load_codebook
from ..vectors import simd as v
from ..vectors.kernel import inlined, kernel, scratch
from .code_layouts import CodeLayout, code_layout, write_codes
from .feedback import STEP, Factor, Feedback

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..base import EncodeOptions, Encoding
    from ..vectors.simd import FloatArray, IntArray

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]

__all__ = ["ORDER_BLOCK", "encode_with_feedback", "takes_feedback"]

ORDER_BLOCK: Final = 256
"""Columns that stay together, in their own order, whatever the order of a factor is: a multiple of every block."""

_NEVER: Final = np.float32(3e38)
_TWO_VECTORS: Final = 2 * v.LANES
_RESIDUALS: Final = ORDER_BLOCK * v.LANES


@dataclass(frozen=True, eq=False)
class _Codes:
    """What the kernels know of an encoding.

    Attributes:
        layout: where codes lie.
        levels: float32 (codes,), ascending: what codes stand for in units of the step.
        bounds: float32 (codes - 1,), where one level ends and the next begins; empty for evenly spaced ones.
        features: float32 (14 * points,), of the points of a codebook, see :func:`_round_points`; empty for others.
        first: what the weights of a unit are at the lowest code, in units of the step.
    """

    layout: CodeLayout
    levels: Floats
    bounds: Floats
    features: Floats
    first: Floats


def takes_feedback(encoding: Encoding) -> bool:
    """Whether :func:`encode_with_feedback` can write an encoding."""
    return code_layout(encoding.name) is not None


@cache
def _codes(name: str) -> _Codes:
    layout = code_layout(name)
    if layout is None:
        raise EncodingError(f"{name} cannot be rounded with error feedback", remedy="Leave out --method.")
    nothing = np.empty(0, np.float32)
    if layout.unit == 4:
        points = load_codebook(name).points
        return _Codes(layout, nothing, nothing, _features(points), points[0].copy())
    levels = np.arange(layout.lowest, layout.highest + 1, dtype=np.float32)
    if not name.startswith("IQ4"):
        return _Codes(layout, levels, nothing, nothing, levels[:1])
    from gguf.quants import IQ4_NL

    levels = np.array(IQ4_NL.kvalues, np.float32)
    bounds = np.asarray((levels[1:] + levels[:-1]) / 2, np.float32)
    return _Codes(layout, levels, bounds, nothing, levels[:1])


def _features(points: Floats) -> Floats:
    """Return what a quadratic form of a point is the sum of: squares, products of two, coordinates; each for all points in a row."""
    pairs = [points[:, i] * points[:, j] for i in range(4) for j in range(i + 1, 4)]
    return np.concatenate([*(points.T**2), *pairs, *points.T]).astype(np.float32)


def encode_with_feedback(encoding: Encoding, rows: Floats, factor: Factor, options: EncodeOptions) -> Bytes:
    """Return encoded rows, uint8 (n, row bytes), that keep products with the factor's inputs close.

    Args:
        encoding: one that :func:`takes_feedback`.
        rows: finite float32 (n, columns). A row's result does not depend on other rows.
        factor: of the inputs; its order must keep blocks together (:data:`ORDER_BLOCK`).
        options: of the search for scales.

    Raises EncodingError for another encoding, or for columns that do not fit it or the factor.
    """
    codes = _codes(encoding.name)
    feedback = Feedback(rows, factor)
    size, width = encoding.block_size, encoding.block_bytes
    blocks = _block_places(factor, size)
    out = np.empty((len(rows), encoding.row_bytes(rows.shape[1])), np.uint8)
    for start in range(0, factor.columns, STEP):
        stop = min(start + STEP, factor.columns)
        targets = feedback.targets(stop)
        values, residuals = np.empty_like(targets), np.empty_like(targets)
        inverse = factor.inverse(start, stop)
        for first in range(0, stop - start, size):
            columns = slice(first, first + size)
            targets[:, columns] -= residuals[:, :first] @ inverse[:first, columns]
            block = np.ascontiguousarray(targets[:, columns])
            counts = factor.weights[start + first : start + first + size]
            corner = factor.unit[start + first : start + first + size, start + first : start + first + size]
            data = encoding.encode(block, counts, options)
            chosen = _round(codes, encoding, data, block, inverse[columns, columns], corner, counts)
            write_codes(chosen, codes.layout, data)
            values[:, columns] = encoding.decode(data)
            np.subtract(block, values[:, columns], out=residuals[:, columns])
            place = blocks[(start + first) // size] * width
            out[:, place : place + width] = data
        feedback.settle(values)
    return out


def _block_places(factor: Factor, size: int) -> NDArray[np.intp]:
    """Return the number of the block that is rounded first, second, …; raises EncodingError where the order cuts blocks."""
    if factor.columns % size:
        raise EncodingError(f"{factor.columns} columns are no whole blocks of {size}")
    order = factor.order.reshape(-1, size)
    if (order[:, :1] % size).any() or (order != order[:, :1] + np.arange(size)).any():
        raise EncodingError(f"blocks of {size} columns must stay whole", remedy="Order the columns by blocks.")
    return order[:, 0] // size


def _round(
    codes: _Codes,
    encoding: Encoding,
    data: Bytes,
    targets: Floats,
    inverse: Floats,
    unit: Floats,
    counts: Floats,
) -> NDArray[np.int32]:
    """Return the codes of a block's units, int32 (n, units); ``targets`` (n, block size) become what they were when their turn came.

    ``inverse``, ``unit`` and ``counts`` (:attr:`.Factor.weights`) are of the block's columns.
    """
    layout = codes.layout
    low = _filled(encoding, data, layout, layout.lowest)
    if layout.unit == 4:
        units = encoding.block_size // layout.unit
        found = np.empty((len(data), units), np.int32)
        step = np.asarray(low / np.tile(codes.first, units), np.float32)
        inverse, unit = np.ascontiguousarray(inverse), np.ascontiguousarray(unit)
        _round_points(targets, step, codes.features, inverse, unit, counts, found)
        return found
    step = (_filled(encoding, data, layout, layout.highest) - low) / (codes.levels[-1] - codes.levels[0])
    turned = _by_column(targets)
    numbers = np.empty(turned.size, np.int32)
    _round_levels(
        len(turned),
        turned.reshape(-1),
        _by_column(step).reshape(-1),
        _by_column(low - step * codes.first).reshape(-1),
        codes.levels,
        codes.bounds,
        np.ascontiguousarray(inverse.T).reshape(-1),
        numbers,
    )
    targets[...] = turned[:, : len(data)].T
    return np.ascontiguousarray(numbers.reshape(turned.shape)[:, : len(data)].T)


def _by_column(rows: Floats) -> Floats:
    """Return float32 (columns, n): rows side by side, zeros filling up whole vectors."""
    turned = np.zeros((rows.shape[1], -(-len(rows) // v.LANES) * v.LANES), np.float32)
    turned[:, : len(rows)] = rows.T
    return turned


def _filled(encoding: Encoding, data: Bytes, layout: CodeLayout, code: int) -> Floats:
    """Return the weights of a block, float32 (n, block size), all of whose codes are ``code``."""
    changed = data.copy()
    units = encoding.block_size // layout.unit
    write_codes(np.full((len(data), units), code, np.int32), layout, changed)
    return encoding.decode(changed)


# --- rounding -------------------------------------------------------------------------------------------------------------------


@inlined
def _spread(targets: FloatArray, row: int, column: int, value: float, inverse: FloatArray) -> None:
    """Move the targets behind ``column``, which becomes ``value``."""
    residual = targets[row, column] - value
    for later in range(column + 1, targets.shape[1]):
        targets[row, later] -= residual * inverse[column, later]


@kernel
def _round_levels(
    columns: int,
    targets: FloatArray,
    step: FloatArray,
    offset: FloatArray,
    levels: FloatArray,
    bounds: FloatArray,
    inverse: FloatArray,
    found: IntArray,
) -> None:
    """Choose the level nearest to each target, which the residuals of the columns before it have moved, sixteen rows at a time.

    Args:
        columns: how many.
        targets: one column after another, each of all rows, a multiple of sixteen; they become what they were when their turn came.
        step: as ``targets``: what levels are units of.
        offset: as ``targets``: what level 0 stands for.
        levels: ascending.
        bounds: between them, empty where they are evenly spaced.
        inverse: transposed: what each column gets of the residuals of those before it.
        found: as ``targets``: becomes the code: the level's number, for evenly spaced ones the level itself.
    """
    rows = targets.size // columns
    residuals = scratch(_RESIDUALS)
    for start in range(0, rows, v.LANES):
        for column in range(columns):
            at = column * rows + start
            target = _moved(v.load(targets, at), residuals, inverse, column * columns, column)
            scale, zero = v.load(step, at), v.load(offset, at)
            ratio = v.select(scale != 0, (target - zero) / scale, np.float32(0))
            if bounds.size == 0:
                level = v.minimum(v.maximum(v.round_even(ratio), levels[0]), levels[-1])
                code = v.to_int(level)
            else:
                code = v.splat_int(0)
                for bound in bounds:
                    code = v.select(ratio > bound, code + 1, code)
                level = v.gather_float(levels, code)
            v.store(targets, at, target)
            v.store(found, at, code)
            v.store(residuals, column * v.LANES, target - (zero + scale * level))


@inlined
def _moved(target: v.Floats, residuals: FloatArray, inverse: FloatArray, row: int, columns: int) -> v.Floats:
    """Return targets of a column, less what the residuals of the ``columns`` before it take, in four sums side by side."""
    one, two, three = v.splat(0), v.splat(0), v.splat(0)
    whole = columns // 4 * 4
    for column in range(0, whole, 4):
        at = column * v.LANES
        target -= v.load(residuals, at) * inverse[row + column]
        one += v.load(residuals, at + v.LANES) * inverse[row + column + 1]
        two += v.load(residuals, at + 2 * v.LANES) * inverse[row + column + 2]
        three += v.load(residuals, at + 3 * v.LANES) * inverse[row + column + 3]
    for column in range(whole, columns):
        target -= v.load(residuals, column * v.LANES) * inverse[row + column]
    return target - (one + two + three)


@kernel
def _round_points(
    targets: FloatArray,
    step: FloatArray,
    features: FloatArray,
    inverse: FloatArray,
    unit: FloatArray,
    counts: FloatArray,
    found: IntArray,
) -> None:
    """Choose a point, signed as the targets are, for each four columns; residuals move the targets behind them.

    With ``M`` and ``D`` of the four, a choice ``q`` for targets ``t`` costs ``|D^½ Mᵀ (t - q)|²``, which is quadratic in ``q``: its 14 coefficients,
    signs and scale included, times the features of all points.
    """
    points = features.size // 14
    coefficients, form, signs, lanes = scratch(14), scratch(16), scratch(4), scratch(_TWO_VECTORS)
    for number in range(found.shape[1]):
        place = 4 * number
        _metric(unit, counts, place, form)
        for row in range(targets.shape[0]):
            scale = step[row, place]
            code = 0
            for i in range(4):
                negative = targets[row, place + i] * scale < 0
                signs[i] = -scale if negative else scale
                code |= (512 if negative else 0) << i
            feature = 4
            for i in range(4):
                pull = np.float32(0)
                for j in range(4):
                    pull += form[4 * i + j] * targets[row, place + j]
                coefficients[i] = form[5 * i] * scale * scale
                coefficients[10 + i] = -2 * pull * signs[i]
                for j in range(i + 1, 4):
                    coefficients[feature] = 2 * form[4 * i + j] * signs[i] * signs[j]
                    feature += 1
            point = _nearest(features, points, coefficients, lanes)
            found[row, number] = code | point
            for i in range(4):
                value = signs[i] * features[(10 + i) * points + point]
                _spread(targets, row, place + i, value, inverse)


@inlined
def _metric(unit: FloatArray, counts: FloatArray, place: int, form: FloatArray) -> None:
    """Fill ``form``, a matrix of 4 by 4 row by row, with ``M D Mᵀ`` of the four columns from ``place`` on."""
    for i in range(4):
        for j in range(4):
            total = np.float32(0)
            for c in range(max(i, j), 4):
                total += unit[place + i, place + c] * counts[place + c] * unit[place + j, place + c]
            form[4 * i + j] = total


@inlined
def _nearest(features: FloatArray, points: int, coefficients: FloatArray, lanes: FloatArray) -> int:
    """Return the number of the point with the least sum of coefficients times features; the lowest of equal ones in a lane."""
    least, chosen = v.splat(_NEVER), v.splat(0)
    for start in range(0, points, v.LANES):
        cost = v.splat(0)
        for feature in range(14):
            cost += v.load(features, feature * points + start) * coefficients[feature]
        better = cost < least
        least = v.select(better, cost, least)
        chosen = v.select(better, v.splat(start), chosen)
    v.store(lanes, 0, least)
    v.store(lanes, v.LANES, chosen)
    lane = 0
    for other in range(1, v.LANES):
        if lanes[other] < lanes[lane]:
            lane = other
    return int(lanes[v.LANES + lane]) + lane
