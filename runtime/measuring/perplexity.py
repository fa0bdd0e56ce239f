"""Run windows of text through a model and score them, window by window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..building.network import Network
from ..cache import make_cache
from ..forward import forward
from .bases import Base, compare_with_base
from .compact_base import TopRows
from .divergence import Compared, concatenate
from .losses import token_losses
from .windows import Windows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Integers = NDArray[np.int32]

__all__ = ["BATCH_TOKENS", "ScoredRows", "ScoredWindow", "Sink", "batches", "score", "scored_rows"]

BATCH_TOKENS = 2048
"""Tokens that share one decoding of the weights, unless told otherwise."""

_BLOCK_BYTES = 128 << 20  # of logits at a time

Sink = Callable[["Floats", "Integers"], None]
"""Takes logits, float32 (n, vocabulary), and the right tokens (n,), in order."""


@dataclass(frozen=True)
class ScoredRows:
    """Logits at consecutive scored positions of one window.

    Attributes:
        window: its number.
        part: which of its scored positions these are.
        logits: float32 (n, vocabulary).
        targets: int32 (n,), the right tokens.
    """

    window: int
    part: slice
    logits: Floats
    targets: Integers


@dataclass(frozen=True)
class ScoredWindow:
    """What one window gave.

    Attributes:
        window: its number.
        losses: float64 (scored positions,), minus log-probabilities of the right tokens.
        compared: how they lie beside the base's, None without one.
    """

    window: int
    losses: NDArray[np.float64]
    compared: Compared | None


def batches(windows: Windows, tokens: int = BATCH_TOKENS) -> Iterator[range]:
    """Cut the numbers of the windows into runs of about so many tokens."""
    step = max(1, tokens // windows.context)
    for start in range(0, len(windows.tokens), step):
        yield range(start, min(start + step, len(windows.tokens)))


def scored_rows(
    network: Network,
    windows: Windows,
    *,
    batch_tokens: int = BATCH_TOKENS,
    cache_type: str = "F32",
    threads: int | None = None,
    block_bytes: int = _BLOCK_BYTES,
    move: Callable[[float], None] = lambda windows: None,
) -> Iterator[ScoredRows]:
    """Run all windows and yield the logits of their scored positions, in order.

    With a ``cache_type`` other than F32, attention sees keys and values as a cache of that type would hold them. ``move`` is called, within
    windows too, with the number of windows that what was just done amounts to. Raises as :func:`~.forward.forward` and
    :func:`~.cache.make_cache`.
    """
    evaluated, targets = windows.evaluated, windows.targets
    for batch in batches(windows, batch_tokens):
        lengths = [windows.context] * len(batch)
        found = forward(
            network,
            [evaluated[number] for number in batch],
            wanted=windows.wanted,
            cache=None if cache_type == "F32" else make_cache(network.configuration, lengths, cache_type),
            threads=threads,
            block_bytes=block_bytes,
            progress=partial(_moved, move, len(batch)),
        )
        for block in found:
            edges = np.nonzero(np.diff(block.sequences))[0] + 1
            for rows in np.split(np.arange(len(block.sequences)), edges):
                window = batch[int(block.sequences[rows[0]])]
                first = int(block.positions[rows[0]]) - windows.first_scored
                part = slice(first, first + len(rows))
                yield ScoredRows(window, part, block.logits[rows[0] : rows[-1] + 1], targets[window, part])


def _moved(move: Callable[[float], None], windows: int, share: float) -> None:
    move(windows * share)


def score(
    network: Network,
    windows: Windows,
    *,
    base: Base | None = None,
    sinks: Sequence[Sink] = (),
    batch_tokens: int = BATCH_TOKENS,
    cache_type: str = "F32",
    threads: int | None = None,
    move: Callable[[float], None] = lambda windows: None,
) -> Iterator[ScoredWindow]:
    """Score window after window, beside the windows of ``base`` if given; every row of logits goes to ``sinks`` as well.

    ``cache_type``, ``move`` and what is raised: see :func:`scored_rows`.
    """
    references: Iterator[Floats | TopRows] | None = None if base is None else base.chunks()
    reference: Floats | TopRows | None = None
    losses: list[NDArray[np.float64]] = []
    compared: list[Compared] = []
    for rows in scored_rows(
        network, windows, batch_tokens=batch_tokens, cache_type=cache_type, threads=threads, move=move
    ):
        for sink in sinks:
            sink(rows.logits, rows.targets)
        if references is None:
            losses.append(token_losses(rows.logits, rows.targets))
        else:
            reference = next(references) if rows.part.start == 0 else reference
            assert reference is not None
            compared.append(compare_with_base(reference, rows.part, rows.logits, rows.targets))
            losses.append(compared[-1].loss)
        if rows.part.stop == windows.scored_per_window:
            together = concatenate(compared) if compared else None
            yield ScoredWindow(rows.window, np.concatenate(losses), together)
            losses, compared = [], []
