"""Sparse attention by pools of neighbouring positions (GLM-5-Next): an indexer chooses among whole pools; positions behind the last of them are always seen.

The key of a pool is a mean of the keys of its positions, in which each has a weight of its own in every dimension. A position sees whole pools that end
with it or before, the best of them, and the positions behind the last whole pool, itself included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..building.configuration import Sparse
from ..elementwise import softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["is_choice", "pool_keys", "pooled_positions"]


def is_choice(positions: int, sparse: Sparse) -> bool:
    """Whether there are more whole pools among so many positions than are chosen."""
    return positions // sparse.pool > sparse.top // sparse.pool


def pool_keys(cached: Floats, place_gate: Floats, sparse: Sparse) -> Floats:
    """Return float32 (pools, size): the keys of all whole pools.

    Args:
        cached: float32 (positions, 2 * size): keys of positions, and what they weigh.
        place_gate: float32 (pool, size): added to the latter, for each place in a pool.
        sparse: sizes of the indexer.
    """
    count = len(cached) // sparse.pool
    pools = cached[: count * sparse.pool].reshape(count, sparse.pool, cached.shape[1])
    weights = np.ascontiguousarray((pools[..., sparse.size :] + place_gate).swapaxes(1, 2))
    softmax(weights)
    found: Floats = np.einsum("cps,csp->cs", pools[..., : sparse.size], weights)
    return found


def pooled_positions(chosen: NDArray[np.bool_], first: int, total: int, pool: int) -> NDArray[np.bool_]:
    """Return bool (n, total): which positions n new ones from ``first`` see, whose pools are ``chosen``, bool (n, pools)."""
    found = np.zeros((len(chosen), total), bool)
    whole = np.repeat(chosen, pool, axis=1)
    found[:, : whole.shape[1]] = whole
    own = first + np.arange(len(chosen))[:, None]
    positions = np.arange(total)
    found |= (positions >= (own + 1) // pool * pool) & (positions <= own)
    return found
