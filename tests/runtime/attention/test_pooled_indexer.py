"""Sparse attention by pools: keys of pools, the positions that are seen, and what follows from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_networks import in_memory, logits, network, tokens

from qconv.errors import ModelError
from qconv.formats.metadata import boolean, float32
from qconv.runtime.attention.indexer import best_positions
from qconv.runtime.attention.pooled_indexer import is_choice, pool_keys, pooled_positions
from qconv.runtime.building.configuration import Sparse
from qconv.runtime.building.network import load_network
from qconv.runtime.cache import FloatCache, make_cache

SPARSE = Sparse(2, 5, 8, None, 4)
SMALL = {"index_topk": 4, "index_kpool": 2}


def test_the_key_of_a_pool_is_a_weighted_mean() -> None:
    rng = np.random.default_rng(0)
    cached = rng.standard_normal((11, 10)).astype(np.float32)
    places = rng.standard_normal((4, 5)).astype(np.float32)
    found = pool_keys(cached, places, SPARSE)
    assert found.shape == (2, 5)
    for pool in range(2):
        for column in range(5):
            weights = np.exp([cached[4 * pool + it, 5 + column] + places[it, column] for it in range(4)])
            keys = cached[4 * pool : 4 * pool + 4, column]
            assert found[pool, column] == pytest.approx((weights * keys).sum() / weights.sum(), abs=1e-5)
    assert pool_keys(cached[:3], places, SPARSE).shape == (0, 5)


def test_there_is_a_choice_once_there_is_a_pool_too_many() -> None:
    assert [is_choice(count, SPARSE) for count in (8, 11, 12, 13)] == [False, False, True, True]


@pytest.mark.parametrize(("count", "first"), [(1, 0), (1, 29), (30, 0), (9, 21)])
@pytest.mark.parametrize("top", [1, 3, 20])
def test_what_a_position_sees(count: int, first: int, top: int) -> None:
    pool = 3
    total = first + count
    scores = np.random.default_rng(top).standard_normal((count, total // pool)).astype(np.float32)
    chosen = best_positions(scores.copy(), first, top, pool)
    found = pooled_positions(chosen, first, total, pool)
    for row, seen in enumerate(found):
        own = first + row
        whole = (own + 1) // pool
        order = sorted(range(whole), key=lambda it: -scores[row, it])[:top]
        wanted = {pool * it + place for it in order for place in range(pool)} | set(range(whole * pool, own + 1))
        assert set(np.flatnonzero(seen)) == wanted


def test_a_choice_shows_once_there_is_one() -> None:
    text = tokens(24)
    (whole,) = logits(network("glm5-next", index_topk=24), text)
    (sparse,) = logits(network("glm5-next", index_topk=8), text)
    assert np.abs(sparse[:11] - whole[:11]).max() < 1e-5
    assert np.abs(sparse[12:] - whole[12:]).max() > 1e-3


def test_choices_continue_from_a_cache() -> None:
    found, texts = network("glm5-next", **SMALL), (tokens(22, 1), tokens(17, 2))
    cache = FloatCache(found.configuration, (22, 17))
    steps = [logits(found, texts[0][:9], texts[1][:4], cache=cache)]
    steps.append(logits(found, texts[0][9:10], texts[1][4:16], cache=cache))
    steps.append(logits(found, texts[0][10:], texts[1][16:], cache=cache))
    for number, whole in enumerate(logits(found, *texts)):
        assert np.abs(np.concatenate([step[number] for step in steps]) - whole).max() < 1e-5


def test_choices_from_a_cache_in_blocks() -> None:
    found = network("glm5-next", **SMALL, kv_lora_rank=32, index_head_dim=16)
    text = tokens(22)
    (exact,) = logits(found, text)
    (rounded,) = logits(found, text, cache=make_cache(found.configuration, (22,), "Q8_0"))
    assert np.abs(rounded[:5] - exact[:5]).max() < 0.05 * np.abs(exact).max()


def test_threads_change_nothing() -> None:
    found, texts = network("glm5-next", **SMALL), (tokens(30, 1), tokens(3, 2))
    for one, other in zip(logits(found, *texts, threads=1), logits(found, *texts, threads=5), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("attention.indexer.kpool_select_tail", boolean(False), "lets the first ones see nothing"),
        ("kda.gate_lower_bound", float32(0.5), "forget down to the exponential of 0.5"),
    ],
)
def test_what_cannot_run_is_refused(key: str, value: Any, words: str) -> None:
    model = in_memory("glm5-next", Path("tiny"))
    assert f"glm5-next.{key}" in model.metadata
    with pytest.raises(ModelError, match=words):
        load_network(replace(model, metadata={**model.metadata, f"glm5-next.{key}": value}))
