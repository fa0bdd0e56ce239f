"""Importance matrices: how much each input channel of a weight matrix matters, as measured on text.

An entry holds, per matrix of a stack (one, or one per expert) and per column, the sum of squared activations that met the column, and per
matrix the number of activations (tokens) in that sum. Their quotient is what llama.cpp weights squared errors with. By itself it
takes eight tokens for as good as eight thousand, and gives columns that were never active no weight at all. :meth:`ImportanceMatrix.vector`
therefore, unless ``compat``:

* shrinks a matrix's mean towards the mean over its stack, and that towards the mean over all columns, as if each had been seen
  :data:`PRIOR_COUNT` times more;
* divides by the mean over columns, which no encoder's choice depends on, so that kernels meet numbers of ordinary size;
* lifts what is below :data:`FLOOR` of the mean to it, so that no block is without weight;
* takes the square root, the root mean square of the activation: with the mean square itself models diverge more from their source than
  their weighted errors say, at two bits of a trained one even more than without importance (``docs/encodings.md`` has figures).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

from ..errors import EncodingError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FLOOR", "PRIOR_COUNT", "ImportanceEntry", "ImportanceMatrix", "fault", "merge"]

PRIOR_COUNT: Final = 32.0
"""Activations that the prior counts for: with as many of its own, an expert's mean stands half way to that of all experts."""

FLOOR: Final = 1e-4
"""Least mean square of a column, relative to the mean over columns."""


@dataclass(frozen=True, eq=False)
class ImportanceEntry:
    """What was measured for one tensor.

    Attributes:
        sums: float32 (matrices, columns), sums of squared activations. A file that does not say how many matrices a tensor has gives
            (1, matrices * columns).
        counts: float64 (matrices,), how many activations are in each sum.
    """

    sums: NDArray[np.float32]
    counts: NDArray[np.float64]

    @property
    def coverage(self) -> float:
        """Share of the matrices that met any activation."""
        return float(np.mean(self.counts > 0))

    @cached_property
    def pooled(self) -> NDArray[np.float64]:
        """Mean squared activation per column over the whole stack, shrunk towards the mean over columns; zeros without data."""
        total = self.sums.sum(axis=0, dtype=np.float64)
        count = self.counts.sum()
        if not count:
            return np.zeros_like(total)
        prior = total.mean() / count
        return np.asarray((total + PRIOR_COUNT * prior) / (count + PRIOR_COUNT))


