"""Keys and values of earlier positions, so that a later pass need not compute them again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import UsageError
from .configuration import Configuration

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Cache", "FloatCache"]


class Cache(Protocol):
    """Holds keys (after rotation) and values per block and sequence. A pass calls :meth:`extend` in every block, then :meth:`advance` once."""

    def length(self, sequence: int) -> int:
        """Return how many positions of a sequence are held."""
        ...

    def extend(self, layer: int, sequence: int, keys: Floats, values: Floats) -> tuple[Floats, Floats]:
        """Hold keys and values, float32 (kv heads, n, head size), behind the :meth:`length` positions; return those of all positions."""
        ...

    def advance(self, sequence: int, count: int) -> None:
        """Count the positions that every block has by now been given."""
        ...


class FloatCache:
    """A cache in float32.

    Args:
        configuration: of the model.
        capacities: the most positions of each sequence.
    """

    def __init__(self, configuration: Configuration, capacities: Sequence[int]) -> None:
        sizes = [(2, configuration.kv_heads, capacity, configuration.head_size) for capacity in capacities]
        self._held = [[np.empty(size, np.float32) for size in sizes] for _ in range(configuration.layers)]
        self._lengths = [0 for _ in capacities]
        self._capacities = tuple(capacities)

    def length(self, sequence: int) -> int:
        """Return how many positions of a sequence are held."""
        return self._lengths[sequence]

    def extend(self, layer: int, sequence: int, keys: Floats, values: Floats) -> tuple[Floats, Floats]:
        """Hold keys and values, float32 (kv heads, n, head size); return views of all; raises UsageError where they do not fit."""
        start = self._lengths[sequence]
        stop = start + keys.shape[1]
        if stop > self._capacities[sequence]:
            raise UsageError(
                f"{stop} positions do not fit a key-value cache of {self._capacities[sequence]}",
                remedy="Make the context larger, or the text shorter.",
            )
        held = self._held[layer][sequence]
        held[0, :, start:stop], held[1, :, start:stop] = keys, values
        return held[0, :, :stop], held[1, :, :stop]

    def advance(self, sequence: int, count: int) -> None:
        """Count the positions that every block has by now been given."""
        self._lengths[sequence] += count
