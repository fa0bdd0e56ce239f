"""What a forward pass tells whoever collects statistics or compares two models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .weights import Matrix

__all__ = ["Collector", "Hooks", "ProductInput", "Trace", "tensor_names"]


@dataclass(frozen=True, slots=True)
class ProductInput:
    """What one or several matrices are multiplied by.

    Attributes:
        names: the tensors that share this input, in the order of the pass (``blk.0.attn_q.weight``, …); a fused tensor appears once.
        values: float32 (n, columns), one row per token. Valid during the call only, and not to be written to.
        sequences: intp (n,): the sequence of the run that each row belongs to.
        positions: intp (n,): its position in that sequence.
        expert: number of the expert in stacked tensors, None for others.
    """

    names: tuple[str, ...]
    values: NDArray[np.float32]
    sequences: NDArray[np.intp]
    positions: NDArray[np.intp]
    expert: int | None


class Collector(Protocol):
    """Told what every matrix is multiplied by."""

    def __call__(self, found: ProductInput) -> None:
        """Take note of a product's input.

        Called before every product with weights: each block's, the router's included, and the output's at the positions asked for. Experts
        that no token was sent to are not called for.
        """
        ...


class Trace(Protocol):
    """Told results as they come up, in the order of the pass."""

    def __call__(self, name: str, first: int, values: NDArray[np.float32]) -> None:
        """Take note of a result.

        Args:
            name: the tensor whose product (its bias added), norm or lookup this is; ``blk.N`` for the residual stream after a block. Of a
                mixture's experts ``blk.N.ffn_down_exps.weight`` alone is reported, weighted and summed.
            first: wide results come in pieces: the number of their first column.
            values: float32 (tokens of the run, columns). Valid during the call only, and not to be written to.
        """
        ...


@dataclass(frozen=True, slots=True)
class Hooks:
    """The hooks of one run, and where its rows belong (see :class:`ProductInput`)."""

    collector: Collector | None
    trace: Trace | None
    sequences: NDArray[np.intp]
    positions: NDArray[np.intp]

    def collect(
        self,
        matrices: Iterable[Matrix],
        values: NDArray[np.float32],
        rows: NDArray[np.intp] | None = None,
        expert: int | None = None,
    ) -> None:
        """Tell the collector; ``rows`` are the run's rows that ``values`` holds, None for all."""
        if self.collector is None:
            return
        sequences = self.sequences if rows is None else self.sequences[rows]
        positions = self.positions if rows is None else self.positions[rows]
        self.collector(ProductInput(tensor_names(matrices), values, sequences, positions, expert))

    def report(self, name: str, values: NDArray[np.float32], first: int = 0) -> None:
        """Tell the trace."""
        if self.trace is not None:
            self.trace(name, first, values)


def tensor_names(matrices: Iterable[Matrix]) -> tuple[str, ...]:
    """Return the names of the matrices' tensors, each once."""
    return tuple(dict.fromkeys(matrix.name for matrix in matrices))
