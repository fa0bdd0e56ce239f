"""Round a matrix to whole numbers under a scale and a zero point for each output and group of inputs, as GPTQ and AWQ hold it.

``weight = scale * (code - zero)``, with codes of a few bits, zero points of as many, and float16 scales; a scale is rounded before codes are
chosen for it, so that what is computed here are the very weights that a reader gives. A group's scale is one of several fractions of what its
largest weights ask for: the one with the least error. An error counts by the importance of its input or, where the second moment of a
group's inputs is given, by what it does to the output.

With a factor (:mod:`.feedback`), what rounding an input loses is made up for by those behind it. Groups are then runs of inputs in the order of
the factor, each searched when its turn comes; or, *static*, runs in the matrix's own order, all searched before the first input is rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from ...errors import EncodingError
from ..vectors.kernel import kernel
from .feedback import STEP, Factor, Feedback

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Halves = NDArray[np.float16]
    Bytes = NDArray[np.uint8]

__all__ = ["FRACTIONS", "Grid", "Rounded", "round_groups", "round_with_feedback"]

FRACTIONS: Final = np.linspace(1.1, 0.5, 31, dtype=np.float32)
"""Of the range of a group's weights, what its codes may span."""

_LEAST: Final = np.float32(2.0**-24)  # the least float16 above 0: no scale is 0, since runtimes differ about it


@dataclass(frozen=True, slots=True)
class Grid:
    """What codes are like.

    Attributes:
        bits: of a code.
        group_size: inputs that share a scale, -1 for all.
        symmetric: whether every zero point is the middle code.
        lowest_zero: the least zero point: 1 for files that hold zero points less one, where runtimes disagree about -1.
    """

    bits: int = 4
    group_size: int = 128
    symmetric: bool = False
    lowest_zero: int = 0

    def size(self, inputs: int) -> int:
        """Return the inputs of a group of a matrix with so many."""
        return inputs if self.group_size == -1 else self.group_size

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1


@dataclass(frozen=True, eq=False)
class Rounded:
    """A rounded matrix.

    Attributes:
        codes: uint8 (outputs, inputs), in the matrix's own order.
        zeros: uint8 (outputs, groups).
        scales: float16 (outputs, groups).
        groups: intp (inputs,): the group of each input.
    """

    codes: Bytes
    zeros: Bytes
    scales: Halves
    groups: NDArray[np.intp]

    @property
    def weights(self) -> Floats:
        """Float32 (outputs, inputs): what the codes stand for; every product is exact."""
        levels = self.codes.astype(np.float32) - self.zeros.astype(np.float32)[:, self.groups]
        return levels * self.scales.astype(np.float32)[:, self.groups]


def round_groups(
    weights: Floats, grid: Grid, importance: Floats | None = None, moments: Floats | None = None
) -> Rounded:
    """Round each weight to the nearest code.

    Args:
        weights: finite float32 (outputs, inputs).
        grid: what codes are like.
        importance: float32 (inputs,): what the square of an error counts, for the choice of scales; None: all alike.
        moments: float32 (groups, group size, group size): second moments of each group's inputs, instead of ``importance``.

    Raises EncodingError for weights that are not finite, too large for float16 scales, or of rows that groups do not fill.
    """
    _check(weights, grid)
    inputs = weights.shape[1]
    weighing = np.ones(inputs, np.float32) if importance is None else importance
    scales, zeros = _search_all(weights, grid, weighing, moments)
    groups = np.arange(inputs) // grid.size(inputs)
    codes, values = np.empty(weights.shape, np.uint8), np.empty(weights.shape, np.float32)
    _round(
        weights.astype(np.float32),
        np.zeros((0, 0), np.float32),
        groups,
        _wide(scales),
        _wide(zeros),
        grid.top,
        codes,
        values,
    )
    return Rounded(codes, zeros, scales, groups)


