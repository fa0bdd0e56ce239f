"""What linear attention of every kind does with its heads: queries and keys of length 1, and a norm and a gate on what was read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..norms import norm_function
from ..run import Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..building.layers import Norm

    Floats = NDArray[np.float32]

__all__ = ["gate_heads", "to_unit_length"]

_LEAST_SQUARE = np.float32(1e-6)  # added to the squared length of queries and keys: transformers' and the reference's


def to_unit_length(vectors: Floats) -> None:
    """Divide float32 (..., size) vectors by their length, in place."""
    squares = np.einsum("...j,...j->...", vectors, vectors) + _LEAST_SQUARE
    vectors /= np.sqrt(squares)[..., None]


def gate_heads(
    run: Run, head_norm: Norm, size: int, read: Floats, gates: Floats, activate: Callable[[Floats], object]
) -> None:
    """Normalise every head of ``read``, float32 (rows, heads * size), and multiply it by its activated gate, both in place."""
    norm = norm_function(run.configuration, head_norm)

    def apply(rows: slice) -> None:
        split = read[rows].reshape(-1, size)
        norm(split, split)
        activate(gates[rows])
        read[rows] *= gates[rows]

    run.workers.map_rows(apply, len(read))
