"""Collect full second moments: XᵀX of the inputs of chosen matrices, for quantizers that correct errors column by column.

Sums are float64, since they grow with the number of tokens while differences between them matter; the products of at most 512 rows
that go into them are float32, at BLAS's speed, and accurate to about 1e-6 of the diagonal. A matrix of n columns takes 8 n² bytes, so a caller
chooses which to collect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ModelError
from .hooks import ProductInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Doubles = NDArray[np.float64]

__all__ = ["HessianCollector", "SecondMoment"]

_BLOCK_ROWS = 512


@dataclass
class SecondMoment:
    """The second moment of one input.

    Attributes:
        total: float64 (columns, columns), the sum of xᵀx over all rows x.
        count: how many rows.
    """

    total: Doubles
    count: int = 0

    def mean(self) -> Doubles:
        """Return float64 (columns, columns): the sum divided by the count; zeros without rows."""
        return self.total / max(1, self.count)


class HessianCollector:
    """A :class:`~.hooks.Collector` of second moments, with the interface of :class:`~.importance.ImportanceCollector`.

    Args:
        wanted: whether a tensor is collected, by name; matrices that share an input share its moment.
        skip_first: leave out the first position of every sequence, where BOS stands.
    """

    def __init__(self, wanted: Callable[[str], bool], *, skip_first: bool) -> None:
        self._wanted = wanted
        self._skip_first = skip_first
        self._moments: dict[tuple[tuple[str, ...], int | None], SecondMoment] = {}
        self._names: dict[str, tuple[str, ...]] = {}

    def __call__(self, found: ProductInput) -> None:
        """Add one input; raises ModelError, naming the tensor, where it is not finite."""
        if not any(self._wanted(name) for name in found.names):
            return
        values = found.values[found.positions > 0] if self._skip_first else found.values
        columns = values.shape[1]
        self._names.update(dict.fromkeys(found.names, found.names))
        moment = self._moments.setdefault(
            (found.names, found.expert), SecondMoment(np.zeros((columns, columns), np.float64))
        )
        for start in range(0, len(values), _BLOCK_ROWS):
            part = np.ascontiguousarray(values[start : start + _BLOCK_ROWS])
            moment.total += part.T @ part
        moment.count += len(values)
        if not np.isfinite(moment.total.diagonal()).all():
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
