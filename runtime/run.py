"""What all blocks of one pass share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .building.configuration import Configuration
from .cache import Cache
from .hooks import Hooks
from .workers import Workers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Run", "Span", "query_tasks", "query_temperature"]

_TASK_QUERIES = 1024  # positions of one attention task: long sequences are several tasks per head


@dataclass(frozen=True, slots=True)
class Span:
    """Where a sequence's new tokens lie among the rows of a run, and what rotates them.

    Attributes:
        start: first row.
        stop: row after the last.
        table: complex64 (n, rotated / 2) for layers that see everything; None without rotary positions.
        local_table: the same for layers with a sliding window.
    """

    start: int
    stop: int
    table: NDArray[np.complex64] | None
    local_table: NDArray[np.complex64] | None


def _unheard(blocks: float) -> None:
    """Take no note."""


@dataclass(frozen=True, slots=True)
class Run:
    """What all blocks of one pass share.

    Attributes:
        configuration: of the model.
        workers: threads.
        spans: where the sequences lie.
        hooks: of the run.
        cache: what is known of earlier positions, and takes up these; None: sequences begin here.
        passed: called whenever so many blocks more are done, halves being attention and feed-forward.
        lent: without a cache, keys and values of blocks that later ones read: one pair (kv heads, positions, size) per sequence.
        layer_inputs: float32 (rows, layers, width): what every block learns of a token by itself, in models that have that.
        choices: the positions that the last block with an indexer has chosen for each sequence, see :mod:`.indexer`.
    """

    configuration: Configuration
    workers: Workers
    spans: Sequence[Span]
    hooks: Hooks
    cache: Cache | None
    passed: Callable[[float], None] = _unheard
    lent: dict[int, list[tuple[Floats, Floats]]] = field(default_factory=dict)
    layer_inputs: Floats | None = None
    choices: list[NDArray[np.uint8] | None] = field(default_factory=list)


def query_tasks(run: Run) -> Iterator[tuple[int, slice]]:
    """Yield (number of the sequence, slice of its new positions) for pieces of a size for one task."""
    for number, span in enumerate(run.spans):
        for start in range(0, span.stop - span.start, _TASK_QUERIES):
            yield number, slice(start, min(start + _TASK_QUERIES, span.stop - span.start))


def query_temperature(run: Run, index: int) -> NDArray[np.float32] | None:
    """Return float32 (rows,): what the queries of block ``index`` are multiplied by, None for nothing."""
    temperature = run.configuration.attention_temperature
    if temperature is None or (temperature.unrotated and run.configuration.layer_rope(index) is not None):
        return None
    lengths = (run.hooks.positions + temperature.shift) // temperature.length
    return (1.0 + temperature.slope * np.log1p(lengths)).astype(np.float32)
