"""The gated delta rule: a memory per head that forgets, and that each position corrects by what it failed to predict.

``S ← exp(g) S``, then ``S ← S + k (β (v − Sᵀ k))ᵀ``; the position reads ``Sᵀ q``. (Yang, Kautz and Hatamizadeh, "Gated Delta Networks", arXiv:2412.06464.)
Positions are taken in chunks: within one, what each fails to predict follows from a triangular system, so that all of it is matrix products; the
memory itself is touched once per chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .state_space import decays

__all__ = ["run_delta_rule", "run_in_chunks"]

Floats = NDArray[np.float32]

_CHUNK = 64


def run_delta_rule(
    queries: Floats, keys: Floats, values: Floats, decay: Floats, rates: Floats, memory: Floats, *, chunk: int = _CHUNK
) -> Floats:
    """Return float32 (heads, n, value size): what each of n positions reads; ``memory`` becomes what it is behind the last one.

    Args:
        queries: float32 (heads, n, key size), scaled.
        keys: the same, each of length 1.
        values: float32 (heads, n, value size).
        decay: float32 (heads, n): logarithms of what the memory is multiplied by before each position.
        rates: float32 (heads, n): how much of what was not predicted is corrected, 0 to 1.
        memory: float32 (heads, key size, value size).
        chunk: positions that are taken together.
    """
    return run_in_chunks(_run_chunk, chunk, memory, queries, keys, values, decay, rates)


def run_in_chunks(
    run_chunk: Callable[[Floats, Floats, Floats, Floats, Floats, Floats], Floats],
    chunk: int,
    memory: Floats,
    queries: Floats,
    keys: Floats,
    values: Floats,
    decay: Floats,
    rates: Floats,
) -> Floats:
    """Return float32 (heads, n, value size): what ``run_chunk`` finds for ``chunk`` positions at a time, carrying ``memory`` along.

    It is given what the rule is given of these positions, rates as (heads, positions, 1), and the memory, which it changes.
    """
    out = np.empty(values.shape, np.float32)
    for start in range(0, values.shape[1], chunk):
        part = slice(start, start + chunk)
        out[:, part] = run_chunk(
            queries[:, part], keys[:, part], values[:, part], decay[:, part], rates[:, part, None], memory
        )
    return out


def _run_chunk(queries: Floats, keys: Floats, values: Floats, decay: Floats, rates: Floats, memory: Floats) -> Floats:
    between, since_start, until_end = decays(decay)
    transposed = keys.swapaxes(1, 2)
    system = np.matmul(keys, transposed)
    system *= between
    system *= rates
    diagonal = np.arange(values.shape[1])
    system[:, diagonal, diagonal] = 1.0
    unpredicted = values - np.matmul(keys * since_start, memory)
    unpredicted *= rates
    corrections = np.linalg.solve(system, unpredicted)

    seen = np.matmul(queries, transposed)
    seen *= between
    out: Floats = np.matmul(queries * since_start, memory)
    out += np.matmul(seen, corrections)
    memory *= since_start[:, -1:]
    memory += np.matmul((keys * until_end).swapaxes(1, 2), corrections)
    return out
