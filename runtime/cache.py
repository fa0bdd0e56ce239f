"""Keys and values of earlier positions, so that a later pass need not compute them again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import ModelError, UsageError
from ..quantizers.base import Encoding
from ..quantizers.catalog import BUILT_IN
from .building.configuration import Configuration
from .cache_places import Places
from .workers import Workers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["CACHE_TYPES", "BlockCache", "Cache", "FloatCache", "make_cache"]

CACHE_TYPES = ("F32", "Q8_0", "Q4_0")
"""Encodings that :func:`make_cache` knows."""

_LARGEST = 65504.0  # of float16, which holds the scales of blocks
_TASK_NUMBERS = 1 << 17  # that one thread encodes or decodes at a time: some tens of microseconds


class Cache(Protocol):
    """Holds keys (after rotation) and values per block and sequence, or what blocks with a memory of fixed size remember.

    A pass calls :meth:`extend`, or ``recall`` and ``remember`` of :attr:`places`, in every block, then ``places.advance`` once.
    """

    @property
    def places(self) -> Places:
        """How many positions are held, and what blocks remember."""
        ...

    def extend(
        self, layer: int, sequence: int, keys: Floats, values: Floats, workers: Workers | None = None
    ) -> tuple[Floats, Floats]:
        """Hold keys and values, float32 (kv heads, n, size), behind the positions that are held; return those of all positions.

        What is returned may change with the next call for this sequence. ``workers`` share what is to be computed.
        """
        ...

    def again(self, layer: int, sequence: int, count: int, workers: Workers | None = None) -> tuple[Floats, Floats]:
        """Return the keys and values of all positions of a layer once more, the ``count`` that it was given in this pass included."""
        ...


class FloatCache:
    """A cache in float32.

    Args:
        configuration: of the model.
        capacities: the most positions of each sequence.
    """

    def __init__(self, configuration: Configuration, capacities: Sequence[int]) -> None:
        self._held = [
            [tuple(np.empty((heads, capacity, width), np.float32) for width in widths) for capacity in capacities]
            for heads, widths in map(_shape, repeat(configuration), range(configuration.layers))
        ]
        self.places = Places(capacities)

    def extend(
        self, layer: int, sequence: int, keys: Floats, values: Floats, workers: Workers | None = None
    ) -> tuple[Floats, Floats]:
        """Hold keys and values, float32 (kv heads, n, size); return views of all; raises UsageError where they do not fit."""
        start, stop = self.places.next(sequence, keys.shape[1])
        held_keys, held_values = self._held[layer][sequence]
        held_keys[:, start:stop], held_values[:, start:stop] = keys, values
        return held_keys[:, :stop], held_values[:, :stop]

    def again(self, layer: int, sequence: int, count: int, workers: Workers | None = None) -> tuple[Floats, Floats]:
        """Return views of the keys and values of a layer, those of the ``count`` newest positions included."""
        held_keys, held_values = self._held[layer][sequence]
        stop = self.places.lengths[sequence] + count
        return held_keys[:, :stop], held_values[:, :stop]


class BlockCache:
    """A cache in blocks of an encoding, along the dimensions of each head. Attention sees what the blocks hold, also of the newest positions.

    All positions of one layer at a time are decoded to float32, in every pass, into memory that all layers use in turn.

    Args:
        configuration: of the model.
        capacities: the most positions of each sequence.
        encoding: of keys and values.

    Raises UsageError where heads are no whole number of blocks.
    """

    def __init__(self, configuration: Configuration, capacities: Sequence[int], encoding: Encoding) -> None:
        shapes = [_shape(configuration, layer) for layer in range(configuration.layers)]
        unfit = next((width for _, widths in shapes for width in widths if not encoding.fits(width)), None)
        if unfit is not None:
            raise UsageError(
                f"a head of {unfit} dimensions is no whole number of blocks of {encoding.block_size}, "
                f"so keys and values cannot be held as {encoding.name}",
                remedy="Use --cache-type f32.",
            )
        self._held = [
            [
                tuple(np.empty((heads, capacity, encoding.row_bytes(width)), np.uint8) for width in widths)
                for capacity in capacities
            ]
            for heads, widths in shapes
        ]
        self._shapes = shapes
        largest = [max(heads * widths[part] for heads, widths in shapes) for part in range(2)]
        self._seen = [tuple(np.empty(size * capacity, np.float32) for size in largest) for capacity in capacities]
        self.places = Places(capacities)
        self._encoding = encoding

    def extend(
        self, layer: int, sequence: int, keys: Floats, values: Floats, workers: Workers | None = None
    ) -> tuple[Floats, Floats]:
        """Hold keys and values, float32 (kv heads, n, size); return all, decoded, until the next call for this sequence.

        Raises UsageError where they do not fit, ModelError where they are not finite or beyond what a block can hold.
        """
        start, stop = self.places.next(sequence, keys.shape[1])
        return self._take(layer, sequence, keys, values, start, stop, workers)

    def again(self, layer: int, sequence: int, count: int, workers: Workers | None = None) -> tuple[Floats, Floats]:
        """Return the keys and values of a layer, decoded once more, until the next call for this sequence."""
        stop = self.places.lengths[sequence] + count
        heads, widths = self._shapes[layer]
        none = [np.empty((heads, 0, width), np.float32) for width in widths]
        return self._take(layer, sequence, none[0], none[1], stop, stop, workers)

    def _take(
        self,
        layer: int,
        sequence: int,
        keys: Floats,
        values: Floats,
        start: int,
        stop: int,
        workers: Workers | None,
    ) -> tuple[Floats, Floats]:
        """Hold what is new, and decode the positions before ``stop``."""
        held, seen = self._held[layer][sequence], self._decoded(layer, sequence)

        def take(task: tuple[int, slice, slice]) -> None:
            """Encode what is new of some positions of some heads, and decode all of them."""
            part, heads, positions = task
            if positions.stop > start:
                fresh = slice(max(positions.start, start), positions.stop)
                new = (keys, values)[part][heads, fresh.start - start : fresh.stop - start]
                self._check(layer, ("key", "value")[part], new, fresh)
                encoded = self._encoding.encode(new.reshape(-1, new.shape[2]))
                held[part][heads, fresh] = encoded.reshape(*new.shape[:2], -1)
            self._decode(held[part][heads, positions], seen[part][heads, positions])

        step = max(1, _TASK_NUMBERS // max(it.shape[2] for it in seen))
        tasks = [
            (part, heads, positions)
            for part in range(2)
            for heads in _slices(len(keys), max(1, step // stop))
            for positions in _slices(stop, step)
        ]
        if workers is None or 2 * len(keys) * stop <= step:
            for task in tasks:
                take(task)
        else:
            workers.map(take, tasks)
        return seen[0][:, :stop], seen[1][:, :stop]

    def _decoded(self, layer: int, sequence: int) -> tuple[Floats, Floats]:
        """Return the memory for decoded keys and values, float32 (kv heads, capacity, size), which all layers use in turn."""
        (heads, widths), capacity = self._shapes[layer], self.places.capacities[sequence]
        keys, values = (
            whole[: heads * capacity * width].reshape(heads, capacity, width)
            for whole, width in zip(self._seen[sequence], widths, strict=True)
        )
        return keys, values

    def _decode(self, held: NDArray[np.uint8], out: Floats) -> None:
        rows = np.ascontiguousarray(held.reshape(-1, held.shape[2]))
        if out.flags.c_contiguous:  # of one head
            self._encoding.codec().decode(rows, out.reshape(-1, out.shape[2]))
        else:
            out[...] = self._encoding.decode(rows).reshape(out.shape)

    def _check(self, layer: int, what: str, new: Floats, positions: slice) -> None:
        if not max(float(new.max()), -float(new.min())) <= _LARGEST:  # NaN is not less either
            raise ModelError(
                f"block {layer} gives a {what} that {self._encoding.name} cannot hold, "
                f"at one of the positions {positions.start} to {positions.stop - 1}",
                remedy="With --cache-type f32 an error names the place if a weight is damaged.",
            )


def _shape(configuration: Configuration, layer: int) -> tuple[int, tuple[int, int]]:
    """Return the heads of a layer's keys and values, and the dimensions of either; no heads where it reads those of another layer."""
    own = configuration.keys_from(layer) == layer
    sizes = configuration.layer_head_size(layer), configuration.layer_value_size(layer)
    return configuration.layer_kv_heads(layer) if own else 0, sizes


def _slices(count: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def make_cache(configuration: Configuration, capacities: Sequence[int], kind: str = "F32") -> Cache:
    """Return an empty cache of one of :data:`CACHE_TYPES`. Raises UsageError for another, and as :class:`BlockCache`."""
    if kind not in CACHE_TYPES:
        raise UsageError(f"there is no key-value cache of type {kind}", remedy=f"Choose from {', '.join(CACHE_TYPES)}.")
    if kind == "F32":
        return FloatCache(configuration, capacities)
    return BlockCache(configuration, capacities, next(item for item in BUILT_IN if item.name == kind))
