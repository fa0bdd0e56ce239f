"""How matrices of packed folders are rounded, and the second moments by which they are.

A :class:`Rounders` gives the function that rounds some outputs of a matrix. The search for scales (:mod:`.packed.scales`) and the matrices
that are written (:mod:`.packed.matrices`) ask the same one, so that a choice is judged by what will come of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ...formats.base import OpenContext
from ...formats.calibration import open_calibration
from ...quantizers.rounding.activation_scales import group_moments, scaled_factor
from ...quantizers.rounding.feedback import DAMPING, STEP, Factor, column_order, factorize
from ...quantizers.rounding.group_rounding import Grid, Rounded, round_groups, round_with_feedback
from ..shared_work import LastUsed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Inputs", "Key", "Order", "Rounder", "Rounders", "Rounding"]

Order = Literal["none", "groups", "static"]
Key = tuple[str, int]
"""By which the second moment of an input is known: a tensor's name, and of a stack the expert."""
Rounder = Callable[["Floats"], Rounded]
"""Rounds float32 (n, inputs): some outputs of a matrix."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """How matrices are rounded.

    Attributes:
        packing: ``gptq`` or ``awq``.
        grid: what codes are like.
        feedback: whether errors are made up for, where the inputs' second moment is known.
        damping: added to the second moment's diagonal, relative to its mean.
        order: with feedback: ``groups``: inputs with the largest mean square first, and groups in that order; ``static``: the same, but groups of
            neighbours; ``none``: as they come.
    """

    packing: Literal["gptq", "awq"]
    grid: Grid
    feedback: bool = False
    damping: float = DAMPING
    order: Order = "none"


class Inputs:
    """Second moments of a calibration file, the last few of which are kept."""

    def __init__(self, path: Path, context: OpenContext) -> None:
        with open_calibration(path, context) as found:
            self.facts = found.facts
            self.entries = dict(found.entries)
            self._counts = {name: found.counts(name) for name in found.entries}
        self.path = path
        self._context = context
        self._kept: LastUsed[Floats] = LastUsed(2)

    def met(self, name: str, expert: int = 0) -> bool:
        """Whether a tensor's input (of one ``expert`` of a stack) was measured, and any token met it."""
        return name in self.entries and expert < len(self._counts[name]) and bool(self._counts[name][expert])

    def key(self, names: Sequence[str], expert: int = 0) -> Key | None:
        """Return by what the one input of all these tensors is known, None where it is not, or they have several."""
        if not all(self.met(name, expert) for name in names):
            return None
        firsts = {self.entries[name].names[0] for name in names}
        return (firsts.pop(), expert) if len(firsts) == 1 else None

    def moment(self, key: Key) -> Floats:
        """Return float32 (inputs, inputs); any thread may call."""

        def read() -> Floats:
            with open_calibration(self.path, self._context) as found:
                return found.hessian(*key)

        return self._kept.get(key, read)


class Rounders:
    """What rounds matrices, the last few factors of whose inputs are kept.

    Args:
        rounding: how.
        inputs: second moments, or None: every weight becomes the nearest code.
        threads: that will ask.
    """

    def __init__(self, rounding: Rounding, inputs: Inputs | None, threads: int = 1) -> None:
        self.rounding = rounding
        self.inputs = inputs
        self._factors: LastUsed[Factor] = LastUsed(threads + 1)

    def rounder(self, key: Key | None, scales: Floats | None = None) -> Rounder:
        """Return what rounds weights whose input is known by ``key`` and is divided by ``scales``, float32 (inputs,)."""
        grid = self.rounding.grid
        if key is None or self.inputs is None:
            return partial(round_groups, grid=grid)
        if self.rounding.feedback:
            factor = self.factor(key)
            factor = factor if scales is None else scaled_factor(factor, scales)
            return partial(round_with_feedback, factor=factor, grid=grid, static=self.rounding.order == "static")
        moment = self.inputs.moment(key)
        size = grid.size(len(moment))
        if size > STEP:
            importance = moment.diagonal() if scales is None else moment.diagonal() / np.square(scales)
            return partial(round_groups, grid=grid, importance=np.ascontiguousarray(importance))
        return partial(round_groups, grid=grid, moments=group_moments(moment, size, scales))

    def importance(self, key: Key) -> Floats:
        """Return float32 (inputs,): what the square of an error in each input counts; with feedback, what nothing makes up for."""
        assert self.inputs is not None
        diagonal = self.inputs.moment(key).diagonal()
        if not self.rounding.feedback:
            return diagonal
        factor = self.factor(key)
        left = np.empty(len(diagonal), np.float32)
        left[factor.order] = factor.weights
        return np.minimum(left, diagonal)

    def factor(self, key: Key) -> Factor:
        """Return the factor of inputs that nothing divides; any thread may call."""
        return self._factors.get(key, partial(self._factorize, key))

    def _factorize(self, key: Key) -> Factor:
        assert self.inputs is not None
        moment = self.inputs.moment(key)
        order = None if self.rounding.order == "none" else column_order(moment)
        return factorize(moment, self.rounding.damping, order)
