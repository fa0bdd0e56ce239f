"""A block's state space layer (Mamba-2, arXiv:2405.21060), instead of attention to every position.

One projection gives gates, values, what is written and read, and steps. What a sequence has been is a memory of fixed size per head, and the last few
inputs of the convolution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..building.configuration import StateSpace
from ..building.layers import Mamba2
from ..elementwise import rms_norm, silu, softplus
from ..run import Run
from ..weights import product
from .convolution import convolve, keep_states, start_states
from .state_space import run_state_space

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["mamba2"]


def mamba2(run: Run, index: int, layer: Mamba2, inputs: Floats) -> Floats:
    """Return float32 (rows, hidden): what block ``index`` makes of ``inputs``, before a norm that may follow."""
    space = run.configuration.state_space
    assert space is not None
    run.hooks.collect([layer.entering.matrix], inputs)
    entered = product(run.workers, inputs, layer.entering)
    run.hooks.report(layer.entering.matrix.name, entered)
    gates, mixed, steps = np.split(entered, [space.inner, space.inner + space.channels], axis=1)
    steps = softplus(steps + layer.step_bias.decode())
    read = _read(run, index, layer, space, mixed, steps)
    _gate(run, layer, space, read, gates)
    run.hooks.collect([layer.output.matrix], read)
    result = product(run.workers, read, layer.output)
    run.hooks.report(layer.output.matrix.name, result)
    return result


def _read(run: Run, index: int, layer: Mamba2, space: StateSpace, mixed: Floats, steps: Floats) -> Floats:
    """Return float32 (rows, heads * size): what every head reads of its memory at every position, and takes of the position itself."""
    kernels = layer.kernels.decode(slice(0, layer.kernels.rows))
    bias = None if layer.kernel_bias is None else layer.kernel_bias.decode()
    decay, skip = (matrix.decode(slice(0, space.heads))[:, 0] for matrix in (layer.decay, layer.skip))
    share, size = space.heads // space.groups, space.size
    out = np.empty((len(mixed), space.inner), np.float32)
    states = start_states(run, index, (space.heads, size, space.state), space.channels, kernels.shape[1])

    def follow(task: tuple[int, int]) -> None:
        """Run the heads of one group over one sequence."""
        number, group = task
        rows = slice(run.spans[number].start, run.spans[number].stop)
        heads = slice(group * share, (group + 1) * share)
        memory, earlier = states[number]

        def channels(first: int, width: int) -> Floats:
            return convolve(mixed[rows], earlier, kernels, bias, slice(first, first + width))

        writers = channels(space.inner + group * space.state, space.state)
        readers = channels(space.inner + (space.groups + group) * space.state, space.state)
        values = channels(group * share * size, share * size).reshape(-1, share, size).transpose(1, 0, 2)
        own = np.ascontiguousarray(steps[rows, heads].T)
        read = run_state_space(values, writers, readers, own, own * decay[heads, None], memory[heads])
        read += values * skip[heads, None, None]
        out[rows, group * share * size : (group + 1) * share * size] = read.transpose(1, 0, 2).reshape(-1, share * size)

    run.workers.map(follow, [(number, group) for number in range(len(run.spans)) for group in range(space.groups)])
    keep_states(run, index, states, mixed)
    return out


def _gate(run: Run, layer: Mamba2, space: StateSpace, read: Floats, gates: Floats) -> None:
    """Multiply ``read`` by activated gates and normalise the heads of each group together, in place."""
    width, weights = space.inner // space.groups, layer.group_norm.decode(slice(0, space.groups))

    def apply(rows: slice) -> None:
        gate = np.ascontiguousarray(gates[rows])
        silu(gate)
        read[rows] *= gate
        for group in range(space.groups):
            part = read[rows, group * width : (group + 1) * width]
            rms_norm(part, weights[group], None, run.configuration.epsilon, part)

    run.workers.map_rows(apply, len(read))
