"""One block: attention and feed-forward, each added to the residual stream."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .attention.latent_attention import latent_attention
from .attention.self_attention import self_attention
from .building.layers import Alternating, Beside, Block, DeltaNet, Experts, KimiDelta, LatentAttention, Mamba2, Norm
from .elementwise import sigmoid
from .feed_forward import dense, mixture, sparse_dense
from .norms import norm_function
from .recurrent.delta_net import delta_net
from .recurrent.kimi_delta import kimi_delta
from .recurrent.mamba2 import mamba2
from .residual.alternating import correct_streams, learned_residual, predict_streams
from .residual.hyper_connections import mix_streams, spread_result
from .residual.layer_inputs import layer_addition
from .run import Run
from .weights import product

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["run_attention", "run_block", "run_feed_forward"]


def run_block(run: Run, block: Block, hidden: Floats) -> None:
    """Carry the residual stream, float32 (rows, hidden), through a block, in place."""
    if block.alternating is not None:
        _run_alternating(run, block, block.alternating, hidden)
    elif run.configuration.parallel:
        _run_side_by_side(run, block, hidden)
    else:
        for part, run_part in ((block.attention, run_attention), (block.feed_forward, run_feed_forward)):
            if part is None:
                run.passed(0.5)
            else:
                run_part(run, block, hidden)
    run.hooks.report(f"blk.{block.index}", hidden)


def run_attention(run: Run, block: Block, hidden: Floats) -> None:
    """Add a block's attention to the residual stream, in place. Not for parallel blocks, whose feed-forward reads the same stream."""
    assert block.attention is not None
    if block.connections is not None:
        mixed, writing, passing = mix_streams(run, block.connections[0], hidden)
        result = _attention(run, block, _normalised(run, block.attention.norm, mixed))
        spread_result(result, writing, passing, hidden)
        run.passed(0.5)
        return
    inputs = _normalised(run, block.attention.norm, hidden)
    _add(run, block.attention.after, _attention(run, block, inputs), hidden)
    run.passed(0.5)


def run_feed_forward(run: Run, block: Block, hidden: Floats) -> None:
    """Add a block's feed-forward to the residual stream, in place. Not for parallel blocks."""
    if block.connections is not None:
        mixed, writing, passing = mix_streams(run, block.connections[1], hidden)
        result = _feed_forward(run, block, _normalised(run, block.feed_forward_norm, mixed), mixed)
        spread_result(result, writing, passing, hidden)
        run.passed(0.5)
        return
    inputs = _normalised(run, block.feed_forward_norm, hidden)
    _add(run, block.after, _feed_forward(run, block, inputs, hidden), hidden)
    if block.layer_input is not None:
        hidden += layer_addition(run, block, hidden)
    if block.scale is not None:
        hidden *= block.scale.decode()
    run.passed(0.5)


def _run_side_by_side(run: Run, block: Block, hidden: Floats) -> None:
    assert block.attention is not None
    inputs = _normalised(run, block.attention.norm, hidden)
    same = block.feed_forward_norm == block.attention.norm
    others = inputs if same else _normalised(run, block.feed_forward_norm, hidden)
    _add(run, block.attention.after, _attention(run, block, inputs), hidden)
    run.passed(0.5)
    _add(run, block.after, _feed_forward(run, block, others, hidden), hidden)
    run.passed(0.5)


def _run_alternating(run: Run, block: Block, layer: Alternating, hidden: Floats) -> None:
    """Run the first of several predicted streams through a block, and correct all of them, (rows, streams * hidden), by what that changed."""
    assert block.attention is not None
    streams = hidden.reshape(len(hidden), -1, run.configuration.hidden)
    predicted = predict_streams(run, layer, streams)
    active = predicted[:, 0].copy()
    assert block.attention is not None
    inputs = _normalised(run, block.attention.norm, active)
    learned = learned_residual(run, layer, inputs)
    _add(run, block.attention.after, _attention(run, block, inputs), active)
    active += learned
    active *= np.float32(math.sqrt(0.5))
    run.passed(0.5)
    inputs = _normalised(run, block.feed_forward_norm, active)
    _add(run, block.after, _feed_forward(run, block, inputs, active), active)
    correct_streams(run, layer, predicted, active)
    first = predicted[:, 0] * layer.scale.decode()
    predicted[:, 1:] += layer_addition(run, block, first)[:, None]
    streams[...] = predicted
    run.passed(0.5)


