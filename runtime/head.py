"""The way out: output norm, and logits at the positions asked for, in slabs of the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .building.network import Network
from .elementwise import soft_cap
from .hooks import Hooks
from .norms import normalise
from .weights import product
from .workers import Workers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Logits", "yield_logits"]


@dataclass(frozen=True, slots=True)
class Logits:
    """Logits of some positions of a run.

    Attributes:
        sequences: intp (n,): which sequence each row belongs to.
        positions: intp (n,): its position in that sequence; the logits are those of the token after it.
        logits: float32 (n, vocabulary).
    """

    sequences: NDArray[np.intp]
    positions: NDArray[np.intp]
    logits: Floats


def yield_logits(
    network: Network, workers: Workers, hidden: Floats, rows: NDArray[np.intp], hooks: Hooks, block_bytes: int
) -> Iterator[Logits]:
    """Yield the logits of ``rows`` of the residual stream in blocks of at most ``block_bytes`` (one row at least).

    The output's weights are decoded once per block, so a block should be as large as memory allows.
    """
    step = max(1, block_bytes // (4 * network.vocabulary))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        inputs = hidden[part]
        normalise(network.configuration, network.output_norm, inputs, inputs)
        hooks.collect([network.output.matrix], inputs, part)
        logits = product(workers, inputs, network.output)
        if network.configuration.logit_scale != 1:
            logits *= np.float32(network.configuration.logit_scale)
        if network.configuration.final_soft_cap is not None:
            soft_cap(logits, network.configuration.final_soft_cap)
        yield Logits(hooks.sequences[part], hooks.positions[part], logits)
