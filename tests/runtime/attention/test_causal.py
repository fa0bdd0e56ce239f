"""Attention by tiles beside attention written out, in float64."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from qconv.runtime.attention.causal import attend

Floats = NDArray[np.float32]


def written_out(
    queries: Floats,
    keys: Floats,
    values: Floats,
    scale: float,
    cap: float | None,
    window: int | None,
    sinks: Floats | None = None,
    chunked: bool = False,
) -> NDArray[np.float64]:
    """The definition, one query at a time."""
    heads, count, _ = queries.shape
    before = keys.shape[1] - count
    out = np.zeros((count, heads, values.shape[2]))
    for head in range(heads):
        of = head // (heads // len(keys))
        for i in range(count):
            last = before + i + 1
            first = 0 if window is None else max(0, last - window)
            if window is not None and chunked:
                first = next(position for position in range(last) if position // window == (last - 1) // window)
            logits = keys[of, first:last].astype(np.float64) @ queries[head, i].astype(np.float64) * scale
            if cap is not None:
                logits = cap * np.tanh(logits / cap)
            weights = np.exp(logits - logits.max())
            total = weights.sum() + (0.0 if sinks is None else np.exp(float(sinks[head]) - logits.max()))
            out[i, head] = weights @ values[of, first:last].astype(np.float64) / total
    return out


def random_heads(heads: int, kv_heads: int, count: int, total: int, size: int = 8) -> tuple[Floats, Floats, Floats]:
    random = np.random.default_rng(count * 1000 + total)
    shapes = (heads, count, size), (kv_heads, total, size), (kv_heads, total, size)
    queries, keys, values = (random.standard_normal(shape, np.float32) for shape in shapes)
    return queries * np.float32(3), keys, values


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 2), (6, 1)])
@pytest.mark.parametrize(("count", "total"), [(1, 1), (1, 40), (37, 37), (20, 53), (64, 64)])
@pytest.mark.parametrize("window", [None, 1, 7, 200])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_tiles_give_what_the_definition_gives(
    heads: int, kv_heads: int, count: int, total: int, window: int | None, cap: float | None
) -> None:
    queries, keys, values = random_heads(heads, kv_heads, count, total)
    wanted = written_out(queries, keys, values, 0.35, cap, window)
    for query_tile, key_tile in ((128, 1024), (8, 8), (16, 5), (5, 16)):
        out = np.full((count, heads, 8), np.nan, np.float32)
        attend(queries, keys, values, out, scale=0.35, cap=cap, window=window, query_tile=query_tile, key_tile=key_tile)
        assert np.abs(out - wanted).max() < 2e-6


@pytest.mark.parametrize(("count", "total"), [(1, 1), (1, 40), (37, 37), (20, 53), (64, 64)])
@pytest.mark.parametrize("window", [1, 7, 16, 200])
def test_chunks_hide_what_lies_before_them(count: int, total: int, window: int) -> None:
    queries, keys, values = random_heads(4, 2, count, total)
    wanted = written_out(queries, keys, values, 0.35, None, window, chunked=True)
    for query_tile, key_tile in ((128, 1024), (8, 8), (16, 5), (5, 16)):
        out = np.full((count, 4, 8), np.nan, np.float32)
        attend(
            queries,
            keys,
            values,
            out,
            scale=0.35,
            window=window,
            chunked=True,
            query_tile=query_tile,
            key_tile=key_tile,
        )
        assert np.abs(out - wanted).max() < 2e-6


@pytest.mark.parametrize(("count", "total"), [(1, 40), (37, 37), (20, 53)])
def test_positions_that_are_not_chosen_are_hidden(count: int, total: int) -> None:
    queries, keys, values = random_heads(4, 2, count, total)
    chosen = np.random.default_rng(3).random((count, total)) < 0.2
    chosen[np.arange(count), total - count + np.arange(count)] = True  # itself
    wanted = np.zeros((count, 4, 8))
    for i in range(count):
        seen = np.flatnonzero(chosen[i, : total - count + i + 1])
        single = written_out(queries[:, i : i + 1], keys[:, seen], values[:, seen], 0.35, None, None)
        wanted[i] = single[0]
    for query_tile, key_tile in ((128, 1024), (8, 8), (5, 16)):
        out = np.full((count, 4, 8), np.nan, np.float32)
        attend(queries, keys, values, out, scale=0.35, chosen=chosen, query_tile=query_tile, key_tile=key_tile)
        assert np.abs(out - wanted).max() < 2e-6


@pytest.mark.parametrize("window", [None, 3])
def test_sinks_take_their_share_and_give_nothing(window: int | None) -> None:
    queries, keys, values = random_heads(4, 2, 37, 50)
    sinks = np.array([-30.0, 0.0, 4.0, 40.0], np.float32)
    wanted = written_out(queries, keys, values, 0.35, None, window, sinks)
    assert np.abs(wanted[:, 3]).max() < 1e-5 < np.abs(wanted[:, 2]).max()
    for query_tile, key_tile in ((128, 1024), (8, 8), (16, 5)):
        out = np.empty((37, 4, 8), np.float32)
        attend(
            queries, keys, values, out, scale=0.35, window=window, sinks=sinks, query_tile=query_tile, key_tile=key_tile
        )
        assert np.abs(out - wanted).max() < 2e-6


def test_values_may_be_narrower_than_keys() -> None:
    queries, keys, values = random_heads(4, 1, 20, 30)
    out = np.empty((20, 4, 3), np.float32)
    attend(queries, keys, values[:, :, 5:], out, scale=0.35, query_tile=8, key_tile=8)
    assert np.abs(out - written_out(queries, keys, values[:, :, 5:], 0.35, None, None)).max() < 2e-6


def test_logits_far_apart_between_tiles_are_exact() -> None:
    """A late key that outweighs everything before it, and one that does not, pass through the running maximum."""
    queries, keys, values = random_heads(1, 1, 64, 64)
    keys[0, 40] *= 40
    keys[0, 10] *= -40
    out = np.empty((64, 1, 8), np.float32)
    attend(queries, keys, values, out, scale=1.0, query_tile=8, key_tile=8)
    assert np.abs(out - written_out(queries, keys, values, 1.0, None, None)).max() < 1e-5


def test_strided_views_are_read_and_written_in_place() -> None:
    queries, keys, values = random_heads(4, 2, 30, 30)
    wide = np.ascontiguousarray(values.transpose(1, 0, 2))
    out = np.zeros((30, 6, 8), np.float32)
    attend(queries, keys, wide.transpose(1, 0, 2), out[:, 1:5], scale=0.35)
    assert np.abs(out[:, 1:5] - written_out(queries, keys, values, 0.35, None, None)).max() < 2e-6
    assert not out[:, 0].any()
    assert not out[:, 5].any()


def test_memory_is_linear_in_the_context() -> None:
    """Whole logits of 16,384 positions would be 1 GiB."""
    queries, keys, values = random_heads(1, 1, 1 << 14, 1 << 14, size=4)
    out = np.empty((1 << 14, 1, 4), np.float32)
    tracemalloc.start()
    try:
        attend(queries, keys, values, out, scale=0.5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.isfinite(out).all()
    assert peak < 8 << 20
