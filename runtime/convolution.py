"""The short causal convolutions of recurrent layers: one kernel per channel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .elementwise import silu

__all__ = ["convolve", "last_inputs"]

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


def last_inputs(inputs: Floats, earlier: Floats) -> Floats:
    """Return what is ``earlier`` for the positions behind ``inputs``."""
    known = np.concatenate([earlier, inputs])
    return known[len(known) - len(earlier) :]
