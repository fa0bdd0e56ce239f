"""Rounding with error feedback: what rounding a column loses, the columns after it make up for as far as they can.

A layer's weights ``W`` (out, in) meet inputs of second moment ``H`` (in, in), so an error ``E`` costs ``tr(E H Eᵀ)``. With ``H = M D Mᵀ``, ``M`` upper
triangular with ones on its diagonal and ``D`` diagonal, that is the sum over columns ``c`` of ``D[c] * |E[:, c] + sum over k < c of E[:, k] M[k, c]|²``.
Columns are rounded from left to right. Whenever some are done, there is a best choice of real numbers for the rest: their *targets*. Rounding
column ``c`` by a residual ``r`` from its target costs ``D[c] r²`` and moves the targets of columns ``j`` behind it by ``-r M⁻¹[c, j]``. This is GPTQ
(Frantar et al., arXiv:2210.17323); what many columns bring about is added up as in LDLQ (Chee et al., arXiv:2307.13304), so that ``M`` need not be
inverted as a whole.

Whoever quantizes decides how many columns are a step, and what their values may be::

    feedback = Feedback(weights, factor)
    while feedback.settled < columns:
        stop = feedback.settled + step
        targets, inverse = feedback.targets(stop), factor.inverse(feedback.settled, stop)
        for c in range(step):
            values[:, c] = …  # nearest to targets[:, c]
            targets[:, c + 1 :] -= np.outer(targets[:, c] - values[:, c], inverse[c, c + 1 :])
        feedback.settle(values)

All of this is in the order of :attr:`Factor.order`; :meth:`Feedback.values` gives the result in the layer's own order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from ...errors import EncodingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]

__all__ = ["DAMPING", "STEP", "Factor", "Feedback", "block_order", "column_order", "error_costs", "factorize"]

STEP: Final = 256
"""Columns that are factorized together; steps that do not cross a multiple of it are quickest."""

DAMPING: Final = 0.03
"""What is added to the diagonal of a second moment, relative to its mean."""

_TRIES: Final = 10


@dataclass(frozen=True, eq=False)
class Factor:
    """A second moment taken apart: ``H[order][:, order]`` with its damping is ``unit @ diag(weights) @ unit.T``.

    Attributes:
        unit: float32 (n, n), C-contiguous, upper triangular with ones on the diagonal. Read-only.
        corners: float32 (steps, 256, 256): the inverses of the blocks of 256 on the diagonal of ``unit``, the last filled up. Read-only.
        weights: float32 (n,), positive: what a squared error that is left in a column counts. Read-only.
        order: intp (n,): the columns in the order of rounding. Read-only.
        damping: what was added to the diagonal, in the units of ``H``.
    """

    unit: Floats
    corners: Floats
    weights: Floats
    order: NDArray[np.intp]
    damping: float

    @property
    def columns(self) -> int:
        """Number of columns."""
        return len(self.weights)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes."""
        return self.unit.nbytes + self.corners.nbytes

    def inverse(self, start: int, stop: int) -> Floats:
        """Return float32 (stop - start, stop - start): the inverse of the block of ``unit`` of these columns."""
        corner, first = divmod(start, STEP)
        last = first + stop - start
        if last <= STEP:
            return self.corners[corner, first:last, first:last]
        return np.linalg.inv(self.unit[start:stop, start:stop].astype(np.float64)).astype(np.float32)


def column_order(moment: Floats | Doubles) -> NDArray[np.intp]:
    """Return all columns, those with the largest diagonal first (GPTQ's activation order); ties in their own order."""
    return np.argsort(-np.asarray(moment.diagonal(), np.float64), kind="stable")


def block_order(moment: Floats | Doubles, block: int) -> NDArray[np.intp]:
    """Return all columns, whole blocks of ``block`` with the largest mean diagonal first; the last block may be shorter."""
    columns = len(moment)
    starts = np.arange(0, columns, block)
    sums = np.add.reduceat(np.asarray(moment.diagonal(), np.float64), starts)
    means = sums / np.minimum(block, columns - starts)
    chosen = starts[np.argsort(-means, kind="stable")]
    return np.concatenate([np.arange(start, min(start + block, columns)) for start in chosen])


def factorize(
    moment: Floats | Doubles, damping: float = DAMPING, order: NDArray[np.intp] | None = None, least: float = 0.0
) -> Factor:
    """Take a second moment apart.

    Columns that never met an input (diagonal 0) neither give nor take feedback. Where the damped moment is still not positive definite, the same
    damping is added again, up to ten times. Memory: 8 n² bytes beside the moment and the factor.

    Args:
        moment: (n, n), symmetric, float32 or float64. Any scale.
        damping: added to the diagonal, relative to the diagonal's mean.
        order: of the columns, see :class:`Factor`; None for their own.
        least: what is added at least, in the units of ``moment``.

    Raises EncodingError for a moment that is not finite, has a negative diagonal, or cannot be factorized.
    """
    diagonal = np.asarray(moment.diagonal(), np.float64)
    if not np.isfinite(diagonal).all() or (diagonal < 0).any():
        raise EncodingError("a second moment must be finite and have no negative diagonal", remedy="Measure it again.")
    columns = len(diagonal)
    places = np.arange(columns) if order is None else np.asarray(order, np.intp)
    mean = float(diagonal.mean())
    added = max(damping * mean, least)
    dead = np.flatnonzero(diagonal[places] == 0)
    for attempt in range(1, _TRIES + 1):
        work = _ordered(moment, places)
        ends = np.einsum("ii->i", work)
        ends += attempt * added
        ends[dead] = max(mean, added) or 1.0
        work[dead, :] = np.where(np.arange(columns) == dead[:, None], ends[dead, None], 0)
        work[:, dead] = work[dead, :].T
        if _upper_lower(work):
            break
    else:
        raise EncodingError("a second moment is not positive definite, even damped", remedy="Raise --damping.")
    scale = work.diagonal().copy()
    unit = np.zeros((columns, columns), np.float32)
    for start in range(0, columns, STEP):
        rows = slice(start, min(start + STEP, columns))
        np.divide(work[rows, start:], scale[start:], out=unit[rows, start:], casting="same_kind")
        unit[rows, rows] = np.triu(unit[rows, rows])
    weights, corners = np.square(scale).astype(np.float32), _corners(unit)
    for array in (unit, corners, weights, places):
        array.flags.writeable = False
    return Factor(unit, corners, weights, places, attempt * added)