def round_with_feedback(weights: Floats, factor: Factor, grid: Grid, *, static: bool = False) -> Rounded:
    """Round with error feedback.

    Args:
        weights: finite float32 (outputs, inputs).
        factor: of the inputs; its order is that of rounding.
        grid: what codes are like.
        static: whether groups are runs in the matrix's own order, whatever the factor's is. Groups of more than 256 inputs are searched before
            the first input is rounded, too.

    Raises EncodingError as :func:`round_groups` does, and for a factor of another size.
    """
    _check(weights, grid)
    inputs = weights.shape[1]
    size = grid.size(inputs)
    state = Feedback(weights, factor)
    groups = np.empty(inputs, np.intp)
    runs = np.arange(inputs) // size
    groups[np.arange(inputs) if static else factor.order] = runs
    early = static or size > STEP
    scales = np.empty((len(weights), inputs // size), np.float16)
    zeros = np.empty(scales.shape, np.uint8)
    if early:
        importance = np.empty(inputs, np.float32)
        importance[factor.order] = factor.weights
        order = np.arange(inputs) if static else factor.order
        scales, zeros = _search_all(np.ascontiguousarray(weights[:, order]), grid, importance[order], None)
    codes = np.empty(weights.shape, np.uint8)
    step = STEP if early else size
    for start in range(0, inputs, step):
        stop = min(start + step, inputs)
        targets = state.targets(stop)
        group = start // size
        if not early:
            scales[:, group], zeros[:, group] = _search(targets, grid, factor.weights[start:stop], None)
        chosen, values = np.empty(targets.shape, np.uint8), np.empty(targets.shape, np.float32)
        inverse = np.ascontiguousarray(factor.inverse(start, stop))
        own = groups[factor.order[start:stop]]
        _round(targets, inverse, own, _wide(scales), _wide(zeros), grid.top, chosen, values)
        codes[:, factor.order[start:stop]] = chosen
        state.settle(values)
    return Rounded(codes, zeros, scales, groups)


def _wide(values: Halves | Bytes) -> Floats:
    return values.astype(np.float32)


def _check(weights: Floats, grid: Grid) -> None:
    size = grid.size(weights.shape[1])
    if size < 1 or weights.shape[1] % size:
        raise EncodingError(f"groups of {size} weights do not fill rows of {weights.shape[1]}")
    if not np.isfinite(weights).all():
        raise EncodingError("weights are not finite", remedy="The model is damaged; compare it with its source.")


def _search_all(weights: Floats, grid: Grid, importance: Floats, moments: Floats | None) -> tuple[Halves, Bytes]:
    """Return scales and zero points (outputs, groups) of runs of inputs."""
    outputs, inputs = weights.shape
    size = grid.size(inputs)
    scales, zeros = np.empty((outputs, inputs // size), np.float16), np.empty((outputs, inputs // size), np.uint8)
    for group in range(inputs // size):
        columns = slice(group * size, (group + 1) * size)
        moment = None if moments is None else moments[group]
        part = np.ascontiguousarray(weights[:, columns])
        scales[:, group], zeros[:, group] = _search(part, grid, importance[columns], moment)
    return scales, zeros


def _search(weights: Floats, grid: Grid, importance: Floats, moment: Floats | None) -> tuple[Halves, Bytes]:
    """Return the best scale and zero point of each row of a group: float16 and uint8 (rows,)."""
    least = np.minimum(weights.min(axis=1), np.float32(0))[:, None] * FRACTIONS
    most = np.maximum(weights.max(axis=1), np.float32(0))[:, None] * FRACTIONS
    if grid.symmetric:
        most = np.maximum(-least, most)
        least = -most
    with np.errstate(over="ignore"):
        halves = np.maximum((most - least) / np.float32(grid.top), _LEAST).astype(np.float16)
    if not np.isfinite(halves[:, 0]).all():
        raise EncodingError("a scale is more than float16 holds", remedy="Weights as large as these cannot be packed.")
    scales = _wide(halves)
    zeros = np.clip(np.rint(-least / scales), np.float32(grid.lowest_zero), np.float32(grid.top))
    if grid.symmetric:
        zeros[...] = (grid.top + 1) // 2
    empty = most[:, 0] == least[:, 0]  # nothing but zeros: a scale that no runtime has trouble with
    scales[empty], halves[empty], zeros[empty] = 1, 1, (grid.top + 1) // 2
    if moment is None:
        costs = np.empty(scales.shape, np.float32)
        _costs(weights, importance, scales, zeros, np.float32(grid.top), costs)
    else:
        costs = _moment_costs(weights, moment, scales, zeros, grid.top)
    rows, best = np.arange(len(weights)), costs.argmin(axis=1)
    return halves[rows, best], zeros[rows, best].astype(np.uint8)


def _moment_costs(weights: Floats, moment: Floats, scales: Floats, zeros: Floats, top: int) -> Floats:
    costs = np.empty(scales.shape, np.float32)
    for place in range(scales.shape[1]):
        scale, zero = scales[:, place, None], zeros[:, place, None]
        errors = np.clip(np.rint(weights / scale) + zero, 0, top)
        errors -= zero
        errors *= scale
        errors -= weights
        costs[:, place] = np.einsum("ij,ij->i", errors @ moment, errors)
    return costs


@kernel
def _costs(weights: Floats, importance: Floats, scales: Floats, zeros: Floats, top: np.float32, costs: Floats) -> None:
    """Fill ``costs`` (rows, fractions) with the weighted squared errors of each scale and zero point."""
    for row in range(weights.shape[0]):
        for place in range(scales.shape[1]):
            scale, zero = scales[row, place], zeros[row, place]
            inverse = np.float32(1) / scale
            total = np.float32(0)
            for column in range(weights.shape[1]):
                weight = weights[row, column]
                level = min(max(np.rint(weight * inverse) + zero, np.float32(0)), top) - zero
                error = level * scale - weight
                total += importance[column] * error * error
            costs[row, place] = total


@kernel
def _round(
    targets: Floats,
    inverse: Floats,
    groups: NDArray[np.intp],
    scales: Floats,
    zeros: Floats,
    top: int,
    codes: Bytes,
    values: Floats,
) -> None:
    """Round each target under its group's scale and zero point, and move those behind it, unless ``inverse`` is empty."""
    feedback = inverse.size > 0
    highest = np.float32(top)
    for row in range(targets.shape[0]):
        for column in range(targets.shape[1]):
            scale, zero = scales[row, groups[column]], zeros[row, groups[column]]
            target = targets[row, column]
            code = min(max(np.rint(target / scale) + zero, np.float32(0)), highest)
            value = (code - zero) * scale
            codes[row, column] = int(code)
            values[row, column] = value
            if feedback:
                residual = target - value
                for later in range(column + 1, targets.shape[1]):
                    targets[row, later] -= residual * inverse[column, later]
