"""Sparse attention (DeepSeek-V3.2): an indexer chooses which of the earlier positions each position attends to.

The indexer has small queries and one small key per position. A position's score is the sum over the indexer's heads of the positive parts of their
products, each by a weight of its own. Blocks without an indexer attend to what the one before them chose (GLM-5.2). As long as there are no more positions than are
chosen, attention is that of all of them. Some families choose pools of positions instead, see :mod:`.pooled_indexer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from ...errors import ModelError
from ..building.configuration import Sparse
from ..building.layers import Indexer
from ..elementwise import layer_norm
from ..run import Run, Span
from ..weights import product
from .pooled_indexer import is_choice, pool_keys, pooled_positions
from .rope import rotate
from .rope_settings import RopeSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bits = NDArray[np.uint8]

__all__ = ["best_positions", "choose_positions", "chosen_among", "make_index_keys"]

_EPSILON: Final = 1e-6  # of the norm of keys, whatever the model's is
_TILE: Final = 128  # positions that are scored at a time


def make_index_keys(
    run: Run, indexer: Indexer, sparse: Sparse, settings: RopeSettings | None, inputs: Floats
) -> Floats:
    """Return the indexer's key of each row, float32 (rows, size), normalised and rotated; with pools (rows, 2 * size), what it weighs behind it."""
    keys = product(run.workers, inputs, indexer.key)
    run.hooks.report(indexer.key.matrix.name, keys)
    weight, bias = (
        None if part is None else part.decode() for part in (indexer.key_norm.weight, indexer.key_norm.bias)
    )
    run.workers.map_rows(lambda rows: layer_norm(keys[rows], weight, bias, _EPSILON, keys[rows]), len(keys))
    turned: Floats = _rotated(run, sparse, settings, keys[:, None])[0]
    if indexer.gate is None:
        return turned
    weights = product(run.workers, inputs, indexer.gate)
    run.hooks.report(indexer.gate.matrix.name, weights)
    return np.concatenate([turned, weights], axis=1)


