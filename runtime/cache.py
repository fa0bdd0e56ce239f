"""Keys and values of earlier positions, so that a later pass need not compute them again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import ModelError, UsageError
from ..quantizers.base import Encoding
from ..quantizers.catalog import BUILT_IN
from .configuration import Configuration

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]

__all__ = ["CACHE_TYPES", "BlockCache", "Cache", "FloatCache", "make_cache"]

CACHE_TYPES = ("F32", "Q8_0", "Q4_0")
"""Encodings that :func:`make_cache` knows."""

_LARGEST = 65504.0  # of float16, which holds the scales of blocks


class Cache(Protocol):
    """Holds keys (after rotation) and values per block and sequence. A pass calls :meth:`extend` in every block, then :meth:`advance` once."""

    def length(self, sequence: int) -> int:
        """Return how many positions of a sequence are held."""
        ...

    def capacity(self, sequence: int) -> int:
        """Return how many positions of a sequence can be held."""
        ...

    def extend(self, layer: int, sequence: int, keys: Floats, values: Floats) -> tuple[Floats, Floats]:
        """Hold keys and values, float32 (kv heads, n, size), behind the :meth:`length` positions; return those of all positions."""
        ...

    def advance(self, sequence: int, count: int) -> None:
        """Count the positions that every block has by now been given."""
        ...

    def truncate(self, sequence: int, length: int) -> None:
        """Forget the positions of a sequence from ``length`` on."""
        ...


class FloatCache:
    """A cache in float32.

    Args:
        configuration: of the model.
        capacities: the most positions of each sequence.
    """

    def __init__(self, configuration: Configuration, capacities: Sequence[int]) -> None:
        widths = configuration.head_size, configuration.value_size
        self._held = [
            [
                tuple(np.empty((configuration.kv_heads, capacity, width), np.float32) for width in widths)
                for capacity in capacities
            ]
            for _ in range(configuration.layers)
        ]
        self._places = _Places(capacities)

    def length(self, sequence: int) -> int:
        """Return how many positions of a sequence are held."""
        return self._places.lengths[sequence]

    def capacity(self, sequence: int) -> int:
        """Return how many positions of a sequence can be held."""
        return self._places.capacities[sequence]

    def extend(self, layer: int, sequence: int, keys: Floats, values: Floats) -> tuple[Floats, Floats]:
        """Hold keys and values, float32 (kv heads, n, size); return views of all; raises UsageError where they do not fit."""
        start, stop = self._places.next(sequence, keys.shape[1])
        held_keys, held_values = self._held[layer][sequence]
        held_keys[:, start:stop], held_values[:, start:stop] = keys, values
        return held_keys[:, :stop], held_values[:, :stop]

    def advance(self, sequence: int, count: int) -> None:
        """Count the positions that every block has by now been given."""
        self._places.lengths[sequence] += count

    def truncate(self, sequence: int, length: int) -> None:
        """Forget the positions of a sequence from ``length`` on."""
        self._places.truncate(sequence, length)


class BlockCache:
    """A cache in blocks of an encoding, along the dimensions of each head. Attention sees what the blocks hold, also of the newest positions.

    All positions of one layer at a time are decoded to float32, in every pass.

    Args:
        configuration: of the model.
        capacities: the most positions of each sequence.
        encoding: of keys and values.

    Raises UsageError where heads are no whole number of blocks.
    """

    def __init__(self, configuration: Configuration, capacities: Sequence[int], encoding: Encoding) -> None:
        widths = configuration.head_size, configuration.value_size
        unfit = next((width for width in widths if not encoding.fits(width)), None)
        if unfit is not None:
            raise UsageError(
                f"a head of {unfit} dimensions is no whole number of blocks of {encoding.block_size}, "
                f"so keys and values cannot be held as {encoding.name}",
                remedy="Use --cache-type f32.",
            )
        self._held = [
            [
                tuple(
                    np.empty((configuration.kv_heads, capacity, encoding.row_bytes(width)), np.uint8)
                    for width in widths
                )
                for capacity in capacities
            ]
            for _ in range(configuration.layers)
        ]
        self._places = _Places(capacities)
        self._encoding = encoding

    def length(self, sequence: int) -> int:
        """Return how many positions of a sequence are held."""
        return self._places.lengths[sequence]

    def capacity(self, sequence: int) -> int:
        """Return how many positions of a sequence can be held."""
        return self._places.capacities[sequence]

    def extend(self, layer: int, sequence: int, keys: Floats, values: Floats) -> tuple[Floats, Floats]:
        """Hold keys and values, float32 (kv heads, n, size); return all, decoded.

        Raises UsageError where they do not fit, ModelError where they are not finite or beyond what a block can hold.
        """
        start, stop = self._places.next(sequence, keys.shape[1])
        held = self._held[layer][sequence]
        for part, what, new in zip(held, ("key", "value"), (keys, values), strict=True):
            if not max(float(new.max()), -float(new.min())) <= _LARGEST:  # NaN is not less either
                raise ModelError(
                    f"block {layer} gives a {what} that {self._encoding.name} cannot hold, at one of the positions {start} to {stop - 1}",
                    remedy="With --cache-type f32 an error names the place if a weight is damaged.",
                )
            part[:, start:stop] = self._encode(new)
        return self._decode(held[0][:, :stop]), self._decode(held[1][:, :stop])

    def advance(self, sequence: int, count: int) -> None:
        """Count the positions that every block has by now been given."""
        self._places.lengths[sequence] += count

    def truncate(self, sequence: int, length: int) -> None:
        """Forget the positions of a sequence from ``length`` on."""
        self._places.truncate(sequence, length)

    def _encode(self, rows: Floats) -> Bytes:
        heads, count, size = rows.shape
        return self._encoding.encode(rows.reshape(heads * count, size)).reshape(heads, count, -1)

    def _decode(self, held: Bytes) -> Floats:
        heads, count, width = held.shape
        return self._encoding.decode(held.reshape(heads * count, width)).reshape(heads, count, -1)


def make_cache(configuration: Configuration, capacities: Sequence[int], kind: str = "F32") -> Cache:
    """Return an empty cache of one of :data:`CACHE_TYPES`. Raises UsageError for another, and as :class:`BlockCache`."""
    if kind not in CACHE_TYPES:
        raise UsageError(f"there is no key-value cache of type {kind}", remedy=f"Choose from {', '.join(CACHE_TYPES)}.")
    if kind == "F32":
        return FloatCache(configuration, capacities)
    return BlockCache(configuration, capacities, next(item for item in BUILT_IN if item.name == kind))


class _Places:
    """How many positions of each sequence a cache holds and can hold."""

    def __init__(self, capacities: Sequence[int]) -> None:
        self.capacities = tuple(capacities)
        self.lengths = [0 for _ in capacities]

    def next(self, sequence: int, count: int) -> tuple[int, int]:
        """Return the first of ``count`` new positions and the one behind the last; raises UsageError where they do not fit."""
        start = self.lengths[sequence]
        if start + count > self.capacities[sequence]:
            raise UsageError(
                f"{start + count} positions do not fit a key-value cache of {self.capacities[sequence]}",
                remedy="Make the context larger, or the text shorter.",
            )
        return start, start + count

    def truncate(self, sequence: int, length: int) -> None:
        """Shorten a sequence to ``length``; raises UsageError where that is not shorter."""
        if not 0 <= length <= self.lengths[sequence]:
            raise UsageError(f"{self.lengths[sequence]} positions cannot be cut to {length}")
        self.lengths[sequence] = length
