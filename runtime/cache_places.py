"""Where the sequences of a cache have come to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    State = tuple[NDArray[np.float32], ...]

__all__ = ["Places"]


class Places:
    """How many positions of each sequence a cache holds and can hold, and what blocks remember of them, by block.

    What blocks remember behind a pass that was interrupted is no use to any other: it is ``coming`` until the pass is done.
    """

    def __init__(self, capacities: Sequence[int]) -> None:
        self.capacities = tuple(capacities)
        self.lengths = [0 for _ in capacities]
        self.states: list[dict[int, State]] = [{} for _ in capacities]
        self.coming: list[dict[int, State]] = [{} for _ in capacities]

    def next(self, sequence: int, count: int) -> tuple[int, int]:
        """Return the first of ``count`` new positions and the one behind the last; raises UsageError where they do not fit."""
        start = self.lengths[sequence]
        if start + count > self.capacities[sequence]:
            raise UsageError(
                f"{start + count} positions do not fit a key-value cache of {self.capacities[sequence]}",
                remedy="Make the context larger, or the text shorter.",
            )
        return start, start + count

    def recall(self, layer: int, sequence: int) -> State | None:
        """Return what a block remembers of the positions that are held, not to be written to; None at the beginning."""
        return self.states[sequence].get(layer)

    def remember(self, layer: int, sequence: int, state: State) -> None:
        """Hold what a block remembers behind the new positions; it counts from :meth:`advance` on."""
        self.coming[sequence][layer] = state

    def advance(self, sequence: int, count: int) -> None:
        """Count the positions that every block has by now been given."""
        self.lengths[sequence] += count
        self.states[sequence] |= self.coming[sequence]
        self.coming[sequence] = {}

    def truncate(self, sequence: int, length: int) -> int:
        """Forget the positions of a sequence from ``length`` on, or all where blocks remember all in one; return how many are left.

        Raises UsageError where fewer than ``length`` are held.
        """
        if not 0 <= length <= self.lengths[sequence]:
            raise UsageError(f"{self.lengths[sequence]} positions cannot be cut to {length}")
        self.coming[sequence] = {}
        if self.states[sequence] and length < self.lengths[sequence]:
            self.states[sequence], length = {}, 0
        self.lengths[sequence] = length
        return length
