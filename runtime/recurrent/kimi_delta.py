"""A block's linear attention of Kimi's kind (Kimi Linear, GLM-5-Next), instead of attention to every position.

Queries, keys and values pass a short causal convolution each; how fast every dimension of a head forgets follows from a product of low rank of the
block's input, and so does the gate of what is read. A family either limits how much one position can make a dimension forget, or does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..building.configuration import KimiHeads
from ..building.layers import KimiDelta
from ..elementwise import sigmoid, softplus
from ..run import Run
from ..weights import Linear, product, products
from .convolution import convolve, keep_states, start_states
from .gated_heads import gate_heads, to_unit_length
from .kimi_rule import run_kimi_rule

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["kimi_delta"]

_HEADS_AT_ONCE = 4


def kimi_delta(run: Run, index: int, layer: KimiDelta, inputs: Floats) -> Floats:
    """Return float32 (rows, hidden): what block ``index`` makes of ``inputs``, before a norm that may follow."""
    heads = run.configuration.kimi_heads
    assert heads is not None
    run.hooks.collect([linear.matrix for linear in layer.entering], inputs)
    entered = products(run.workers, [(inputs, linear) for linear in layer.entering])
    for linear, result in zip(layer.entering, entered, strict=True):
        run.hooks.report(linear.matrix.name, result)
    *mixed, forget, rates, gate = entered
    sigmoid(rates)
    decay = _decay(run, layer, heads, _widened(run, layer.forget[1], forget))
    read = _read(run, index, layer, heads, np.concatenate(mixed, axis=1), decay, rates)
    gate_heads(run, layer.head_norm, heads.size, read, _widened(run, layer.gate[1], gate), sigmoid)
    run.hooks.collect([layer.output.matrix], read)
    result = product(run.workers, read, layer.output)
    run.hooks.report(layer.output.matrix.name, result)
    return result


def _widened(run: Run, linear: Linear, inputs: Floats) -> Floats:
    run.hooks.collect([linear.matrix], inputs)
    result = product(run.workers, inputs, linear)
    run.hooks.report(linear.matrix.name, result)
    return result


def _decay(run: Run, layer: KimiDelta, heads: KimiHeads, steps: Floats) -> Floats:
    """Return float32 (rows, heads * size): logarithms of what is kept of every dimension; ``steps`` are overwritten."""
    rates = np.repeat(layer.decay.decode(), heads.size)
    steps += layer.step_bias.decode()
    if heads.limit is None:
        return softplus(steps) * rates
    steps *= -rates
    sigmoid(steps)
    steps *= np.float32(heads.limit)
    return steps


def _read(
    run: Run, index: int, layer: KimiDelta, heads: KimiHeads, mixed: Floats, decay: Floats, rates: Floats
) -> Floats:
    """Return float32 (rows, heads * size): what every head reads of its memory at every position."""
    size, wide = heads.size, heads.count * heads.size
    kernels = np.concatenate([it.decode(slice(0, it.rows)) for it in layer.kernels])
    out = np.empty((len(mixed), wide), np.float32)
    states = start_states(run, index, (heads.count, size, size), 3 * wide, kernels.shape[1])

    def follow(task: tuple[int, slice]) -> None:
        """Run some heads over one sequence."""
        number, own = task
        rows = slice(run.spans[number].start, run.spans[number].stop)
        channels = slice(own.start * size, own.stop * size)
        memory, earlier = states[number]

        def by_head(values: Floats) -> Floats:
            return np.ascontiguousarray(values.reshape(len(values), -1, size).swapaxes(0, 1))

        queries, keys, values = (
            by_head(convolve(mixed[rows], earlier, kernels, None, slice(channels.start + first, channels.stop + first)))
            for first in (0, wide, 2 * wide)
        )
        to_unit_length(queries)
        queries *= np.float32(size**-0.5)
        to_unit_length(keys)
        correction = np.ascontiguousarray(rates[rows, own].T)
        read = run_kimi_rule(queries, keys, values, by_head(decay[rows, channels]), correction, memory[own])
        out[rows, channels] = read.swapaxes(0, 1).reshape(-1, channels.stop - channels.start)

    groups = [slice(it, min(it + _HEADS_AT_ONCE, heads.count)) for it in range(0, heads.count, _HEADS_AT_ONCE)]
    run.workers.map(follow, [(number, own) for number in range(len(run.spans)) for own in groups])
    keep_states(run, index, states, mixed)
    return out