def choose_positions(
    run: Run,
    index: int,
    indexer: Indexer | None,
    settings: RopeSettings | None,
    short: Floats,
    inputs: Floats,
    keys: Sequence[Floats],
) -> Sequence[Bits | None]:
    """Return for each sequence which positions its new ones attend to: bits (new positions, bytes of all positions), None where that is all of them.

    Args:
        run: keeps the choice for blocks without an indexer.
        index: number of the block.
        indexer: its indexer, None where an earlier block has chosen.
        settings: of the rotation, None where nothing is rotated.
        short: float32 (rows, query rank), what queries are made of.
        inputs: float32 (rows, hidden), what the block's attention reads.
        keys: for each sequence float32 (positions, size), the indexer's keys of all positions; with pools (positions, 2 * size).

    Raises ModelError where a block runs by itself, so that none before it has chosen.
    """
    sparse = run.configuration.sparse
    assert sparse is not None
    long = [is_choice(len(known), sparse) for known in keys]
    if indexer is None:
        if any(long) and not run.choices:
            raise ModelError(
                f"block {index} attends to the {sparse.top} positions that an earlier block chooses, which is not known where a block runs by itself",
                remedy=f"Use texts of at most {sparse.top} tokens here.",
            )
        return run.choices or [None] * len(keys)
    run.choices.clear()
    if not any(long) and run.hooks.trace is None:
        return [None] * len(keys)
    queries = product(run.workers, short, indexer.query)
    run.hooks.report(indexer.query.matrix.name, queries)
    weights = product(run.workers, inputs, indexer.weights)
    run.hooks.report(indexer.weights.matrix.name, weights)
    turned = _rotated(run, sparse, settings, queries.reshape(len(queries), sparse.heads, sparse.size))
    found: list[Bits | None] = [
        np.zeros((span.stop - span.start, -(-len(known) // 8)), np.uint8) if is_long else None
        for span, known, is_long in zip(run.spans, keys, long, strict=True)
    ]

    pools = _pools(indexer, sparse, keys, long)

    def choose(task: tuple[int, int, int]) -> None:
        number, start, stop = task
        span, known, bits = run.spans[number], pools[number], found[number]
        assert bits is not None
        before = len(keys[number]) - (span.stop - span.start)
        rows = slice(span.start + start, span.start + stop)
        scores = _scores(turned[:, rows], known[: (before + stop) // sparse.pool], weights[rows])
        chosen = best_positions(scores, before + start, sparse.top // sparse.pool, sparse.pool)
        if sparse.pool > 1:
            chosen = pooled_positions(chosen, before + start, before + stop, sparse.pool)
        packed = np.packbits(chosen, axis=1)
        bits[start:stop, : packed.shape[1]] = packed

    run.workers.map(
        choose, [task for number, span in enumerate(run.spans) if long[number] for task in _tiles(number, span)]
    )
    run.choices.extend(found)
    return found


def chosen_among(bits: Bits, positions: slice, seen: int) -> NDArray[np.bool_]:
    """Return bool (positions, seen): which of the first ``seen`` positions were chosen for some of the new ones."""
    return np.unpackbits(bits[positions], axis=1, count=seen).view(np.bool_)


def _pools(indexer: Indexer, sparse: Sparse, keys: Sequence[Floats], long: Sequence[bool]) -> Sequence[Floats]:
    """Return the keys that queries are compared with for each sequence, none where there is no choice."""
    if indexer.place_gate is None:
        return keys
    places = indexer.place_gate.decode(slice(0, sparse.pool))
    return [
        pool_keys(known if is_long else known[:0], places, sparse) for known, is_long in zip(keys, long, strict=True)
    ]


def best_positions(scores: Floats, first: int, top: int, pool: int = 1) -> NDArray[np.bool_]:
    """Return bool (n, m): the ``top`` best of the positions that each of n positions from ``first`` may see, the earlier of equal ones.

    With pools they are the best of those that end with it or before. ``scores``, float32 (n, m), are overwritten where they are of later ones.
    """
    count, total = scores.shape
    later = np.arange(total) >= (first + np.arange(count)[:, None] + 1) // pool
    np.copyto(scores, np.float32(-np.inf), where=later)
    if total <= top:
        return ~later
    last = np.partition(scores, total - top, axis=1)[:, total - top, None]  # the worst that may be among them
    chosen = scores > last
    equal = (scores == last) & ~later
    chosen |= equal & (np.cumsum(equal, axis=1) <= top - chosen.sum(axis=1, keepdims=True))
    return chosen


def _tiles(number: int, span: Span) -> list[tuple[int, int, int]]:
    length = span.stop - span.start
    return [(number, start, min(start + _TILE, length)) for start in range(0, length, _TILE)]


def _scores(queries: Floats, keys: Floats, weights: Floats) -> Floats:
    """Return float32 (n, m), the scores of m positions for n, but for a positive factor; ``weights`` are (n, heads)."""
    total = np.zeros((queries.shape[1], len(keys)), np.float32)
    for head, own in enumerate(queries):
        scores = own @ keys.T
        np.maximum(scores, 0, out=scores)
        scores *= weights[:, head, None]
        total += scores
    return total


def _rotated(run: Run, sparse: Sparse, settings: RopeSettings | None, values: Floats) -> Floats:
    """Return float32 (heads, rows, size) of values (rows, heads, size), the leading dimensions of each head rotated."""
    if settings is None or sparse.order is None:
        return np.ascontiguousarray(values.swapaxes(0, 1))
    turned = np.empty((values.shape[1], len(values), values.shape[2]), np.float32)
    ordered = replace(settings, order=sparse.order)
    for span in run.spans:
        assert span.table is not None
        rotate(values[span.start : span.stop], span.table, ordered, turned[:, span.start : span.stop])
    return turned