def _corners(unit: Floats) -> Floats:
    """Return the inverses of the blocks on the diagonal."""
    starts = range(0, len(unit), STEP)
    corners = np.tile(np.eye(STEP, dtype=np.float32), (len(starts), 1, 1))
    for corner, start in zip(corners, starts, strict=True):
        block = unit[start : start + STEP, start : start + STEP]
        corner[: len(block), : len(block)] = np.linalg.inv(block.astype(np.float64))
    return corners


def _ordered(moment: Floats | Doubles, places: NDArray[np.intp]) -> Doubles:
    """Return float64 (n, n): the moment in another order."""
    if (places[1:] > places[:-1]).all():
        return moment.astype(np.float64)
    whole = np.empty(moment.shape, np.float64)
    for start in range(0, len(places), STEP):
        whole[start : start + STEP] = moment[places[start : start + STEP]][:, places]
    return whole


def _upper_lower(work: Doubles) -> bool:
    """Replace the upper triangle of a symmetric positive definite matrix by ``R`` with ``work = R @ R.T``; return whether that was possible.

    From the last block of columns to the first; what is below the diagonal is not read and holds nothing of use afterwards.
    """
    for start in range((len(work) - 1) // STEP * STEP, -1, -STEP):
        stop = min(start + STEP, len(work))
        block = work[start:stop, start:stop]
        mirrored = np.triu(block) + np.triu(block, 1).T
        try:
            corner = np.linalg.cholesky(mirrored[::-1, ::-1])[::-1, ::-1]
        except np.linalg.LinAlgError:
            return False
        if not np.isfinite(corner).all():
            return False
        block[...] = corner
        if not start:
            return True
        panel = work[:start, start:stop] @ np.linalg.inv(corner).T
        work[:start, start:stop] = panel
        for first in range(0, start, 4 * STEP):  # the triangle above the diagonal, in strips
            last = min(first + 4 * STEP, start)
            work[:last, first:last] -= panel[:last] @ panel[first:last].T
    return True


class Feedback:
    """Weights on their way from left to right through a factor; rows know nothing of each other.

    Args:
        weights: float32 (rows, columns), in the layer's own order.
        factor: of the layer's inputs.

    Attributes:
        weights: float32 (rows, columns), in the order of the factor.
        errors: float32 (rows, columns): weights minus values, of settled columns.
        settled: how many columns are done.
    """

    def __init__(self, weights: Floats, factor: Factor) -> None:
        if weights.shape[1] != factor.columns:
            raise EncodingError(f"weights of {weights.shape[1]} columns, but a second moment of {factor.columns}")
        self.factor = factor
        self.weights: Floats = np.ascontiguousarray(weights[:, factor.order], np.float32)
        self.errors: Floats = np.zeros(self.weights.shape, np.float32)
        self.settled = 0

    def targets(self, stop: int) -> Floats:
        """Return float32 (rows, stop - settled): the best real numbers for the next columns, with those behind them free as well."""
        start = self.settled
        shift: Floats = self.errors[:, :start] @ self.factor.unit[:start, start:stop]
        targets: Floats = np.matmul(shift, self.factor.inverse(start, stop), dtype=np.float32)
        targets += self.weights[:, start:stop]
        return targets

    def settle(self, values: Floats) -> None:
        """Take what the next columns became, float32 (rows, n)."""
        columns = slice(self.settled, self.settled + values.shape[1])
        np.subtract(self.weights[:, columns], values, out=self.errors[:, columns])
        self.settled = columns.stop

    def values(self) -> Floats:
        """Return float32 (rows, columns): what all columns became, in the layer's own order."""
        values = np.empty_like(self.weights)
        values[:, self.factor.order] = self.weights - self.errors
        return values

    def cost(self) -> Doubles:
        """Return float64 (rows,): each row's share of ``tr(E H Eᵀ)``, damping included."""
        return _costs(self.errors, self.factor)


def error_costs(errors: Floats, factor: Factor) -> Doubles:
    """Return float64 (rows,): each row's share of ``tr(E H Eᵀ)``, damping included, for errors (rows, columns) in the layer's own order."""
    return _costs(errors[:, factor.order], factor)


def _costs(errors: Floats, factor: Factor) -> Doubles:
    found = np.zeros(len(errors), np.float64)
    for start in range(0, factor.columns, STEP):
        stop = min(start + STEP, factor.columns)
        left = errors[:, :stop] @ factor.unit[:stop, start:stop]
        found += np.square(left.astype(np.float64)) @ factor.weights[start:stop]
    return found
