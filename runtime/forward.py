"""The forward pass: sequences of tokens in, logits out where they are asked for; weights stream past all sequences, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ModelError, UsageError
from .attention.latent_attention import HEADS_AT_ONCE
from .attention.rope import rope_table
from .attention.rope_settings import RopeSettings
from .block import run_block
from .building.layers import Block, Experts
from .building.network import Network
from .cache import Cache
from .head import Logits, yield_logits
from .hooks import Collector, Hooks, Trace
from .residual.alternating import merge_streams, open_streams
from .residual.hyper_connections import join_streams, repeat_streams
from .residual.layer_inputs import layer_inputs, look_up
from .run import Run, Span
from .workers import Workers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Wanted = slice | Sequence[NDArray[np.intp]]

__all__ = [
    "LOGIT_BLOCK_BYTES",
    "Logits",
    "activation_bytes",
    "check_finite",
    "check_tokens",
    "embed",
    "forward",
    "start_run",
]

LOGIT_BLOCK_BYTES = 256 << 20
"""Largest array of logits that :func:`forward` yields, unless told otherwise."""

_LARGEST = 1e17  # a sum of squares of some thousand such numbers still fits float32


def forward(
    network: Network,
    sequences: Sequence[NDArray[np.integer] | Sequence[int]],
    *,
    wanted: Wanted = slice(None),
    collector: Collector | None = None,
    trace: Trace | None = None,
    cache: Cache | None = None,
    threads: int | None = None,
    block_bytes: int = LOGIT_BLOCK_BYTES,
    workers: Workers | None = None,
    progress: Callable[[float], None] | None = None,
) -> Iterator[Logits]:
    """Run all sequences through the model together and yield logits, sequence by sequence, in order of position.

    Each block's weights are decoded once for all sequences, which do not see each other. The pass itself happens before the first result; a caller
    who wants no logits (``wanted=slice(0)``) still has to exhaust the iterator. Memory: :func:`activation_bytes`, one result, and the slabs in flight.

    Args:
        network: see :func:`~.network.load_network`.
        sequences: token ids, each sequence of one or more.
        wanted: which of a sequence's tokens to give logits for: a slice that applies to each, or arrays of indices, one per sequence. Logits at a
            token are those of its successor.
        collector: told what every matrix is multiplied by.
        trace: told the result of every matrix.
        cache: holds earlier positions of the sequences, which these continue, and takes up these. None: sequences begin here.
        threads: how many work side by side; None for the number of processors. BLAS is limited to one thread meanwhile.
        block_bytes: bound of one result's array; a smaller one decodes the output's weights more often.
        workers: the threads to use instead of new ones, for callers of many short passes.
        progress: called whenever something is done, with its share of the pass.

    Raises:
        UsageError: for an empty sequence, a token that the vocabulary lacks, or a text longer than a model with learned positions can hold.
        ModelError: for activations that are not finite; the message names the block.
    """
    tokens = [np.asarray(sequence, np.intp) for sequence in sequences]
    check_tokens(network, tokens)
    rows = _wanted_rows(wanted, tokens)
    with Workers(threads) if workers is None else nullcontext(workers) as pool:
        run = start_run(network, [len(ids) for ids in tokens], pool, collector, trace, cache)
        if progress is not None:
            parts = len(network.blocks) + 1  # the output counts as a block
            run = replace(run, passed=lambda blocks: progress(blocks / parts))
        hidden = embed(network, tokens, run.hooks)
        if network.layer_embedding is not None:
            run = replace(run, layer_inputs=layer_inputs(run, network.layer_embedding, tokens, hidden))
        if network.streams is not None:
            hidden = open_streams(run, network.streams, hidden)
        _run_blocks(network, run, hidden)
        if network.streams is not None:
            hidden = merge_streams(run, network.streams, hidden)
        if network.configuration.stream_mixing is not None:
            hidden = join_streams(network.configuration, hidden)
        if cache is not None:
            for number, ids in enumerate(tokens):
                cache.places.advance(number, len(ids))
        for found in yield_logits(network, pool, hidden, rows, run.hooks, block_bytes):
            check_finite(network, found.logits, found.sequences, found.positions, "the output")
            run.passed(len(found.logits) / len(rows))
            yield found


def start_run(
    network: Network,
    lengths: Sequence[int],
    workers: Workers,
    collector: Collector | None = None,
    trace: Trace | None = None,
    cache: Cache | None = None,
) -> Run:
    """Return what all blocks of a pass over sequences of these ``lengths`` share; the other arguments are those of :func:`forward`."""
    offsets = [0 if cache is None else cache.places.lengths[number] for number in range(len(lengths))]
    positions = [offset + np.arange(length) for offset, length in zip(offsets, lengths, strict=True)]
    owners = [np.full(length, number) for number, length in enumerate(lengths)]
    hooks = Hooks(collector, trace, np.concatenate(owners), np.concatenate(positions))
    return Run(network.configuration, workers, _spans(network, positions, cache), hooks, cache)


def activation_bytes(network: Network, tokens: int) -> int:
    """Return about how many bytes a pass over ``tokens`` tokens in all holds besides weights and logits."""
    configuration = network.configuration
    heads = configuration.head_size * (2 * configuration.heads + 3 * configuration.kv_heads)
    if configuration.latent is not None:
        latent = configuration.latent
        heads = configuration.heads * (latent.key_size + 2 * latent.value_size)
        heads += 3 * configuration.head_size + 2 * HEADS_AT_ONCE * latent.rank
    if (delta := configuration.delta_heads) is not None:
        heads = max(heads, delta.size * (4 * delta.keys + 4 * delta.values))
    if (kimi := configuration.kimi_heads) is not None:
        heads = max(heads, 8 * kimi.count * kimi.size)
    if (space := configuration.state_space) is not None:
        heads = max(heads, 3 * space.inner + 2 * space.channels)
    widths = [_width(network, block) for block in network.blocks]
    own = 2 * configuration.layers * configuration.layer_input
    lent = sum(
        2 * configuration.layer_kv_heads(layer) * configuration.layer_head_size(layer)
        for layer in range(configuration.layers)
        if configuration.lends_keys(layer)
    )
    return 4 * tokens * (3 * configuration.streams * configuration.hidden + own + lent + max(heads, 2 * max(widths)))


def _width(network: Network, block: Block) -> int:
    """Return how many numbers per token a block's feed-forward has in its middle."""
    layer = block.feed_forward
    if layer is None:
        return 0
    if isinstance(layer, Experts):
        return network.configuration.experts_used * layer.experts[0].up.matrix.rows
    return layer.up.matrix.rows


