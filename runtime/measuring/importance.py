"""Collect importance matrices: sums of squared inputs of every matrix, by column, as llama.cpp's tool defines them, but in float64."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from ...errors import ModelError
from ...formats.base import Model
from ...quantizers.importance import ImportanceEntry
from ..hooks import ProductInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Doubles = NDArray[np.float64]

__all__ = ["ImportanceCollector"]

_SLICE_ROWS = 256  # converted to float64 at a time


class ImportanceCollector:
    """A :class:`~.hooks.Collector` that adds up squares.

    Matrices that share an input (query, key and value; gate and up) share its sums. Every expert has sums and a count of its own.

    Args:
        model: whose pass it watches.
        skip_first: leave out the first position of every sequence, where BOS stands: its activations are extreme, and there is one per
            context, not one per text.
        output: collect the output's input as well, under the output's or, where they are tied, the embedding's name.
    """

    def __init__(self, model: Model, *, skip_first: bool, output: bool = False) -> None:
        self._model = model
        self._skip_first = skip_first
        self._output = output
        self._sums: dict[tuple[str, ...], Doubles] = {}
        self._counts: dict[tuple[str, ...], Doubles] = {}

    def __call__(self, found: ProductInput) -> None:
        """Add one input; raises ModelError, naming the tensor, where it is not finite."""
        if not self._wanted(found.names):
            return
        values = found.values
        if self._skip_first:
            kept = found.positions > 0
            values = values if kept.all() else values[kept]
        sums, counts = self._slots(found.names, values.shape[1])
        expert = found.expert or 0
        for start in range(0, len(values), _SLICE_ROWS):
            part = values[start : start + _SLICE_ROWS].astype(np.float64)
            sums[expert] += np.einsum("ij,ij->j", part, part)
        counts[expert] += len(values)
        if not np.isfinite(sums[expert]).all():
            raise ModelError(
                "its input holds NaN or infinity",
                path=self._model.path,
                tensor=found.names[0],
                remedy="A weight before it is damaged or its type has too small a range; compare with the model's source.",
            )

    def entries(self) -> Mapping[str, ImportanceEntry]:
        """Return what was collected, by the name of the weight tensor."""
        found = {}
        for names, sums in self._sums.items():
            entry = ImportanceEntry(sums.astype(np.float32), self._counts[names].copy())
            found.update(dict.fromkeys(names, entry))
        return MappingProxyType(dict(sorted(found.items())))

    def state(self) -> dict[str, Doubles]:
        """Return everything collected so far as float64 arrays with unique names, for :meth:`restore`."""
        found = {}
        for names, sums in self._sums.items():
            key = ",".join(names)
            found[f"sums:{key}"] = sums
            found[f"counts:{key}"] = self._counts[names]
        return found

    def restore(self, state: Mapping[str, Doubles]) -> None:
        """Continue from a :meth:`state` of the same network."""
        for key, values in state.items():
            kind, _, names = key.partition(":")
            target = self._sums if kind == "sums" else self._counts
            target[tuple(names.split(","))] = np.array(values, np.float64)

    def _wanted(self, names: tuple[str, ...]) -> bool:
        return self._output or names[0].startswith("blk.")

    def _slots(self, names: tuple[str, ...], columns: int) -> tuple[Doubles, Doubles]:
        if names not in self._sums:
            shape = self._model.tensors[names[0]].shape
            matrices = shape[0] if len(shape) > 2 else 1
            self._sums[names] = np.zeros((matrices, columns), np.float64)
            self._counts[names] = np.zeros(matrices, np.float64)
        return self._sums[names], self._counts[names]
