"""Caches of keys and values: what they hold, what blocks lose, what they refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray
from tiny_networks import logits, network, tokens

from qconv.errors import ModelError, UsageError
from qconv.runtime import cache as cache_module
from qconv.runtime.building.configuration import Configuration
from qconv.runtime.building.network import Network
from qconv.runtime.cache import CACHE_TYPES, Cache, make_cache
from qconv.runtime.workers import Workers

HEADS = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}


@pytest.fixture(scope="module")
def llama() -> Network:
    """A tiny model whose heads are one block wide."""
    found = network("llama", **HEADS)
    assert found.configuration.head_size == 32
    return found


def filled(configuration: Configuration, kind: str, count: int) -> tuple[Cache, NDArray[np.float32]]:
    """A cache of one sequence that has been given random keys and values, and those."""
    cache = make_cache(configuration, (count,), kind)
    shape = (2, configuration.kv_heads, count, configuration.head_size)
    given = np.random.default_rng(5).standard_normal(shape, np.float32)
    return cache, given


@pytest.mark.parametrize("kind", CACHE_TYPES)
def test_what_attention_sees_is_what_the_blocks_hold(llama: Network, kind: str) -> None:
    cache, given = filled(llama.configuration, kind, 9)
    for layer in range(llama.configuration.layers):
        cache.extend(layer, 0, given[0, :, :4], given[1, :, :4])
    cache.places.advance(0, 4)
    for layer in range(llama.configuration.layers):
        seen = np.array(cache.extend(layer, 0, given[0, :, 4:] + layer, given[1, :, 4:] - layer))
        wanted = given.copy()
        wanted[0, :, 4:] += layer
        wanted[1, :, 4:] -= layer
        if kind == "F32":
            assert np.array_equal(seen, wanted)
            continue
        bound = {"Q8_0": 0.505 / 127, "Q4_0": 1.05 / 8}[kind] * np.abs(wanted).max(axis=-1, keepdims=True)
        assert (np.abs(seen - wanted) <= bound).all()
        again = quants.quantize(wanted, GGMLQuantizationType[kind])
        theirs = quants.dequantize(again, GGMLQuantizationType[kind])
        assert np.square(seen - wanted).sum() <= 1.001 * np.square(theirs - wanted).sum()


@pytest.mark.parametrize("kind", CACHE_TYPES)
@pytest.mark.parametrize("numbers", [1, 5 * 32, 1 << 17])
def test_sharing_the_work_changes_nothing(
    llama: Network, kind: str, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, given = filled(llama.configuration, kind, 23)
    shared, _ = filled(llama.configuration, kind, 23)
    monkeypatch.setattr(cache_module, "_TASK_NUMBERS", numbers)
    with Workers(3) as workers:
        for start, stop in ((0, 7), (7, 8), (8, 23)):
            new = given[:, :, start:stop]
            for layer in range(llama.configuration.layers):
                one = np.array(alone.extend(layer, 0, new[0] + layer, new[1]))
                other = np.array(shared.extend(layer, 0, new[0] + layer, new[1], workers))
                assert one.shape[2] == stop
                assert np.array_equal(one, other)
            alone.places.advance(0, stop - start)
            shared.places.advance(0, stop - start)


@pytest.mark.parametrize("kind", CACHE_TYPES)
def test_steps_give_what_one_pass_gives(llama: Network, kind: str) -> None:
    text = tokens(20, 3)
    (whole,) = logits(llama, text, cache=make_cache(llama.configuration, (20,), kind))
    cache = make_cache(llama.configuration, (20,), kind)
    parts = [logits(llama, text[start:stop], cache=cache)[0] for start, stop in ((0, 7), (7, 8), (8, 20))]
    assert np.abs(np.concatenate(parts) - whole).max() < 2e-5 * np.abs(whole).max()


@pytest.mark.parametrize("kind", CACHE_TYPES)
def test_layers_of_different_heads_that_lend_their_keys(kind: str) -> None:
    sizes = {**HEADS, "global_head_dim": 64, "sliding_window": 6}
    found = network("gemma4", **sizes)
    configuration = found.configuration
    assert [configuration.layer_head_size(layer) for layer in range(4)] == [32, 64, 32, 64]
    assert [configuration.keys_from(layer) for layer in range(4)] == [0, 1, 0, 1]
    text = tokens(20, 3)
    (alone,) = logits(found, text)
    (whole,) = logits(found, text, cache=make_cache(configuration, (20,), kind))
    lost = np.sqrt(np.square(whole - alone).mean() / np.square(alone).mean())
    assert lost < {"F32": 1e-6, "Q8_0": 0.1, "Q4_0": 0.5}[kind]
    cache = make_cache(configuration, (20, 20), kind)
    parts = [
        logits(found, text[start:stop], text[start:stop], cache=cache) for start, stop in ((0, 7), (7, 8), (8, 20))
    ]
    for number in range(2):
        steps = np.concatenate([part[number] for part in parts])
        assert np.abs(steps - whole).max() < 2e-5 * np.abs(whole).max()


def test_fewer_bits_lose_more(llama: Network) -> None:
    text = tokens(24, 1)
    (exact,) = logits(llama, text)
    lost = {}
    for kind in CACHE_TYPES:
        (found,) = logits(llama, text, cache=make_cache(llama.configuration, (24,), kind))
        lost[kind] = float(np.sqrt(np.square(found - exact).mean() / np.square(exact).mean()))
    print(lost)
    assert lost["F32"] < 1e-6
    assert 1e-5 < lost["Q8_0"] < 0.2 * lost["Q4_0"]
    assert lost["Q4_0"] < 0.3


@pytest.mark.parametrize("kind", CACHE_TYPES)
def test_what_is_cut_off_leaves_no_trace(llama: Network, kind: str) -> None:
    text = tokens(16, 2)
    (wanted,) = logits(llama, text, cache=make_cache(llama.configuration, (16,), kind))
    cache = make_cache(llama.configuration, (16,), kind)
    logits(llama, text[:6] + tokens(8, 9), cache=cache)
    cache.places.truncate(0, 6)
    assert (cache.places.lengths[0], cache.places.capacities[0]) == (6, 16)
    (found,) = logits(llama, text[6:], cache=cache)
    assert np.abs(found - wanted[6:]).max() < 2e-5 * np.abs(wanted).max()
    with pytest.raises(UsageError, match="16 positions cannot be cut to 17"):
        cache.places.truncate(0, 17)


@pytest.mark.parametrize("kind", CACHE_TYPES)
def test_what_does_not_fit(llama: Network, kind: str) -> None:
    with pytest.raises(UsageError, match="6 positions do not fit a key-value cache of 5"):
        logits(llama, tokens(6), cache=make_cache(llama.configuration, (5,), kind))


def test_heads_that_are_no_whole_blocks() -> None:
    configuration = network("llama").configuration
    assert configuration.head_size % 32
    with pytest.raises(UsageError, match=r"no whole number of blocks of 32.*--cache-type f32"):
        make_cache(configuration, (4,), "Q8_0")
    with pytest.raises(UsageError, match=r"no key-value cache of type Q5_1\. Choose from F32, Q8_0, Q4_0"):
        make_cache(configuration, (4,), "Q5_1")


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e9])
def test_keys_that_no_block_can_hold(llama: Network, value: float) -> None:
    cache, given = filled(llama.configuration, "Q4_0", 4)
    given[1, 1, 2, 3] = value
    with pytest.raises(ModelError, match=r"block 1 gives a value that Q4_0 cannot hold.*0 to 3"):
        cache.extend(1, 0, given[0], given[1])


def test_keys_are_rotated_for_the_context_that_they_are_held_for() -> None:
    """longrope has other factors for long contexts, and a key in the cache cannot change them later."""
    plain = network("llama", **HEADS)
    rope = plain.configuration.rope
    assert rope is not None
    pairs = rope.dimensions // 2
    found = replace(
        plain,
        configuration=replace(plain.configuration, rope=replace(rope, original_context=8)),
        short_divisors=np.ones(pairs, np.float32),
        long_divisors=np.linspace(1, 4, pairs, dtype=np.float32),
    )
    text = tokens(11, 4)
    (whole,) = logits(found, text)
    cache = make_cache(found.configuration, (len(text),))
    parts = [logits(found, part, cache=cache)[0] for part in (text[:5], text[5:9], text[9:])]
    assert np.abs(np.concatenate(parts) - whole).max() < 2e-5 * np.abs(whole).max()
    (short,) = logits(found, text[:5])
    assert np.abs(parts[0] - short).max() > 1e-3 * np.abs(short).max()