def check_tokens(network: Network, tokens: Sequence[NDArray[np.intp]]) -> None:
    """Raise UsageError for no sequence, an empty one, or a token that the vocabulary lacks."""
    if not tokens:
        raise UsageError("there is no sequence to run", path=network.path)
    for ids in tokens:
        if ids.ndim != 1 or not len(ids):
            raise UsageError("a sequence must be a list of one or more token ids", path=network.path)
        if ids.min() < 0 or ids.max() >= network.vocabulary:
            raise UsageError(
                f"token {ids.min() if ids.min() < 0 else ids.max()} is not among the {network.vocabulary} of the model",
                path=network.path,
                remedy="The tokens must come from the model's own tokenizer.",
            )


def _wanted_rows(wanted: Wanted, tokens: Sequence[NDArray[np.intp]]) -> NDArray[np.intp]:
    """Return the wanted rows of the run."""
    if not isinstance(wanted, slice) and len(wanted) != len(tokens):
        raise UsageError(f"positions are given for {len(wanted)} sequences, but there are {len(tokens)}")
    start, found = 0, []
    for number, ids in enumerate(tokens):
        found.append(np.arange(start, start + len(ids))[wanted if isinstance(wanted, slice) else wanted[number]])
        start += len(ids)
    return np.concatenate(found)


def _spans(network: Network, positions: Sequence[NDArray[np.intp]], cache: Cache | None) -> list[Span]:
    """Return where each sequence lies; sequences at the same positions share their rotary tables.

    A sequence in a cache is as long as it can become there: keys are rotated once, whatever follows.
    """
    configuration = network.configuration
    known: dict[tuple[int, int, int], tuple[NDArray[np.complex64] | None, NDArray[np.complex64] | None]] = {}
    spans, start = [], 0
    for number, own in enumerate(positions):
        length = int(own[-1]) + 1 if cache is None else cache.places.capacities[number]
        key = (int(own[0]), len(own), length)
        if key not in known:
            full = _table(configuration.rope, own, _divisors(network, length))
            local = full if configuration.local_rope is None else _table(configuration.local_rope, own, None)
            known[key] = (full, local)
        spans.append(Span(start, start + len(own), *known[key]))
        start += len(own)
    return spans


def _table(
    settings: RopeSettings | None, positions: NDArray[np.intp], divisors: Floats | None
) -> NDArray[np.complex64] | None:
    return None if settings is None else rope_table(settings, positions, divisors)


def _divisors(network: Network, length: int) -> Floats | None:
    """Return the model's table of rotary divisors for a sequence of ``length``."""
    rope = network.configuration.rope
    if rope is not None and network.long_divisors is not None and network.short_divisors is not None:
        return network.long_divisors if length > rope.original_context else network.short_divisors
    return network.rope_divisors


def embed(network: Network, tokens: Sequence[NDArray[np.intp]], hooks: Hooks) -> Floats:
    """Return float32 (rows, hidden): the embeddings of all tokens, learned positions added; once per stream where blocks mix several."""
    configuration, embedding = network.configuration, network.embedding
    hidden = look_up(embedding, tokens)
    if configuration.embedding_scale != 1:
        hidden *= np.float32(configuration.embedding_scale)
    if network.positions is not None:
        longest, known = int(hooks.positions.max()) + 1, network.positions.row_count
        if longest > known:
            raise UsageError(
                f"a sequence of {longest} tokens is longer than the {known} positions that the model has learned",
                path=network.path,
                remedy="Use a shorter context.",
            )
        hidden += network.positions.rows(0, longest)[hooks.positions]
    if configuration.stream_mixing is not None:
        hidden = repeat_streams(configuration, hidden)
    hooks.report(embedding.name, hidden)
    return hidden


def _run_blocks(network: Network, run: Run, hidden: Floats) -> None:
    """Carry the residual stream through all blocks, in place."""
    for block in network.blocks:
        run_block(run, block, hidden)
        check_finite(network, hidden, run.hooks.sequences, run.hooks.positions, f"block {block.index}")


def check_finite(
    network: Network, values: Floats, sequences: NDArray[np.intp], positions: NDArray[np.intp], name: str
) -> None:
    """Raise ModelError where ``values`` (n, columns) hold NaN, infinity, or what the next norm would square to infinity and so to zero."""
    if max(float(values.max()), -float(values.min())) < _LARGEST:  # NaN is not less either
        return
    row, column = np.argwhere(~(np.abs(values) < _LARGEST))[0]
    raise ModelError(
        f"channel {column} after {name} is {values[row, column]} at position {positions[row]} of sequence {sequences[row]}",
        path=network.path,
        remedy=f"A weight of {name} is damaged or its type has too small a range; compare with the source of the model.",
    )
