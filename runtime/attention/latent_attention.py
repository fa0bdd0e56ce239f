"""Latent attention (DeepSeek-V2, arXiv:2405.04434): what is kept of a position is one short vector and one rotated key, for all heads.

Instead of making every head's keys and values of the latents, queries are taken to the latents' side: ``q · (K c) = (Kᵀ q) · c``. Attention is then
that of many heads to a single head of keys, whose values are a part of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..building.configuration import Latent
from ..building.layers import LatentAttention
from ..norms import norm_function
from ..run import Run, query_tasks, query_temperature
from ..weights import Linear, product, products
from .causal import attend
from .indexer import choose_positions, chosen_among, make_index_keys
from .rope import rotate
from .rope_settings import RopeSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["HEADS_AT_ONCE", "latent_attention"]

HEADS_AT_ONCE = 16
"""Heads whose queries are on the latents' side at the same time: there they are some times as long."""


def latent_attention(run: Run, index: int, layer: LatentAttention, inputs: Floats) -> Floats:
    """Return float32 (rows, hidden): what the attention of block ``index`` makes of ``inputs``, before a norm that may follow."""
    latent, settings = run.configuration.latent, run.configuration.layer_rope(index)
    assert latent is not None
    entering = layer.query if layer.query_down is None else layer.query_down
    indexer = layer.indexer
    run.hooks.collect([linear.matrix for linear in layer.entering], inputs)
    short, down = products(run.workers, [(inputs, entering), (inputs, layer.down)])
    run.hooks.report(entering.matrix.name, short)
    run.hooks.report(layer.down.matrix.name, down)
    queries = short if layer.query_down is None else _full_queries(run, layer, short)
    index_keys = None
    if indexer is not None and run.configuration.sparse is not None:
        index_keys = make_index_keys(run, indexer, run.configuration.sparse, settings, inputs)
    known = _known(run, index, layer, latent, settings, down, index_keys)
    choices: Sequence[NDArray[np.uint8] | None] = [None] * len(known)
    width = latent.shared + latent.rank
    if run.configuration.sparse is not None:
        own = [keys[0, :, width:] for keys, _ in known]
        choices = choose_positions(run, index, indexer, settings, short, inputs, own)
        known = [(keys[:, :, :width], values) for keys, values in known]

    if (temperature := query_temperature(run, index)) is not None:
        queries *= temperature[:, None]
    split = queries.reshape(len(queries), -1, latent.key_size)
    gathered = np.empty((len(queries), len(layer.values), latent.value_size), np.float32)
    for first in range(0, len(layer.keys), HEADS_AT_ONCE):
        heads = slice(first, first + HEADS_AT_ONCE)
        _gather(run, layer, latent, settings, known, choices, split[:, heads], heads, gathered[:, heads])
    result = gathered.reshape(len(gathered), -1)
    run.hooks.collect([layer.output.matrix], result)
    result = product(run.workers, result, layer.output)
    run.hooks.report(layer.output.matrix.name, result)
    return result


def _full_queries(run: Run, layer: LatentAttention, short: Floats) -> Floats:
    """Return the queries of all heads, float32 (rows, heads * size), from their own short vectors."""
    norm = norm_function(run.configuration, layer.query_down_norm)
    run.workers.map_rows(lambda rows: norm(short[rows], short[rows]), len(short))
    reading = (layer.query,) if layer.indexer is None else (layer.query, layer.indexer.query)
    run.hooks.collect([linear.matrix for linear in reading], short)
    queries = product(run.workers, short, layer.query)
    run.hooks.report(layer.query.matrix.name, queries)
    return queries


def _known(
    run: Run,
    index: int,
    layer: LatentAttention,
    latent: Latent,
    settings: RopeSettings | None,
    down: Floats,
    index_keys: Floats | None,
) -> list[tuple[Floats, Floats]]:
    """Return keys (1, positions, shared + rank + indexer's) and values (1, positions, rank) of each sequence, earlier ones from the cache."""
    shared, width = latent.shared, latent.shared + latent.rank
    keys = np.zeros((1, len(down), run.configuration.head_size), np.float32)
    if index_keys is not None:
        keys[0, :, width:] = index_keys
    norm = norm_function(run.configuration, layer.latent_norm)
    found = []
    for number, span in enumerate(run.spans):
        rows = slice(span.start, span.stop)
        _turn(down[rows, None, latent.rank :], span.table, settings, keys[:, rows, :shared])
        norm(down[rows, : latent.rank], keys[0, rows, shared:width])
        own = keys[:, rows], keys[:, rows, shared:width]
        found.append(own if run.cache is None else run.cache.extend(index, number, *own, run.workers))
    if layer.whole is not None:
        latents = keys[0, :, shared:width]
        run.hooks.collect([layer.whole], latents)
        if run.hooks.trace is not None:
            run.hooks.report(layer.whole.name, product(run.workers, latents, Linear(layer.whole)))
    return found


def _gather(
    run: Run,
    layer: LatentAttention,
    latent: Latent,
    settings: RopeSettings | None,
    known: Sequence[tuple[Floats, Floats]],
    choices: Sequence[NDArray[np.uint8] | None],
    queries: Floats,
    heads: slice,
    out: Floats,
) -> None:
    """Fill ``out`` (rows, some heads, value size) with the attention of ``queries`` (rows, as many heads, key size)."""
    count, shared = queries.shape[1], latent.shared
    plain = latent.key_size - shared
    projected = _each_head(run, layer, layer.keys[heads], heads, [queries[:, head, :plain] for head in range(count)])
    seen_latents = [np.empty((len(queries), latent.rank), np.float32) for _ in range(count)]

    def gather(task: tuple[int, slice, int]) -> None:
        number, positions, head = task
        span = run.spans[number]
        rows = slice(span.start + positions.start, span.start + positions.stop)
        asked = np.empty((1, rows.stop - rows.start, shared + latent.rank), np.float32)
        table = None if span.table is None else span.table[positions]
        _turn(queries[rows, head, None, plain:], table, settings, asked[:, :, :shared])
        asked[0, :, shared:] = projected[head][rows]
        keys, values = known[number]
        seen = keys.shape[1] - (span.stop - span.start) + positions.stop
        bits = choices[number]
        attend(
            asked,
            keys[:, :seen],
            values[:, :seen],
            seen_latents[head][rows, None],
            scale=run.configuration.attention_scale,
            chosen=None if bits is None else chosen_among(bits, positions, seen),
        )

    run.workers.map(gather, [(*task, head) for task in query_tasks(run) for head in range(count)])
    for head, result in enumerate(_each_head(run, layer, layer.values[heads], heads, seen_latents)):
        out[:, head] = result


def _turn(values: Floats, table: NDArray[np.complex64] | None, settings: RopeSettings | None, out: Floats) -> None:
    """Fill ``out`` (1, n, size) with ``values`` (n, 1, size), rotated in families that rotate."""
    if settings is None or table is None:
        out[0] = values[:, 0]
    else:
        rotate(values, table, settings, out)


def _each_head(
    run: Run, layer: LatentAttention, projections: Sequence[Linear], heads: slice, inputs: Sequence[Floats]
) -> list[Floats]:
    """Return the projection of each head's input. Parts of one matrix are no matrices by themselves, of which a collector could know."""
    for number, (linear, values) in enumerate(zip(projections, inputs, strict=True), heads.start):
        if layer.whole is None:
            run.hooks.collect([linear.matrix], values, expert=number)
    return products(run.workers, list(zip(inputs, projections, strict=True)))