def _attention(run: Run, block: Block, inputs: Floats) -> Floats:
    if isinstance(block.attention, LatentAttention):
        return latent_attention(run, block.index, block.attention, inputs)
    if isinstance(block.attention, DeltaNet):
        return delta_net(run, block.index, block.attention, inputs)
    if isinstance(block.attention, KimiDelta):
        return kimi_delta(run, block.index, block.attention, inputs)
    if isinstance(block.attention, Mamba2):
        return mamba2(run, block.index, block.attention, inputs)
    assert block.attention is not None
    return self_attention(run, block.index, block.attention, inputs)


def _feed_forward(run: Run, block: Block, inputs: Floats, hidden: Floats) -> Floats:
    """Return what a feed-forward makes of its normalised ``inputs``; ``hidden`` is the residual stream that they come from."""
    layer, activation, limit = (
        block.feed_forward,
        run.configuration.facts.activation,
        run.configuration.activation_limit,
    )
    assert layer is not None
    if not isinstance(layer, Experts):
        share = run.configuration.layer_sparsity(block.index)
        if share:
            return sparse_dense(run.workers, layer, activation, share, inputs, run.hooks)
        return dense(run.workers, layer, activation, inputs, run.hooks, limit=limit)
    assert run.configuration.routing is not None
    if layer.beside is not None:
        return _experts_beside(run, layer, layer.beside, inputs, hidden)
    result = mixture(run.workers, layer, run.configuration.routing, activation, inputs, run.hooks, limit=limit)
    if layer.shared is not None:
        always = dense(run.workers, layer.shared, activation, inputs, run.hooks, limit=limit)
        if layer.shared_gate is not None:
            gate = product(run.workers, inputs, layer.shared_gate)
            run.hooks.report(layer.shared_gate.matrix.name, gate)
            sigmoid(gate)
            always *= gate
        result += always
    return result


def _experts_beside(run: Run, layer: Experts, beside: Beside, inputs: Floats, hidden: Floats) -> Floats:
    """Return the sum of a dense feed-forward of ``inputs`` and of experts that read ``hidden`` by themselves, each normalised."""
    configuration, activation = run.configuration, run.configuration.facts.activation
    assert configuration.routing is not None
    assert layer.shared is not None
    routed, plain = np.empty_like(hidden), norm_function(configuration, Norm(None))
    scale = beside.router_scale.decode() * np.float32(configuration.hidden**-0.5)

    def scaled(rows: slice) -> None:
        plain(hidden[rows], routed[rows])
        routed[rows] *= scale

    run.workers.map_rows(scaled, len(hidden))
    entering = _normalised(run, beside.norm, hidden)
    result = mixture(run.workers, layer, configuration.routing, activation, entering, run.hooks, routed)
    always = dense(run.workers, layer.shared, activation, inputs, run.hooks)
    after, shared_after = norm_function(configuration, beside.after), norm_function(configuration, beside.shared_after)

    def add(rows: slice) -> None:
        after(result[rows], result[rows])
        shared_after(always[rows], always[rows])
        result[rows] += always[rows]

    run.workers.map_rows(add, len(hidden))
    return result


def _normalised(run: Run, norm: Norm | None, hidden: Floats) -> Floats:
    """Return the normalised stream; where there is no norm a copy, which stays what it is when results are added to the stream."""
    if norm is None:
        return hidden.copy()
    inputs, function = np.empty_like(hidden), norm_function(run.configuration, norm)
    run.workers.map_rows(lambda rows: function(hidden[rows], inputs[rows]), len(hidden))
    if norm.weight is not None:
        run.hooks.report(norm.weight.tensor.name, inputs)
    return inputs


def _add(run: Run, norm: Norm | None, result: Floats, hidden: Floats) -> None:
    """Add a part's result, normalised if there is a norm, to the residual stream."""
    function, scale = norm_function(run.configuration, norm), np.float32(run.configuration.residual_scale)

    def add(rows: slice) -> None:
        function(result[rows], result[rows])
        if scale != 1:
            result[rows] *= scale
        hidden[rows] += result[rows]

    run.workers.map_rows(add, len(hidden))
