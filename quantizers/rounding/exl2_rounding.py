"""Quantize a matrix as ExLlamaV2 does: inputs by importance, groups of scales that are searched when their turn comes, error feedback.

The inputs' second moment gives their order (largest diagonal first) and, damped by 0.12 of its mean diagonal, the factor by which each input's error
is made up for by those behind it (:mod:`.feedback`). A group's scales are chosen for what the errors before it have made of its
weights: per output ``(t / 16)² * largest`` with t of 1 to 16; one of 97 factors between 0.7 and 1.2, the one with the least sum of ``|error|^3.5``,
is multiplied into ``largest``, which is float16. From there on scales and weights are what the runtime computes in float16, so that the
feedback knows the very weights that a reader gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from ...errors import EncodingError
from ..vectors.kernel import kernel
from .exl2_options import PADDING, Exl2Group, Exl2Option, option_groups
from .feedback import Factor, Feedback, column_order, factorize

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]
    Halves = NDArray[np.float16]
    Bytes = NDArray[np.uint8]

__all__ = ["DAMPING", "FACTORS", "LEAST_DAMPING", "Exl2Matrix", "exl2_factor", "exl2_scales", "quantize_exl2"]

DAMPING: Final = 0.12
"""What is added to the diagonal of a second moment, relative to its mean."""

LEAST_DAMPING: Final = 1e-5
"""What is added at least, for a second moment that is the mean over sequences of xᵀx."""

FACTORS: Final = np.array([0.70 * (1 - i / 96) + 1.20 * (i / 96) for i in range(97)], np.float32)
_TINY: Final = np.float32(1e-12)


@dataclass(frozen=True, eq=False)
class Exl2Matrix:
    """A quantized matrix; outputs are filled up to a multiple of 32.

    Attributes:
        groups: of inputs, in packed order.
        order: intp (inputs,): the input that each packed row holds.
        codes: uint8 (outputs, inputs), in packed order.
        roots: uint8 (groups, outputs): square roots of relative scales less one, 0 to 15.
        largest: float16 (groups,).
        weights: float32 (outputs, inputs), in the matrix's own order of inputs: exactly what codes and scales stand for, in float16.
    """

    groups: tuple[Exl2Group, ...]
    order: NDArray[np.intp]
    codes: Bytes
    roots: Bytes
    largest: Halves
    weights: Floats


def exl2_factor(moment: Floats | Doubles) -> Factor:
    """Return the factor of a second moment (inputs, inputs), in EXL2's order; zeros stand for unknown inputs, and give no feedback.

    The moment is the mean over sequences, so that the least damping means what it means to ExLlamaV2. Raises EncodingError as
    :func:`.feedback.factorize`.
    """
    return factorize(moment, DAMPING, column_order(moment), LEAST_DAMPING)


def exl2_scales(largest: np.float16) -> Halves:
    """Return float16 (16,): the scales that a group can have, as the runtime computes them."""
    squares = np.arange(1, 17, dtype=np.float16) ** 2
    with np.errstate(under="ignore", over="ignore"):
        scales: Halves = squares * np.float16(largest / np.float16(256))
    return scales


def quantize_exl2(weights: Floats, factor: Factor, option: Exl2Option, *, feedback: bool = True) -> Exl2Matrix:
    """Quantize a matrix.

    Args:
        weights: finite float32 (outputs, inputs).
        factor: of the inputs, from :func:`exl2_factor`.
        option: its bits and groups.
        feedback: whether errors are made up for; False: rounding to nearest, with the same order and search.

    Raises EncodingError for inputs that are no multiple of 32 or do not fit the factor, and for weights that float16 cannot hold.
    """
    outputs, inputs = weights.shape
    groups = option_groups(option, inputs)
    filled = np.zeros((-(-outputs // PADDING) * PADDING, inputs), np.float32)
    filled[:outputs] = weights
    if not np.isfinite(filled).all():
        raise EncodingError("weights are not finite", remedy="The model is damaged; compare it with its source.")
    state = Feedback(filled, factor)
    codes, chosen = np.empty(filled.shape, np.uint8), np.empty(filled.shape, np.float32)
    roots = np.empty((len(groups), len(filled)), np.uint8)
    largest = np.empty(len(groups), np.float16)
    for number, group in enumerate(groups):
        columns = slice(group.start, group.stop)
        if feedback:
            targets = state.targets(group.stop)
            inverse = np.ascontiguousarray(factor.inverse(group.start, group.stop))
        else:
            targets = np.ascontiguousarray(state.weights[:, columns])
            inverse = np.zeros((group.stop - group.start,) * 2, np.float32)
        largest[number], roots[number] = _search(targets, group.bits)
        codes[:, columns], values = _choose(targets, inverse, group.bits, largest[number], roots[number])
        chosen[:, factor.order[columns]] = values
        state.settle(values)
    return Exl2Matrix(groups, factor.order, codes, roots, largest, chosen)


def _search(targets: Floats, bits: int) -> tuple[np.float16, Bytes]:
    """Return the largest scale of a group, float16, and uint8 (outputs,) the roots of all relative scales less one."""
    half = np.float32((1 << bits) - 1) / np.float32(2)
    base = (np.abs(targets).max(axis=1) + _TINY) / half
    most = base.max()
    steps = np.clip(np.rint(16 * np.sqrt(base / most)), 1, 16).astype(np.float32)
    scales = np.square(steps / 16) * most
    low = np.float32(-(1 << (bits - 1)))
    sums = np.empty((len(targets), len(FACTORS)), np.float32)
    _power_sums(targets, scales.astype(np.float32), FACTORS, low, np.float32(-low - 1), sums)
    best = int(sums.sum(axis=0, dtype=np.float64).argmin())
    with np.errstate(over="ignore", under="ignore"):
        largest = np.float16(most * FACTORS[best])
    if not np.isfinite(largest):
        raise EncodingError(
            f"a scale of {most:.4g} is more than float16 holds", remedy="EXL2 cannot hold weights as large as these."
        )
    return largest, (steps - 1).astype(np.uint8)


def _choose(targets: Floats, inverse: Floats, bits: int, largest: np.float16, roots: Bytes) -> tuple[Bytes, Floats]:
    """Return the codes of a group, uint8 (outputs, inputs), and the weights that they stand for, float32. ``targets`` are used up."""
    half = 1 << (bits - 1)
    scales = exl2_scales(largest)
    with np.errstate(over="ignore", under="ignore"):
        table = scales[:, None] * np.arange(-half, half, dtype=np.float16)
    codes, values = np.empty(targets.shape, np.uint8), np.empty(targets.shape, np.float32)
    _round(targets, inverse, roots, scales.astype(np.float32), table.astype(np.float32), codes, values)
    return codes, values


@kernel
def _power_sums(
    targets: Floats, scales: Floats, factors: Floats, low: np.float32, high: np.float32, sums: Floats
) -> None:
    """Fill ``sums`` (outputs, factors) with what rounding to scales times factors makes of ``|error|^3.5``."""
    for row in range(targets.shape[0]):
        for place in range(factors.size):
            sums[row, place] = np.float32(0)
        for column in range(targets.shape[1]):
            weight = targets[row, column]
            for place in range(factors.size):
                scale = scales[row] * factors[place]
                level = min(max(np.rint(weight / scale), low), high)
                error = abs(level * scale - weight)
                sums[row, place] += error * error * error * np.sqrt(error)


@kernel
def _round(
    targets: Floats, inverse: Floats, roots: Bytes, scales: Floats, table: Floats, codes: Bytes, values: Floats
) -> None:
    """Round each target, and move those behind it; ``table`` (16, codes) are the weights of each root and code."""
    top = np.float32(table.shape[1] - 1)
    middle = np.float32(table.shape[1] // 2)
    for row in range(targets.shape[0]):
        root = roots[row]
        scale = scales[root]
        for column in range(targets.shape[1]):
            target = targets[row, column]
            level = middle
            if scale > 0:
                level = min(max(np.rint(target / scale) + middle, np.float32(0)), top)
            code = int(level)
            value = table[root, code]
            codes[row, column] = code
            values[row, column] = value
            residual = target - value
            for later in range(column + 1, targets.shape[1]):
                targets[row, later] -= residual * inverse[column, later]
