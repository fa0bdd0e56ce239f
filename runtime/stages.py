"""A forward pass in stages: the attention or the feed-forward of one block at a time, or a block whose parts read the same stream.

The caller keeps the residual streams between stages, in memory or on disk, so that all tokens of a long text can pass one stage before any passes the
next: what a stage's inputs amount to is then known before it is left, and nothing of the other stages need be in memory. Stages are also where
quantizers that propagate their own errors change weights: a :class:`Stage` is a value, and one with other matrices runs as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from .block import run_attention, run_block, run_feed_forward
from .building.layers import Attention, Block, DeltaNet, Dense, Experts, KimiDelta, LatentAttention, Mamba2
from .building.network import Network, refuse_bound_blocks
from .forward import check_finite, check_tokens, embed, start_run
from .hooks import Collector, tensor_names
from .norms import normalise
from .residual.hyper_connections import join_streams
from .run import Run
from .weights import Linear
from .workers import Workers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = [
    "OUTPUT",
    "Stage",
    "StageInput",
    "embed_batch",
    "network_stages",
    "run_stage",
    "stage_inputs",
]

OUTPUT = "output"
"""The part of a network behind its last block, as a stage that changes nothing: its input is collected, no logits are computed."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a pass.

    Attributes:
        part: ``attention``, ``feed_forward``, ``block`` (both, where they are parallel) or :data:`OUTPUT`.
        block: whose part it is, None for the output.
    """

    part: Literal["attention", "feed_forward", "block", "output"]
    block: Block | None

    @property
    def name(self) -> str:
        """For messages: ``block 3, feed-forward``."""
        if self.block is None:
            return OUTPUT
        return f"block {self.block.index}" + ("" if self.part == "block" else f", {self.part.replace('_', '-')}")


@dataclass(frozen=True, slots=True)
class StageInput:
    """What collectors are told of in a stage.

    Attributes:
        names: the tensors that share the input, as in :class:`~.hooks.ProductInput`.
        columns: its width.
        experts: number of experts that have an input of their own, None where there is one input.
    """

    names: tuple[str, ...]
    columns: int
    experts: int | None = None


def network_stages(network: Network) -> tuple[Stage, ...]:
    """Return all stages of a network, in order, the output's last.

    Raises ModelError for a network whose blocks read more than the stream: inputs of their own, or keys of another block.
    """
    found: list[Stage] = []
    refuse_bound_blocks(network, "calibrated stage by stage")
    for block in network.blocks:
        if network.configuration.parallel:
            found.append(Stage("block", block))
        else:
            found += [] if block.attention is None else [Stage("attention", block)]
            found += [] if block.feed_forward is None else [Stage("feed_forward", block)]
    return (*found, Stage("output", None))


def stage_inputs(network: Network, stage: Stage) -> tuple[StageInput, ...]:
    """Return the inputs of a stage's products, in the order of the pass."""
    if stage.block is None:
        matrix = network.output.matrix
        return (StageInput((matrix.name,), matrix.columns),)
    attention, feed_forward = stage.block.attention, stage.block.feed_forward
    mixing = [] if stage.block.connections is None else [_shared_input(it.mixing) for it in stage.block.connections]
    found: list[StageInput] = []
    if stage.part != "feed_forward" and attention is not None:
        found += [*mixing[:1], *_attention_inputs(attention)]
    if stage.part != "attention" and feed_forward is not None:
        found += [*mixing[1:], *_feed_forward_inputs(feed_forward)]
    return tuple(found)


def _attention_inputs(layer: Attention | LatentAttention | DeltaNet | KimiDelta | Mamba2) -> tuple[StageInput, ...]:
    output = StageInput((layer.output.matrix.name,), layer.output.matrix.columns)
    if isinstance(layer, Attention):
        return (_shared_input(*layer.projections), output)
    if isinstance(layer, DeltaNet):
        return (_shared_input(layer.mixed, layer.gate, *layer.rates), output)
    if isinstance(layer, KimiDelta):
        return (_shared_input(*layer.entering), _shared_input(layer.forget[1]), _shared_input(layer.gate[1]), output)
    if isinstance(layer, Mamba2):
        return (_shared_input(layer.entering), output)
    heads = len(layer.keys)
    indexer = layer.indexer
    later = (
        ()
        if layer.query_down is None
        else (_shared_input(layer.query, *(() if indexer is None else (indexer.query,))),)
    )
    if layer.whole is not None:
        latent = [StageInput((layer.whole.name,), layer.whole.columns)]
    else:
        parts = (layer.keys[0].matrix, layer.values[0].matrix)
        latent = [StageInput(tensor_names([it]), it.columns, heads) for it in parts]
    return (_shared_input(*layer.entering), *later, *latent, output)


def _shared_input(*linears: Linear) -> StageInput:
    matrices = [linear.matrix for linear in linears]
    return StageInput(tensor_names(matrices), matrices[0].columns)


def _feed_forward_inputs(layer: Dense | Experts) -> tuple[StageInput, ...]:
    if isinstance(layer, Dense):
        return _dense_inputs(layer, None)
    shared = () if layer.shared is None else _dense_inputs(layer.shared, None)
    enter, leave = (() if it is None else (_shared_input(it),) for it in (layer.enter, layer.leave))
    return (
        _shared_input(layer.router),
        *enter,
        *_dense_inputs(layer.experts[0], len(layer.experts)),
        *leave,
        *shared,
    )


def _dense_inputs(layer: Dense, experts: int | None) -> tuple[StageInput, StageInput]:
    entering = [linear.matrix for linear in (layer.gate, layer.up) if linear is not None]
    down = layer.down.matrix
    return (
        StageInput(tensor_names(entering), entering[0].columns, experts),
        StageInput((down.name,), down.columns, experts),
    )


def embed_batch(network: Network, tokens: Sequence[NDArray[np.integer] | Sequence[int]], workers: Workers) -> Floats:
    """Return float32 (tokens of all sequences, hidden, or streams * hidden): what the first stage reads. Raises as forward."""
    sequences = [np.asarray(sequence, np.intp) for sequence in tokens]
    check_tokens(network, sequences)
    return embed(network, sequences, start_run(network, [len(it) for it in sequences], workers).hooks)


def run_stage(
    network: Network,
    stage: Stage,
    hidden: Floats,
    lengths: Sequence[int],
    workers: Workers,
    collector: Collector | None = None,
) -> None:
    """Carry residual streams, float32 (tokens, hidden, or streams * hidden), through a stage, in place.

    Args:
        network: whose constants apply.
        stage: one of its stages, or one with other matrices.
        hidden: the streams of several sequences, one behind another.
        lengths: tokens of each.
        workers: threads.
        collector: told what every matrix is multiplied by.

    Raises ModelError for activations that are not finite; the message names the stage.
    """
    run = start_run(network, lengths, workers, collector)
    if stage.block is None:
        _collect_output(network, run, hidden)
        return
    {"attention": run_attention, "feed_forward": run_feed_forward, "block": run_block}[stage.part](
        run, stage.block, hidden
    )
    check_finite(network, hidden, run.hooks.sequences, run.hooks.positions, stage.name)


def _collect_output(network: Network, run: Run, hidden: Floats) -> None:
    """Tell the collector what the output is multiplied by, at all positions."""
    if network.configuration.stream_mixing is not None:
        hidden = join_streams(network.configuration, hidden)
    inputs = np.empty_like(hidden)
    run.workers.map_rows(
        lambda rows: normalise(network.configuration, network.output_norm, hidden[rows], inputs[rows]), len(hidden)
    )
    run.hooks.collect([network.output.matrix], inputs)
