"""A block's linear attention by the gated delta rule (Qwen3-Next, Qwen3.5), instead of attention to every position.

Queries, keys and values come from one projection and a short causal convolution per channel; how fast a head forgets and how much it corrects, from
two small projections. What a sequence has been is a memory of fixed size per head, and the last few inputs of the convolution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..building.configuration import DeltaHeads
from ..building.layers import DeltaNet
from ..elementwise import sigmoid, silu, softplus
from ..run import Run
from ..weights import product, products
from .convolution import convolve, keep_states, start_states
from .delta_rule import run_delta_rule
from .gated_heads import gate_heads, to_unit_length

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["delta_net"]


def delta_net(run: Run, index: int, layer: DeltaNet, inputs: Floats) -> Floats:
    """Return float32 (rows, hidden): what block ``index`` makes of ``inputs``, before a norm that may follow."""
    heads = run.configuration.delta_heads
    assert heads is not None
    entering = (layer.mixed, layer.gate, *layer.rates)
    run.hooks.collect([linear.matrix for linear in entering], inputs)
    mixed, gates, *rates = products(run.workers, [(inputs, linear) for linear in entering])
    for linear, result in zip(entering, (mixed, gates, *rates), strict=True):
        run.hooks.report(linear.matrix.name, result)
    correction, steps = _rates(rates, heads)
    sigmoid(correction)
    decay = softplus(steps + layer.step_bias.decode()) * layer.decay.decode()
    read = _read(run, index, layer, heads, mixed, decay, correction)
    gate_heads(run, layer.head_norm, heads.size, read, gates, silu)
    run.hooks.collect([layer.output.matrix], read)
    result = product(run.workers, read, layer.output)
    run.hooks.report(layer.output.matrix.name, result)
    return result


def _rates(found: list[Floats], heads: DeltaHeads) -> tuple[Floats, Floats]:
    """Return for each value head how much it corrects and how far it steps, float32 (rows, heads) each, before their functions."""
    if len(found) == 2:
        return found[0], found[1]
    grouped = found[0].reshape(len(found[0]), heads.keys, 2, -1)
    correction, steps = (grouped[:, :, part].reshape(len(grouped), -1) for part in range(2))
    return correction, steps


def _read(
    run: Run, index: int, layer: DeltaNet, heads: DeltaHeads, mixed: Floats, decay: Floats, correction: Floats
) -> Floats:
    """Return float32 (rows, value heads * size): what every value head reads of its memory at every position."""
    size, share = heads.size, heads.values // heads.keys
    kernels = layer.kernels.decode(slice(0, layer.kernels.rows))
    out = np.empty((len(mixed), heads.values * size), np.float32)
    channels = (2 * heads.keys + heads.values) * size
    states = start_states(run, index, (heads.values, size, size), channels, kernels.shape[1])

    def follow(task: tuple[int, int]) -> None:
        """Run the value heads that share one key head over one sequence."""
        number, key_head = task
        rows = slice(run.spans[number].start, run.spans[number].stop)
        own = _value_heads(heads, key_head)
        memory, earlier = states[number]
        queries, keys, *values = (
            convolve(mixed[rows], earlier, kernels, None, _head(head, size))
            for head in (key_head, heads.keys + key_head, *(2 * heads.keys + head for head in own))
        )
        to_unit_length(queries)
        queries *= np.float32(size**-0.5)
        to_unit_length(keys)
        known = memory[own]
        read = run_delta_rule(
            np.broadcast_to(queries, (share, *queries.shape)),
            np.broadcast_to(keys, (share, *keys.shape)),
            np.stack(values),
            np.ascontiguousarray(decay[rows][:, own].T),
            np.ascontiguousarray(correction[rows][:, own].T),
            known,
        )
        memory[own] = known
        for place, head in enumerate(own):
            out[rows, _head(head, size)] = read[place]

    run.workers.map(follow, [(number, head) for number in range(len(run.spans)) for head in range(heads.keys)])
    keep_states(run, index, states, mixed)
    return out


def _value_heads(heads: DeltaHeads, key_head: int) -> list[int]:
    """Return the value heads that share a key head."""
    share = heads.values // heads.keys
    if heads.tiled:
        return list(range(key_head, heads.values, heads.keys))
    return list(range(key_head * share, (key_head + 1) * share))


def _head(number: int, size: int) -> slice:
    return slice(number * size, (number + 1) * size)
