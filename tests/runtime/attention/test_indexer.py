"""Sparse attention: the positions that an indexer chooses, and what follows from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_networks import logits, network, tokens

from qconv.errors import ModelError
from qconv.runtime.attention.indexer import best_positions, chosen_among
from qconv.runtime.building.layers import LatentAttention
from qconv.runtime.cache import FloatCache, make_cache
from qconv.runtime.stages import embed_batch, network_stages, run_stage
from qconv.runtime.workers import Workers

FAMILIES = pytest.mark.parametrize("family", ["deepseek32", "glm-dsa"])
LATENT = {"kv_lora_rank": 32, "index_head_dim": 28}  # 64 numbers to cache of each position


@pytest.mark.parametrize(("count", "first"), [(1, 0), (1, 30), (40, 0), (9, 22)])
@pytest.mark.parametrize("top", [1, 7, 40, 100])
def test_the_best_of_what_a_position_may_see(count: int, first: int, top: int) -> None:
    """Scores of few values, so that many are equal: the earlier ones come first."""
    scores = np.random.default_rng(top).integers(-2, 3, (count, first + count)).astype(np.float32)
    found = best_positions(scores.copy(), first, top)
    for row, chosen in enumerate(found):
        order = sorted(range(first + row + 1), key=lambda position: (-scores[row, position], position))
        assert set(np.flatnonzero(chosen)) == set(order[:top])
    bits = np.packbits(found, axis=1)
    assert np.array_equal(chosen_among(bits, slice(0, count), first + count), found)


@FAMILIES
def test_a_choice_shows_once_there_is_one(family: str) -> None:
    text = tokens(24)
    (whole,) = logits(network(family, index_topk=24), text)
    (sparse,) = logits(network(family, index_topk=7), text)
    assert np.array_equal(sparse[:7], whole[:7])
    assert np.abs(sparse[8:] - whole[8:]).max() > 1e-3


def test_blocks_without_an_indexer_take_the_choice_of_the_one_before() -> None:
    found = network("glm-dsa")
    layers = [block.attention for block in found.blocks]
    assert all(isinstance(layer, LatentAttention) for layer in layers)
    assert [layer.indexer is None for layer in layers if isinstance(layer, LatentAttention)] == [False, True, False]


@FAMILIES
def test_choices_continue_from_a_cache(family: str) -> None:
    found, texts = network(family, index_topk=5), (tokens(22, 1), tokens(17, 2))
    cache = FloatCache(found.configuration, (22, 17))
    steps = [logits(found, texts[0][:9], texts[1][:4], cache=cache)]
    steps.append(logits(found, texts[0][9:10], texts[1][4:16], cache=cache))
    steps.append(logits(found, texts[0][10:], texts[1][16:], cache=cache))
    for number, whole in enumerate(logits(found, *texts)):
        assert np.abs(np.concatenate([step[number] for step in steps]) - whole).max() < 1e-5


@FAMILIES
def test_choices_from_a_cache_in_blocks(family: str) -> None:
    found, text = network(family, **LATENT, index_topk=12), tokens(22)
    (exact,) = logits(found, text)
    (rounded,) = logits(found, text, cache=make_cache(found.configuration, (22,), "Q8_0"))
    assert np.abs(rounded[:12] - exact[:12]).max() < 0.05 * np.abs(exact).max()


@FAMILIES
def test_threads_change_nothing(family: str) -> None:
    found, texts = network(family, index_topk=5), (tokens(30, 1), tokens(3, 2))
    for one, other in zip(logits(found, *texts, threads=1), logits(found, *texts, threads=5), strict=True):
        assert np.array_equal(one, other)


def test_a_block_by_itself_does_not_know_what_another_chose() -> None:
    found, sequences = network("glm-dsa", index_topk=5), [tokens(9)]
    attention = [stage for stage in network_stages(found) if stage.part == "attention"]
    with Workers(1) as workers:
        hidden = embed_batch(found, sequences, workers)
        run_stage(found, attention[0], hidden, [9], workers)
        with pytest.raises(ModelError, match=r"block 1 attends to the 5 positions .* at most 5 tokens"):
            run_stage(found, attention[1], hidden, [9], workers)
        short = embed_batch(found, [tokens(5)], workers)
        for stage in attention:
            run_stage(found, stage, short, [5], workers)


@pytest.mark.parametrize("sizes", [{"index_head_dim": 3}, {"index_head_dim": 2}])
def test_an_indexer_that_cannot_be_is_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="an indexer of 8 heads"):
        network("deepseek32", **sizes)
