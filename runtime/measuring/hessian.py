"""Collect full second moments: XᵀX of the inputs of chosen matrices, for quantizers that correct errors column by column.

A moment is symmetric, so only the tiles of its upper triangle are computed and kept, side by side on the threads of the pass. Sums are float64, since they
grow with the number of tokens while differences between them matter; the products of at most 1024 rows that go into them are float32, at
BLAS's speed, and accurate to about 1e-6 of the diagonal. A matrix of n columns takes about 4 n² bytes, so a caller chooses which to collect.
What is collected does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from ...errors import ModelError
from ..hooks import ProductInput
from ..workers import Workers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Doubles = NDArray[np.float64]
    Floats = NDArray[np.float32]

__all__ = ["HessianCollector", "SecondMoment", "moment_bytes"]

_BLOCK_ROWS: Final = 1024
_TILE: Final = 512
_LEAST_TILES: Final = 2  # a side, so that two threads have work at any width


def _edges(columns: int) -> list[tuple[int, int]]:
    """Return the columns cut into equal stretches, the sides of tiles."""
    count = max(_LEAST_TILES, -(-columns // _TILE))
    step = -(-columns // count)
    return [(start, min(start + step, columns)) for start in range(0, columns, step)]


def moment_bytes(columns: int) -> int:
    """Return how many bytes the second moment of so many columns takes while it is collected."""
    edges = _edges(columns)
    return 8 * sum((b - a) * (d - c) for i, (a, b) in enumerate(edges) for c, d in edges[i:])


@dataclass
class SecondMoment:
    """The second moment of one input.

    Attributes:
        columns: width of the input.
        count: how many rows were added.
        tiles: float64, sums of the tiles of the upper triangle, by the first row and first column of each.
    """

    columns: int
    count: int = 0
    tiles: dict[tuple[int, int], Doubles] = field(default_factory=dict)

    def __post_init__(self) -> None:
        edges = _edges(self.columns)
        for number, (top, bottom) in enumerate(edges):
            for left, right in edges[number:]:
                self.tiles[top, left] = np.zeros((bottom - top, right - left), np.float64)

    def add(self, values: Floats, workers: Workers | None = None) -> None:
        """Add rows, float32 (n, columns)."""

        def add(place: tuple[int, int]) -> None:
            total = self.tiles[place]
            (top, left), (height, width) = place, total.shape
            for start in range(0, len(values), _BLOCK_ROWS):
                part = values[start : start + _BLOCK_ROWS]
                total += part[:, top : top + height].T @ part[:, left : left + width]

        if workers is None:
            for place in self.tiles:
                add(place)
        else:
            workers.map(add, self.tiles)
        self.count += len(values)

    @property
    def total(self) -> Doubles:
        """Float64 (columns, columns), the sum of xᵀx over all rows x."""
        whole = np.empty((self.columns, self.columns), np.float64)
        self._fill(whole, 1.0)
        return whole

    def mean(self) -> Floats:
        """Return float32 (columns, columns): the sum divided by the count; zeros without rows."""
        whole = np.empty((self.columns, self.columns), np.float32)
        self._fill(whole, 1 / max(1, self.count))
        return whole

    @property
    def diagonal(self) -> Doubles:
        """Float64 (columns,): the sums of squares."""
        return np.concatenate([tile.diagonal() for (top, left), tile in self.tiles.items() if top == left])

    def _fill(self, whole: Doubles | Floats, factor: float) -> None:
        for (top, left), tile in self.tiles.items():
            rows, columns = slice(top, top + tile.shape[0]), slice(left, left + tile.shape[1])
            np.multiply(tile, factor, out=whole[rows, columns], casting="same_kind")
            whole[columns, rows] = whole[rows, columns].T


class HessianCollector:
    """A :class:`~.hooks.Collector` of second moments, with the interface of :class:`~.importance.ImportanceCollector`.

    Args:
        wanted: whether a tensor is collected, by name; matrices that share an input share its moment.
        skip_first: leave out the first position of every sequence, where BOS stands.
        workers: the pass's threads, to use here as well; None: the caller's thread alone.
    """

    def __init__(self, wanted: Callable[[str], bool], *, skip_first: bool, workers: Workers | None = None) -> None:
        self._wanted = wanted
        self._skip_first = skip_first
        self._workers = workers
        self._moments: dict[tuple[tuple[str, ...], int | None], SecondMoment] = {}
        self._names: dict[str, tuple[str, ...]] = {}

    def __call__(self, found: ProductInput) -> None:
        """Add one input; raises ModelError, naming the tensor, where it is not finite."""
        if not any(self._wanted(name) for name in found.names):
            return
        values = found.values[found.positions > 0] if self._skip_first else found.values
        key = (found.names, found.expert)
        if key not in self._moments:
            self._names.update(dict.fromkeys(found.names, found.names))
            self._moments[key] = SecondMoment(values.shape[1])
        moment = self._moments[key]
        with np.errstate(all="ignore"):  # what is not finite is refused below
            moment.add(values, self._workers)
        if not np.isfinite(moment.diagonal).all():
            raise ModelError(
                "its input holds NaN or infinity",
                tensor=found.names[0],
                remedy="A weight before it is damaged or its type has too small a range; compare with the model's source.",
            )

    def moment(self, name: str, expert: int | None = None) -> SecondMoment | None:
        """Return the moment of the inputs of tensor ``name`` (of one ``expert`` of a stack), None where it had none."""
        return self._moments.get((self._names.get(name, ()), expert))

    def clear(self) -> None:
        """Forget everything, to collect another group of tensors."""
        self._moments.clear()
        self._names.clear()
