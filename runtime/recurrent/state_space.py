"""The recurrence of Mamba-2: a memory per head that forgets at its own pace and takes up every position.

``S ← exp(a) S + Δ x Bᵀ``; the position reads ``S C``. (Dao and Gu, "Transformers are SSMs", arXiv:2405.21060, section 6.) Positions are taken in
chunks: within one, what they give each other is a masked product; the memory itself is touched once per chunk.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["decays", "run_state_space"]

Floats = NDArray[np.float32]

_CHUNK = 64


def run_state_space(
    values: Floats,
    writers: Floats,
    readers: Floats,
    steps: Floats,
    decay: Floats,
    memory: Floats,
    *,
    chunk: int = _CHUNK,
) -> Floats:
    """Return float32 (heads, n, size): what each of n positions reads; ``memory`` becomes what it is behind the last one.

    Args:
        values: float32 (heads, n, size): x.
        writers: float32 (n, state): B, which the heads share.
        readers: float32 (n, state): C, which they share too.
        steps: float32 (heads, n): Δ.
        decay: float32 (heads, n): a, logarithms of what the memory is multiplied by before each position.
        memory: float32 (heads, size, state).
        chunk: positions that are taken together.
    """
    out = np.empty(values.shape, np.float32)
    for start in range(0, values.shape[1], chunk):
        part = slice(start, start + chunk)
        between, since_start, until_end = decays(decay[:, part])
        taken = values[:, part] * steps[:, part, None]
        seen = np.matmul(readers[part], writers[part].T) * between
        out[:, part] = np.matmul(seen, taken)
        out[:, part] += np.matmul(readers[part] * since_start, memory.swapaxes(1, 2))
        memory *= since_start[:, -1:]
        memory += np.matmul((taken * until_end).swapaxes(1, 2), writers[part])
    return out


def decays(decay: Floats) -> tuple[Floats, Floats, Floats]:
    """Return what is left, for logarithms of decay (heads, n): at each position of each before it (heads, n, n), 0 of later ones; of the first memory; and of each position at the end.

    The last two are float32 (heads, n, 1).
    """
    count = decay.shape[1]
    kept = np.cumsum(decay, axis=1, dtype=np.float64)  # differences of large sums follow
    between = (kept[:, :, None] - kept[:, None, :]).astype(np.float32)
    between[:, np.triu(np.ones((count, count), bool), 1)] = -np.inf
    np.exp(between, out=between)
    since_start, until_end = (np.exp(it)[:, :, None].astype(np.float32) for it in (kept, kept[:, -1:] - kept))
    return between, since_start, until_end
