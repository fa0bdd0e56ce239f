"""The short causal convolutions of recurrent layers, one kernel per channel, and what such layers know of earlier positions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..elementwise import silu
from ..run import Run

__all__ = ["convolve", "keep_states", "start_states"]

Floats = NDArray[np.float32]


def convolve(inputs: Floats, earlier: Floats, kernels: Floats, bias: Floats | None, channels: slice) -> Floats:
    """Return float32 (n, width): some channels of ``inputs``, each convolved with its own kernel and put through silu.

    Args:
        inputs: float32 (n, channels).
        earlier: float32 (length - 1, channels): the inputs before them, zeros at the beginning.
        kernels: float32 (channels, length); the last number of a kernel meets the position itself.
        bias: float32 (channels,), added before the activation; None: nothing.
        channels: which.
    """
    known = np.concatenate([earlier[:, channels], inputs[:, channels]])
    weights = np.ascontiguousarray(kernels[channels].T)
    count, before = len(inputs), len(earlier)
    out: Floats = known[before:] * weights[before]
    for back in range(before):
        out += known[back : back + count] * weights[back]
    if bias is not None:
        out += bias[channels]
    silu(out)
    return out


def start_states(
    run: Run, index: int, memory: tuple[int, ...], channels: int, length: int
) -> list[tuple[Floats, Floats]]:
    """Return for each sequence the memory of block ``index``, to be written to, and the last inputs of its convolution, (length - 1, channels).

    Zeros of these sizes where the sequence begins.
    """
    found = []
    for number in range(len(run.spans)):
        known = None if run.cache is None else run.cache.places.recall(index, number)
        if known is None:
            found.append((np.zeros(memory, np.float32), np.zeros((length - 1, channels), np.float32)))
        else:
            found.append((known[0].copy(), known[1]))
    return found


def keep_states(run: Run, index: int, states: list[tuple[Floats, Floats]], inputs: Floats) -> None:
    """Hold in the cache, where there is one, what block ``index`` knows behind ``inputs`` (rows, channels) of its convolution."""
    if run.cache is not None:
        for number, (span, (memory, earlier)) in enumerate(zip(run.spans, states, strict=True)):
            run.cache.places.remember(index, number, (memory, _last_inputs(inputs[span.start : span.stop], earlier)))


def _last_inputs(inputs: Floats, earlier: Floats) -> Floats:
    """Return what is ``earlier`` for the positions behind ``inputs``."""
    known = np.concatenate([earlier, inputs])
    return known[len(known) - len(earlier) :]
