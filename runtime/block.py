"""One block: attention, then feed-forward, each added to the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .attention import attend
from .cache import Cache
from .configuration import Configuration, RopeSettings
from .elementwise import layer_norm, rms_norm
from .feed_forward import dense, mixture
from .hooks import Hooks
from .network import Block, Experts, Norm
from .rope import rotate
from .weights import product, products
from .workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Run", "Span", "normalise", "run_attention", "run_block", "run_feed_forward"]

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


@dataclass(frozen=True, slots=True)
class Run:
    """What all blocks of one pass share."""

    configuration: Configuration
    workers: Workers
    spans: Sequence[Span]
    hooks: Hooks
    cache: Cache | None


def run_block(run: Run, block: Block, hidden: Floats) -> None:
    """Carry the residual stream, float32 (rows, hidden), through a block, in place."""
    run_attention(run, block, hidden)
    run_feed_forward(run, block, hidden)
    run.hooks.report(f"blk.{block.index}", hidden)


def run_attention(run: Run, block: Block, hidden: Floats) -> None:
    """Add a block's attention to the residual stream, in place."""
    inputs = _normalised(run, block.attention.norm, hidden)
    _add(run, block.attention.after, _attention(run, block, inputs), hidden)


def run_feed_forward(run: Run, block: Block, hidden: Floats) -> None:
    """Add a block's feed-forward to the residual stream, in place."""
    inputs = _normalised(run, block.feed_forward_norm, hidden)
    layer, activation = block.feed_forward, run.configuration.facts.activation
    if isinstance(layer, Experts):
        result = mixture(run.workers, layer, run.configuration.experts_used, activation, inputs, run.hooks)
    else:
        result = dense(run.workers, layer, activation, inputs, run.hooks)
    _add(run, block.after, result, hidden)


def _normalised(run: Run, norm: Norm, hidden: Floats) -> Floats:
    inputs, function = np.empty_like(hidden), _norm(run.configuration, norm)
    run.workers.map_rows(lambda rows: function(hidden[rows], inputs[rows]), len(hidden))
    run.hooks.report(norm.weight.tensor.name, inputs)
    return inputs


def _add(run: Run, norm: Norm | None, result: Floats, hidden: Floats) -> None:
    """Add a part's result, normalised if there is a norm, to the residual stream."""
    function = _norm(run.configuration, norm)

    def add(rows: slice) -> None:
        function(result[rows], result[rows])
        hidden[rows] += result[rows]

    run.workers.map_rows(add, len(hidden))


def normalise(configuration: Configuration, norm: Norm, values: Floats, out: Floats) -> None:
    """Fill ``out`` (n, columns) with the family's kind of norm of each row of ``values``; they may be the same."""
    _norm(configuration, norm)(values, out)


def _norm(configuration: Configuration, norm: Norm | None) -> Callable[[Floats, Floats], None]:
    """Return a function of values and out that normalises, or that leaves values as they are where there is no norm."""
    if norm is None:
        return lambda values, out: None
    function = rms_norm if configuration.facts.norm == "rms" else layer_norm
    weight, bias = norm.weight.decode(), None if norm.bias is None else norm.bias.decode()
    return lambda values, out: function(values, weight, bias, configuration.epsilon, out)


def _attention(run: Run, block: Block, inputs: Floats) -> Floats:
    """Return float32 (rows, hidden): what attention adds to the residual stream, before a norm that may follow."""
    layer = block.attention
    projections = (layer.query, layer.key, layer.value)
    run.hooks.collect([linear.matrix for linear in projections], inputs)
    queries, keys, values = products(run.workers, [(inputs, linear) for linear in projections])
    for linear, result in zip(projections, (queries, keys, values), strict=True):
        run.hooks.report(linear.matrix.name, result, linear.matrix.first)
    _mix(run, block, queries, keys, values)
    run.hooks.collect([layer.output.matrix], queries)
    result = product(run.workers, queries, layer.output)
    run.hooks.report(layer.output.matrix.name, result)
    return result


def _mix(run: Run, block: Block, queries: Floats, keys: Floats, values: Floats) -> None:
    """Replace ``queries`` (rows, heads * size) by what attention gathers from ``values`` (rows, kv heads * size)."""
    configuration, layer = run.configuration, block.attention
    size, kv_heads = configuration.head_size, configuration.kv_heads
    group = configuration.heads // kv_heads
    window, settings = configuration.layer_window(block.index), configuration.layer_rope(block.index)
    query_norm, key_norm = (_norm(configuration, norm) for norm in (layer.query_norm, layer.key_norm))
    tables = [span.table if window is None else span.local_table for span in run.spans]
    split_queries, split_keys, split_values = (rows.reshape(len(rows), -1, size) for rows in (queries, keys, values))

    turned = np.empty((kv_heads, len(keys), size), np.float32)

    def turn_keys(task: tuple[int, int]) -> None:
        number, head = task
        rows = slice(run.spans[number].start, run.spans[number].stop)
        part = slice(head, head + 1)
        _turn(split_keys[rows, part], key_norm, settings, tables[number], turned[part, rows])

    run.workers.map(turn_keys, [(number, head) for number in range(len(run.spans)) for head in range(kv_heads)])

    known: list[tuple[Floats, Floats]] = []
    for number, span in enumerate(run.spans):
        own = turned[:, span.start : span.stop], split_values[span.start : span.stop].transpose(1, 0, 2)
        known.append(own if run.cache is None else run.cache.extend(block.index, number, *own))

    def gather(task: tuple[int, int, slice]) -> None:
        """Attend from some positions of one sequence, for the query heads that share one head of keys."""
        number, head, positions = task
        span, table, heads = run.spans[number], tables[number], slice(head * group, (head + 1) * group)
        mine = split_queries[span.start + positions.start : span.start + positions.stop, heads]
        asked = np.empty((group, len(mine), size), np.float32)
        _turn(mine, query_norm, settings, None if table is None else table[positions], asked)
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
        )

    tasks = [
        (number, head, slice(start, min(start + _TASK_QUERIES, span.stop - span.start)))
        for number, span in enumerate(run.spans)
        for start in range(0, span.stop - span.start, _TASK_QUERIES)
        for head in range(kv_heads)
    ]
    run.workers.map(gather, tasks)


def _turn(
    rows: Floats,
    norm: Callable[[Floats, Floats], None],
    settings: RopeSettings | None,
    table: NDArray[np.complex64] | None,
    out: Floats,
) -> None:
    """Fill ``out`` (heads, n, size) with queries or keys (n, heads, size), normalised in place, and rotated."""
    for head in range(rows.shape[1]):
        norm(rows[:, head], rows[:, head])
    if settings is None or table is None:
        out[...] = rows.transpose(1, 0, 2)
    else:
        rotate(rows, table, settings, out)
