"""Causal attention by tiles: memory is linear in the context.

Queries are taken in tiles, and for each tile the keys in tiles; a running maximum and a running sum per query make the softmax exact although no
row of it is ever whole (Milakov and Gimelshein, arXiv:1805.02867; Rabe and Staats, arXiv:2112.05682).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..elementwise import soft_cap

__all__ = ["attend"]

Floats = NDArray[np.float32]

_QUERY_TILE = 128
_KEY_TILE = 1024
_NO_MAXIMUM = np.float32(-1e30)  # finite, so that a row that a tile hides as a whole gives exp(-inf) = 0 and not NaN


def attend(
    queries: Floats,
    keys: Floats,
    values: Floats,
    out: Floats,
    *,
    scale: float,
    cap: float | None = None,
    window: int | None = None,
    chunked: bool = False,
    chosen: NDArray[np.bool_] | None = None,
    sinks: Floats | None = None,
    query_tile: int = _QUERY_TILE,
    key_tile: int = _KEY_TILE,
) -> None:
    """Fill ``out`` (n, heads, value size) with the attention of the last n of m positions to all before them and to themselves.

    Args:
        queries: float32 (heads, n, size).
        keys: float32 (kv heads, m, size), m >= n; each serves ``heads // kv heads`` consecutive query heads.
        values: float32 (kv heads, m, value size), any strides with contiguous rows.
        scale: logits are multiplied by it.
        cap: logits x become ``cap * tanh(x / cap)``; None: no cap.
        window: how many positions are seen, the query's own included; None: all.
        chunked: whether those are seen that are in the query's own chunk of ``window`` positions instead.
        chosen: bool (n, m): which of the positions that could be seen are; None: all. Each query must see one.
        sinks: float32 (heads,): the logit of one more position per head, which takes its share and gives nothing; None: there is none.
        query_tile: positions of a tile of queries.
        key_tile: positions of a tile of keys.
    """
    heads, count, _ = queries.shape
    kv_heads, total, _ = keys.shape
    group = heads // kv_heads
    before = total - count
    for start in range(0, count, query_tile):
        stop = min(start + query_tile, count)
        first = _first_seen(before + start, window, chunked)
        tiles = [(low, min(low + key_tile, before + stop)) for low in range(first, before + stop, key_tile)]
        hidden = [_hidden(before + start, before + stop, low, high, window, chunked) for low, high in tiles]
        if chosen is not None:
            hidden = [
                ~chosen[start:stop, low:high] | (False if mask is None else mask)
                for (low, high), mask in zip(tiles, hidden, strict=True)
            ]
        for kv_head in range(kv_heads):
            served = slice(kv_head * group, (kv_head + 1) * group)
            tile = np.multiply(queries[served, start:stop], np.float32(scale))
            result = _attend_tile(
                tile, keys[kv_head], values[kv_head], tiles, hidden, cap, None if sinks is None else sinks[served]
            )
            out[start:stop, served] = result.transpose(1, 0, 2)


def _first_seen(position: int, window: int | None, chunked: bool) -> int:
    if window is None:
        return 0
    return position // window * window if chunked else max(0, position - window + 1)


def _hidden(start: int, stop: int, low: int, high: int, window: int | None, chunked: bool) -> NDArray[np.bool_] | None:
    """Return bool (queries, keys): what queries at positions start to stop must not see of keys low to high; None: they see all."""
    if high - 1 <= start and _first_seen(stop - 1, window, chunked) <= low:
        return None
    queries, keys = np.arange(start, stop)[:, None], np.arange(low, high)
    later = keys > queries
    if window is None:
        return later
    return later | (keys // window < queries // window if chunked else queries - keys >= window)


def _attend_tile(
    queries: Floats,
    keys: Floats,
    values: Floats,
    tiles: list[tuple[int, int]],
    hidden: list[NDArray[np.bool_] | None],
    cap: float | None,
    sinks: Floats | None,
) -> Floats:
    """Return float32 (group, n, value size): the attention of one tile of scaled queries (group, n, size) to the tiles of keys (m, size)."""
    group, count, size = queries.shape
    maximum = np.full((group * count, 1), _NO_MAXIMUM)
    total = np.zeros((group * count, 1), np.float32)
    if sinks is not None:
        maximum[:, 0] = np.repeat(sinks, count)
        total += np.float32(1.0)
    result = np.zeros((group * count, values.shape[1]), np.float32)
    for (low, high), mask in zip(tiles, hidden, strict=True):
        logits = queries.reshape(group * count, size) @ keys[low:high].T
        if cap is not None:
            soft_cap(logits, cap)
        if mask is not None:
            np.copyto(logits.reshape(group, count, high - low), np.float32(-np.inf), where=mask)
        higher = np.maximum(maximum, logits.max(axis=1, keepdims=True))
        logits -= higher
        weights = np.exp(logits, out=logits)
        shrink = np.exp(maximum - higher)
        total *= shrink
        total += weights.sum(axis=1, keepdims=True)
        result *= shrink
        result += weights @ values[low:high]
        maximum = higher
    result /= total
    return result.reshape(group, count, -1)
