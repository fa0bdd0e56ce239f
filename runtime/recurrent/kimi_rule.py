"""The delta rule of Kimi Linear: a memory per head whose every dimension forgets at its own pace, and that each position corrects.

``S ← diag(exp(g)) S``, then ``S ← S + k (β (v − Sᵀ k))ᵀ``; the position reads ``Sᵀ q``. (Kimi Team, "Kimi Linear", arXiv:2510.26692, section 3.)
Positions are taken in chunks, as in :mod:`.delta_rule`. What is left of a position at a later one differs from dimension to dimension, so chunks are short:
the products within one have a number for each pair of positions and each dimension.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .delta_rule import run_in_chunks

__all__ = ["run_kimi_rule"]

Floats = NDArray[np.float32]

_CHUNK = 16


def run_kimi_rule(
    queries: Floats, keys: Floats, values: Floats, decay: Floats, rates: Floats, memory: Floats, *, chunk: int = _CHUNK
) -> Floats:
    """Return float32 (heads, n, value size): what each of n positions reads; ``memory`` becomes what it is behind the last one.

    Args:
        queries: float32 (heads, n, key size), scaled.
        keys: the same, each of length 1.
        values: float32 (heads, n, value size).
        decay: float32 (heads, n, key size): logarithms of what each dimension of the memory is multiplied by before each position.
        rates: float32 (heads, n): how much of what was not predicted is corrected, 0 to 1.
        memory: float32 (heads, key size, value size).
        chunk: positions that are taken together.
    """
    return run_in_chunks(_run_chunk, chunk, memory, queries, keys, values, decay, rates)


def _run_chunk(queries: Floats, keys: Floats, values: Floats, decay: Floats, rates: Floats, memory: Floats) -> Floats:
    kept = np.cumsum(decay, axis=1, dtype=np.float64)  # differences of large sums follow
    since_start, until_end = (np.exp(it).astype(np.float32) for it in (kept, kept[:, -1:] - kept))
    left = _left_of_keys(kept, keys)

    system = np.matmul(left, keys[..., None])[..., 0]
    system *= rates
    diagonal = np.arange(values.shape[1])
    system[:, diagonal, diagonal] = 1.0
    unpredicted = values - np.matmul(keys * since_start, memory)
    unpredicted *= rates
    corrections = np.linalg.solve(system, unpredicted)

    out: Floats = np.matmul(queries * since_start, memory)
    out += np.matmul(np.matmul(left, queries[..., None])[..., 0], corrections)
    memory *= since_start[:, -1, :, None]
    memory += np.matmul((keys * until_end).swapaxes(1, 2), corrections)
    return out


def _left_of_keys(kept: NDArray[np.float64], keys: Floats) -> Floats:
    """Return float32 (heads, n, n, size): what is left, at each position, of the keys of those up to it; 0 of later ones."""
    left = (kept[:, :, None] - kept[:, None, :]).astype(np.float32)
    left[:, np.triu(np.ones((kept.shape[1],) * 2, bool), 1)] = -np.inf
    np.exp(left, out=left)
    left *= keys[:, None]
    return left