@dataclass(frozen=True)
class ImportanceMatrix:
    """The entries of a file, and where they come from.

    Attributes:
        entries: by the name of the weight tensor (``blk.0.ffn_down.weight``).
        datasets: names of the texts.
        chunk_count: chunks of text that were run.
        chunk_size: tokens per chunk.
        compat: give importance as llama.cpp does: the quotient, and ones for a matrix without data.

    Raises EncodingError, naming the tensor, for entries that are not finite or negative.
    """

    entries: Mapping[str, ImportanceEntry]
    datasets: tuple[str, ...] = ()
    chunk_count: int = 0
    chunk_size: int = 512
    compat: bool = False

    def __post_init__(self) -> None:
        for name, entry in self.entries.items():
            found = fault(entry)
            if found is not None:
                raise EncodingError(f"importance {found}", tensor=name)

    def vector(self, name: str, columns: int, expert: int = 0, experts: int = 1) -> NDArray[np.float32]:
        """Return float32 (columns,) for matrix ``expert`` of the ``experts`` matrices of tensor ``name``.

        Raises EncodingError where there is no entry, or one of another size.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise EncodingError("the importance matrix has no entry for it", tensor=name)
        if entry.sums.size != experts * columns or len(entry.counts) not in (1, experts):
            raise EncodingError(
                f"the importance matrix has {_size(entry.sums.shape)} values for it, but it has {_size((experts, columns))} columns",
                tensor=name,
                remedy="Use an importance matrix that was made for this model.",
            )
        entry = _stacked(entry, experts, columns)
        return _quotient(entry, expert) if self.compat else _regular(entry, expert)

    def filtered(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> ImportanceMatrix:
        """Return the entries whose name contains any of ``include``, or none of ``exclude``.

        Raises UsageError where both are given, or nothing is left.
        """
        if include and exclude:
            raise UsageError("--include-weights and --exclude-weights exclude each other")
        kept = {
            name: entry
            for name, entry in self.entries.items()
            if (not include or any(part in name for part in include)) and not any(part in name for part in exclude)
        }
        if self.entries and not kept:
            raise UsageError("no entry of the importance matrix is left after --include-weights and --exclude-weights")
        return replace(self, entries=MappingProxyType(kept))


def fault(entry: ImportanceEntry) -> str | None:
    """Return what makes an entry unusable (``has …``, ``is …``), or None."""
    sums, counts = entry.sums, entry.counts
    if sums.ndim != 2 or not sums.size or counts.shape != (len(sums),):
        return f"has sums of shape {sums.shape} and counts of shape {counts.shape}"
    for what, values in (("sums", sums), ("counts", counts)):
        if not np.isfinite(values).all():
            return f"has {what} that are not finite"
        if (values < 0).any():
            return f"has negative {what}"
    return "has counts between 0 and 1" if ((counts > 0) & (counts < 1)).any() else None


def merge(matrices: Sequence[ImportanceMatrix]) -> ImportanceMatrix:
    """Return the sums over several matrices, each weighted by what it saw; they need not cover the same tensors.

    Raises EncodingError for a tensor that has different sizes in them, UsageError for none at all.
    """
    if not matrices:
        raise UsageError("there is no importance matrix to merge")
    entries: dict[str, ImportanceEntry] = {}
    for name in sorted({name for matrix in matrices for name in matrix.entries}):
        found = [matrix.entries[name] for matrix in matrices if name in matrix.entries]
        shapes = {entry.sums.shape for entry in found}
        if len(shapes) > 1:
            raise EncodingError(f"has different sizes: {', '.join(_size(s) for s in sorted(shapes))}", tensor=name)
        sums = np.asarray(np.sum([entry.sums for entry in found], axis=0, dtype=np.float64), np.float32)
        entries[name] = ImportanceEntry(sums, np.sum([entry.counts for entry in found], axis=0))
    first = matrices[0]
    return replace(
        first,
        entries=MappingProxyType(entries),
        datasets=tuple(dict.fromkeys(name for matrix in matrices for name in matrix.datasets)),
        chunk_count=sum(matrix.chunk_count * matrix.chunk_size for matrix in matrices) // first.chunk_size,
    )


def _size(shape: tuple[int, ...]) -> str:
    """Return a shape in words."""
    return " x ".join(map(str, shape))


@lru_cache(maxsize=16)
def _stacked(entry: ImportanceEntry, experts: int, columns: int) -> ImportanceEntry:
    """Return the entry as (experts, columns).

    An entry that does not say how many matrices there are comes from a file that gives an expert without data the same number for
    every column, the one that makes its mean 1.
    """
    if entry.sums.shape == (experts, columns):
        return entry
    sums = entry.sums.reshape(experts, columns)
    blank = (sums == entry.counts[0]).all(axis=1)
    counts = np.where(blank, 0.0, entry.counts[0])
    return ImportanceEntry(np.asarray(np.where(blank[:, None], 0, sums), np.float32), counts)


def _quotient(entry: ImportanceEntry, expert: int) -> NDArray[np.float32]:
    """Return llama.cpp's importance: the mean squared activation, ones without data."""
    count = np.float32(entry.counts[expert])
    if not count:
        return np.ones(entry.sums.shape[1], np.float32)
    return np.asarray(entry.sums[expert] / count, np.float32)


def _regular(entry: ImportanceEntry, expert: int) -> NDArray[np.float32]:
    """Return the square root of the shrunk, scaled and floored mean square."""
    pooled = entry.pooled
    mean = pooled
    if len(entry.counts) > 1:
        mean = (entry.sums[expert] + PRIOR_COUNT * pooled) / (entry.counts[expert] + PRIOR_COUNT)
    level = mean.mean()
    if not level:
        return np.ones(mean.shape, np.float32)
    return np.asarray(np.sqrt(np.maximum(mean / level, FLOOR)), np.float32)
