"""The scales of the places where AWQ scales inputs: searched when a tensor first asks for them, on a sample of the matrices behind each place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from ...quantizers.rounding.activation_scales import (
    POWERS,
    best_powers,
    input_scales,
    output_energies,
    scaling_losses,
    weight_sizes,
)
from ..shared_work import SharedWork
from .activation_folds import Fold
from .rounding import Key, Rounders

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Scales"]

_SAMPLE: Final = 512  # outputs of all matrices of a fold that its scales are chosen on
_RUN: Final = 16  # of them that follow one another


class Scales:
    """The scales of a model's folds: vectors, all of which are kept.

    Args:
        folds: the places.
        rounders: what will round the matrices behind them.
    """

    def __init__(self, folds: Sequence[Fold], rounders: Rounders) -> None:
        self.folds = folds
        self._rounders = rounders
        self._found: dict[int, Floats] = {}
        self._losses: list[dict[tuple[float, float], tuple[float, ...]]] = [{} for _ in folds]
        self._candidates: list[dict[tuple[float, float], Floats]] = [{} for _ in folds]
        self._work = [SharedWork(partial(self._begin, number)) for number in range(len(folds))]

    def __call__(self, number: int) -> Floats:
        """Return float32 (inputs,): the scales of a fold, ones where no others are better."""
        if number not in self._found:
            self._work[number].finish()
            self._found[number] = self._candidates[number][best_powers(self._losses[number])]
            self._work[number] = SharedWork(tuple)  # the sample is not needed any more
        return self._found[number]

    def losses(self, number: int) -> dict[tuple[float, float], tuple[float, ...]]:
        """Return what each pair of powers costs the sample of each matrix of a fold (:func:`~qconv.quantizers.rounding.activation_scales.scaling_losses`)."""
        self(number)
        return dict(self._losses[number])

    def _key(self, number: int) -> Key:
        name, expert = self.folds[number].moment
        assert self._rounders.inputs is not None
        key = self._rounders.inputs.key([name], expert)
        assert key is not None
        return key

    def _begin(self, number: int) -> list[Callable[[], None]]:
        assert self._rounders.inputs is not None
        key = self._key(number)
        moment = self._rounders.inputs.moment(key)
        sample = self._sample(number)
        energies = output_energies(sample, moment)
        activations, sizes = self._rounders.importance(key), weight_sizes(sample, energies)
        candidates = {powers: input_scales(activations, sizes, powers) for powers in POWERS}
        self._candidates[number] = candidates

        def measure(powers: tuple[float, float]) -> None:
            scales = candidates[powers]
            rounder = self._rounders.rounder(key, scales)
            self._losses[number][powers] = scaling_losses(sample, energies, moment, scales, rounder)

        return [partial(measure, powers) for powers in POWERS]

    def _sample(self, number: int) -> list[Floats]:
        """Return float32 (outputs, inputs): runs of rows spread evenly over each matrix."""
        matrices = self.folds[number].packed
        runs = max(1, _SAMPLE // len(matrices) // _RUN)
        sample = []
        for matrix in matrices:
            count = min(runs, max(1, matrix.rows // _RUN))
            starts = np.linspace(0, max(0, matrix.rows - _RUN), count).astype(int)
            rows = [matrix.decode(slice(int(it), min(matrix.rows, int(it) + _RUN))) for it in starts]
            sample.append(np.concatenate(rows))
        return sample
