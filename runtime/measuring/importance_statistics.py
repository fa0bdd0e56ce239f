"""What an importance matrix says about its tensors: llama.cpp's ``--show-statistics``, and how well experts are covered."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from ...quantizers.importance import ImportanceEntry, ImportanceMatrix

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Coverage", "LayerStatistics", "TensorStatistics", "coverage", "layer_statistics", "tensor_statistics"]

_ACTIVE: Final = 1e-5
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """Statistics of one entry, over mean squared activations a of every column of every matrix that has data.

    Attributes:
        name: the tensor.
        layer: its block, or None.
        kind: its name without block and ``.weight``.
        total: sum of a.
        minimum: of a.
        maximum: of a.
        mean: of a.
        deviation: of a, of the population.
        active: share of a above 1e-5.
        count: number of a.
        entropy: of a / total, in bits.
        entropy_share: entropy over log2 of the count.
        outliers: share of a more than one deviation above the mean.
        similarity: cosine of the sums with those of the same tensor in the block before, None for the first.
    """

    name: str
    layer: int | None
    kind: str
    total: float
    minimum: float
    maximum: float
    mean: float
    deviation: float
    active: float
    count: int
    entropy: float
    entropy_share: float
    outliers: float
    similarity: float | None

    def to_dict(self) -> dict[str, object]:
        """Return plain data with stable keys."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """Means over a block's tensors, weighted by their number of values; ``similarity`` over those that have one."""

    layer: int
    total: float
    outliers: float
    similarity: float | None


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many activations the matrices of a stack have seen.

    Attributes:
        name: the tensor.
        matrices: experts, 1 for an ordinary matrix.
        unseen: those without any.
        least: smallest count.
        median: middle count.
        most: largest count.
        thin: numbers of the matrices below the count that was asked for.
    """

    name: str
    matrices: int
    unseen: int
    least: int
    median: float
    most: int
    thin: tuple[int, ...]

    def to_dict(self) -> dict[str, object]:
        """Return plain data with stable keys."""
        return asdict(self)


def tensor_statistics(matrix: ImportanceMatrix) -> list[TensorStatistics]:
    """Return statistics of every entry that has data, by kind, and within one from the largest total down."""
    found = [
        _statistics(name, entry, matrix.entries) for name, entry in matrix.entries.items() if (entry.counts > 0).any()
    ]
    return sorted(found, key=lambda it: (it.kind, -it.total))


def layer_statistics(tensors: list[TensorStatistics]) -> list[LayerStatistics]:
    """Return one line per block, in order."""
    found = []
    for layer in sorted({it.layer for it in tensors if it.layer is not None}):
        own = [it for it in tensors if it.layer == layer]
        linked = [(it.similarity, it.count) for it in own if it.similarity is not None]
        found.append(
            LayerStatistics(
                layer,
                _weighted([(it.total, it.count) for it in own]),
                _weighted([(it.outliers, it.count) for it in own]),
                _weighted(linked) if linked else None,
            )
        )
    return found


def coverage(matrix: ImportanceMatrix, least: int) -> list[Coverage]:
    """Return the counts of every entry; matrices with fewer than ``least`` are ``thin``."""
    return [
        Coverage(
            name=name,
            matrices=len(entry.counts),
            unseen=int((entry.counts == 0).sum()),
            least=int(entry.counts.min()),
            median=float(np.median(entry.counts)),
            most=int(entry.counts.max()),
            thin=tuple(map(int, np.nonzero(entry.counts < least)[0])),
        )
        for name, entry in matrix.entries.items()
    ]


def _weighted(values: list[tuple[float, int]]) -> float:
    return sum(value * count for value, count in values) / sum(count for _, count in values)


def _statistics(name: str, entry: ImportanceEntry, entries: Mapping[str, ImportanceEntry]) -> TensorStatistics:
    seen = entry.counts > 0
    means = (entry.sums[seen].astype(np.float64) / entry.counts[seen, None]).ravel()
    total, deviation = float(means.sum()), float(means.std())
    shares = means[means > 0] / total if total else means[:0]
    entropy = float(-(shares * np.log2(shares)).sum())
    block = _BLOCK.fullmatch(name)
    before = entries.get(f"blk.{int(block[1]) - 1}.{block[2]}") if block else None
    return TensorStatistics(
        name=name,
        layer=int(block[1]) if block else None,
        kind=(block[2] if block else name).removesuffix(".weight"),
        total=total,
        minimum=float(means.min()),
        maximum=float(means.max()),
        mean=float(means.mean()),
        deviation=deviation,
        active=float((means > _ACTIVE).mean()),
        count=len(means),
        entropy=entropy,
        entropy_share=entropy / np.log2(len(means)) if len(means) > 1 else 0.0,
        outliers=float((means - means.mean() > deviation).mean()) if deviation else 0.0,
        similarity=None if before is None else _cosine(entry.sums, before.sums),
    )


def _cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float | None:
    """Return the cosine of the angle between two sets of sums, None where sizes differ or one is zero."""
    if one.size != other.size:
        return None
    a, b = one.ravel().astype(np.float64), other.ravel().astype(np.float64)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else None
