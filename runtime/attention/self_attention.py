"""A block's attention with keys and values of its own for every head, or for groups of heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..building.layers import Attention, HeadNorm, Norm
from ..elementwise import sigmoid
from ..norms import head_norms, norm_function
from ..run import Run, query_tasks, query_temperature
from ..weights import product, products
from .causal import attend
from .rope import rotate
from .rope_settings import RopeSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["self_attention"]


def self_attention(run: Run, index: int, layer: Attention, inputs: Floats) -> Floats:
    """Return float32 (rows, hidden): what the attention of block ``index`` makes of ``inputs``, before a norm that may follow."""
    projections = layer.projections
    run.hooks.collect([linear.matrix for linear in projections], inputs)
    results = products(run.workers, [(inputs, linear) for linear in projections])
    for linear, result in zip(projections, results, strict=True):
        run.hooks.report(linear.matrix.name, result, linear.matrix.first)
    gate = None
    if run.configuration.facts.gated_attention:
        split = results[0].reshape(len(inputs), run.configuration.heads, 2, run.configuration.layer_head_size(index))
        results[0], gate = (split[:, :, part].reshape(len(split), -1) for part in range(2))
        sigmoid(gate)
    if (clamp := run.configuration.attention_clamp) is not None:
        for result in results:
            np.clip(result, -clamp, clamp, out=result)
    queries = results[0]
    _normalise_together(run, layer.query_norm, queries)
    if layer.key is None:
        known = _of_another_block(run, index)
    else:
        keys, values = results[1], results[1].copy() if layer.value is None else results[2]
        _normalise_together(run, layer.key_norm, keys)
        known = _keys_and_values(run, index, layer, keys, values)
    _mix(run, index, layer, queries, known)
    if gate is not None:
        queries *= gate
    run.hooks.collect([layer.output.matrix], queries)
    result = product(run.workers, queries, layer.output)
    run.hooks.report(layer.output.matrix.name, result)
    return result


def _normalise_together(run: Run, norm: HeadNorm | None, values: Floats) -> None:
    """Normalise all heads of each row as one, in place, where there is such a norm."""
    if norm is not None and norm.together:
        function = norm_function(run.configuration, norm.norms[0])
        run.workers.map_rows(lambda rows: function(values[rows], values[rows]), len(values))


def _of_another_block(run: Run, index: int) -> list[tuple[Floats, Floats]]:
    """Return the keys and values of each sequence, (kv heads, positions, size), that another block has made."""
    source = run.configuration.keys_from(index)
    if run.cache is None:
        return run.lent[source]
    lengths = [span.stop - span.start for span in run.spans]
    return [run.cache.again(source, number, length, run.workers) for number, length in enumerate(lengths)]


def _keys_and_values(
    run: Run, index: int, layer: Attention, keys: Floats, values: Floats
) -> list[tuple[Floats, Floats]]:
    """Return the keys and values of each sequence, (kv heads, positions, size), with all positions before those of ``keys`` (rows, kv heads * size)."""
    configuration = run.configuration
    size, kv_heads = configuration.layer_head_size(index), configuration.layer_kv_heads(index)
    settings, tables = configuration.layer_rope(index), _tables(run, index)
    late, key_norms = configuration.facts.normalised_after_rotation, head_norms(configuration, layer.key_norm, kv_heads)
    split_keys, split_values = (rows.reshape(len(rows), -1, size) for rows in (keys, values))
    if configuration.facts.normalised_values:
        function = norm_function(configuration, Norm(None))
        run.workers.map_rows(
            lambda rows: function(values[rows].reshape(-1, size), values[rows].reshape(-1, size)), len(values)
        )
    turned = np.empty((kv_heads, len(keys), size), np.float32)

    def turn_keys(task: tuple[int, int]) -> None:
        number, head = task
        rows = slice(run.spans[number].start, run.spans[number].stop)
        part = slice(head, head + 1)
        _turn(split_keys[rows, part], key_norms[part], settings, tables[number], turned[part, rows], late)

    run.workers.map(turn_keys, [(number, head) for number in range(len(run.spans)) for head in range(kv_heads)])

    known: list[tuple[Floats, Floats]] = []
    for number, span in enumerate(run.spans):
        own = turned[:, span.start : span.stop], split_values[span.start : span.stop].transpose(1, 0, 2)
        known.append(own if run.cache is None else run.cache.extend(index, number, *own, run.workers))
    if run.cache is None and configuration.lends_keys(index):
        run.lent[index] = known
    return known


def _tables(run: Run, index: int) -> list[NDArray[np.complex64] | None]:
    """Return what rotates each sequence in block ``index``."""
    full = run.configuration.layer_window(index) is None
    return [span.table if full else span.local_table for span in run.spans]


def _mix(run: Run, index: int, layer: Attention, queries: Floats, known: list[tuple[Floats, Floats]]) -> None:
    """Replace ``queries`` (rows, heads * size) by what attention gathers from the values of each sequence."""
    configuration = run.configuration
    size, kv_heads = configuration.layer_head_size(index), configuration.layer_kv_heads(index)
    group = configuration.heads // kv_heads
    window, settings, tables = configuration.layer_window(index), configuration.layer_rope(index), _tables(run, index)
    query_norms = head_norms(configuration, layer.query_norm, configuration.heads)
    sinks = None if layer.sinks is None else layer.sinks.decode()
    split_queries = queries.reshape(len(queries), -1, size)
    temperature, late = query_temperature(run, index), configuration.facts.normalised_after_rotation

    def gather(task: tuple[int, slice, int]) -> None:
        """Attend from some positions of one sequence, for the query heads that share one head of keys."""
        number, positions, head = task
        span, table, heads = run.spans[number], tables[number], slice(head * group, (head + 1) * group)
        mine = split_queries[span.start + positions.start : span.start + positions.stop, heads]
        asked = np.empty((group, len(mine), size), np.float32)
        _turn(mine, query_norms[heads], settings, None if table is None else table[positions], asked, late)
        if temperature is not None:
            asked *= temperature[span.start + positions.start : span.start + positions.stop, None]
        all_keys, all_values = (held[head : head + 1] for held in known[number])
        seen = all_keys.shape[1] - (span.stop - span.start) + positions.stop
        attend(
            asked,
            all_keys[:, :seen],
            all_values[:, :seen],
            mine,
            scale=configuration.attention_scale,
            cap=configuration.attention_soft_cap,
            window=window,
            chunked=configuration.facts.chunked,
            sinks=None if sinks is None else sinks[heads],
        )

    run.workers.map(gather, [(*task, head) for task in query_tasks(run) for head in range(kv_heads)])


def _turn(
    rows: Floats,
    norms: Sequence[Callable[[Floats, Floats], None]],
    settings: RopeSettings | None,
    table: NDArray[np.complex64] | None,
    out: Floats,
    late: bool,
) -> None:
    """Fill ``out`` (heads, n, size) with queries or keys (n, heads, size), each head normalised, in place or ``late``, and rotated."""
    if not late:
        for head, norm in enumerate(norms):
            norm(rows[:, head], rows[:, head])
    if settings is None or table is None:
        out[...] = rows.transpose(1, 0, 2)
    else:
        rotate(rows, table, settings, out)
    if late:
        for head, norm in enumerate(norms):
            norm(out[head], out[head])
