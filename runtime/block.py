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
from .feed_forward import dense, dense_slabs, mixture
from .hooks import Hooks
from .network import Block, Experts, Linear, Norm
from .rope import rotate
from .weights import Matrix, WeightStream, vector_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Run", "Span", "block_slabs", "normalise", "run_block"]


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
    stream: WeightStream
    spans: Sequence[Span]
    hooks: Hooks
    cache: Cache | None


def block_slabs(block: Block) -> list[Matrix]:
    """Return a block's slabs in the order in which they are taken; of a mixture only the router's, since experts depend on the tokens."""
    attention = block.attention
    projections = (attention.query, attention.key, attention.value, attention.output)
    slabs = [slab for projection in projections for slab in projection.matrix.slabs()]
    if isinstance(block.feed_forward, Experts):
        return slabs + block.feed_forward.router.slabs()
    return slabs + dense_slabs(block.feed_forward)


def run_block(run: Run, block: Block, hidden: Floats) -> None:
    """Carry the residual stream, float32 (rows, hidden), through a block whose slabs have been announced, in place."""
    configuration, hooks = run.configuration, run.hooks
    hidden += _after(configuration, block.attention.after, _attention(run, block, hidden))
    inputs = normalise(configuration, block.feed_forward_norm, hidden)
    hooks.report(block.feed_forward_norm.weight.tensor.name, inputs)
    if isinstance(block.feed_forward, Experts):
        result = mixture(run.stream, configuration, block.feed_forward, inputs, hooks)
    else:
        result = dense(run.stream, configuration, block.feed_forward, inputs, hooks)
    hidden += _after(configuration, block.after, result)
    hooks.report(f"blk.{block.index}", hidden)


def normalise(configuration: Configuration, norm: Norm, values: Floats, out: Floats | None = None) -> Floats:
    """Return float32 (n, columns): the family's kind of norm of each row, into ``out`` if given (``values`` itself may be)."""
    result = np.empty_like(values) if out is None else out
    function = rms_norm if configuration.facts.norm == "rms" else layer_norm
    bias = None if norm.bias is None else vector_values(norm.bias)
    function(values, vector_values(norm.weight), bias, configuration.epsilon, result)
    return result


def _after(configuration: Configuration, norm: Norm | None, values: Floats) -> Floats:
    return values if norm is None else normalise(configuration, norm, values, values)


def _attention(run: Run, block: Block, hidden: Floats) -> Floats:
    """Return float32 (rows, hidden)."""
    configuration, hooks, layer = run.configuration, run.hooks, block.attention
    inputs = normalise(configuration, layer.norm, hidden)
    hooks.report(layer.norm.weight.tensor.name, inputs)
    hooks.collect([layer.query.matrix, layer.key.matrix, layer.value.matrix], inputs)
    queries, keys, values = (_project(run, linear, inputs) for linear in (layer.query, layer.key, layer.value))
    del inputs
    window = configuration.layer_window(block.index)
    settings = configuration.layer_rope(block.index)
    attended = queries  # a sequence's queries are copied by the rotation before its results are written
    for number, span in enumerate(run.spans):
        table = span.local_table if window is not None else span.table
        turned = _heads(configuration, layer.query_norm, queries[span.start : span.stop], settings, table)
        known = _heads(configuration, layer.key_norm, keys[span.start : span.stop], settings, table)
        held = values[span.start : span.stop].reshape(-1, configuration.kv_heads, configuration.head_size)
        held = held.transpose(1, 0, 2)
        if run.cache is not None:
            known, held = run.cache.extend(block.index, number, known, held)
        attend(
            turned,
            known,
            held,
            attended[span.start : span.stop].reshape(-1, configuration.heads, configuration.head_size),
            scale=configuration.attention_scale,
            cap=configuration.attention_soft_cap,
            window=window,
        )
    hooks.collect([layer.output.matrix], attended)
    return _project(run, layer.output, attended)


def _project(run: Run, linear: Linear, inputs: Floats) -> Floats:
    result = run.stream.product(inputs, linear.matrix)
    if linear.bias is not None:
        result += vector_values(linear.bias)
    run.hooks.report(linear.matrix.name, result, linear.matrix.first)
    return result


def _heads(
    configuration: Configuration,
    norm: Norm | None,
    rows: Floats,
    settings: RopeSettings | None,
    table: NDArray[np.complex64] | None,
) -> Floats:
    """Return float32 (heads, n, size): queries or keys (n, heads * size) head by head, normalised and rotated."""
    size = configuration.head_size
    if norm is not None:
        flat = rows.reshape(-1, size)
        normalise(configuration, norm, flat, flat)
    split = rows.reshape(len(rows), -1, size)
    out = np.empty((split.shape[1], len(rows), size), np.float32)
    if settings is None or table is None:
        out[...] = split.transpose(1, 0, 2)
    else:
        rotate(split, table, settings, out)
    return out
