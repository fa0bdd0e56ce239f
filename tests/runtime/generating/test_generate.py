"""Generation: what is read again and what is not, where it stops, and the very tokens of llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from f32_gguf import write_f32
from llamacpp_models import logits as llamacpp_logits
from measuring import subject
from numpy.typing import NDArray
from tiny_networks import CONTEXT, in_memory, logits, network, tokens

from qconv.convert.measure import subject_of
from qconv.errors import UsageError
from qconv.formats.base import Tensor
from qconv.formats.huggingface import open_huggingface
from qconv.plugins.manager import load_plugins
from qconv.runtime.building.network import Network, load_network
from qconv.runtime.cache import FloatCache, make_cache
from qconv.runtime.generating.generate import Reader, generate
from qconv.runtime.generating.sampling import GREEDY, Sampling
from qconv.runtime.held import hold, memory_budget
from qconv.runtime.workers import Workers


def never(token: int) -> bool:
    return False


def reader_of(found: Network, context: int = 64) -> Reader:
    return Reader(found, make_cache(found.configuration, (context,)), threads=1)


class Spy(FloatCache):
    """Notes how many positions each pass runs, and is interrupted in a given block."""

    def __init__(self, found: Network, context: int) -> None:
        super().__init__(found.configuration, (context,))
        self.ran: list[int] = []
        self.interrupted_in: int | None = None

    def extend(
        self,
        layer: int,
        sequence: int,
        keys: NDArray[np.float32],
        values: NDArray[np.float32],
        workers: Workers | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if layer == self.interrupted_in:
            raise KeyboardInterrupt
        if layer == 0:
            self.ran.append(keys.shape[1])
        return super().extend(layer, sequence, keys, values, workers)


def greedy_by_whole_passes(found: Network, prompt: Sequence[int], count: int) -> list[int]:
    text = list(prompt)
    for _ in range(count):
        text.append(int(logits(found, text)[0][-1].argmax()))
    return text[len(prompt) :]


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3moe", "gemma2", "qwen35", "qwen3next"])
def test_greedy_is_the_best_token_of_whole_passes(name: str) -> None:
    found = network(name)
    prompt = tokens(5, 8)
    with reader_of(found) as reader:
        generated = list(generate(reader, prompt, GREEDY, np.random.default_rng(0), never, 12))
        assert list(reader.tokens) == prompt + generated[:-1]
    assert generated == greedy_by_whole_passes(found, prompt, 12)


def test_a_seed_repeats_itself() -> None:
    found, texts = network("llama"), []
    for seed in (1, 1, 2):
        with reader_of(found) as reader:
            texts.append(list(generate(reader, [3], Sampling(2.0), np.random.default_rng(seed), never, 30)))
    assert texts[0] == texts[1] != texts[2]


def test_where_it_stops() -> None:
    found, random = network("llama"), np.random.default_rng(0)
    with reader_of(found, context=16) as reader:
        free = list(generate(reader, tokens(5), GREEDY, random, never))
        assert len(free) == 16 - 5 + 1
        assert list(generate(reader, tokens(5), GREEDY, random, never, 3)) == free[:3]
        assert list(generate(reader, tokens(5), GREEDY, random, never, 0)) == []
        end = free[4]
        first = free.index(end)
        assert list(generate(reader, tokens(5), GREEDY, random, lambda token: token == end)) == free[: first + 1]
        with pytest.raises(UsageError, match="17 tokens, but the context holds 16"):
            next(generate(reader, tokens(17), GREEDY, random, never))
        with pytest.raises(UsageError, match="no token to begin with"):
            next(generate(reader, [], GREEDY, random, never))


def test_only_what_is_new_is_read() -> None:
    found, text = network("llama"), tokens(20)
    cache = Spy(found, 64)
    with Reader(found, cache, threads=1) as reader:
        reader.read(text[:12])
        reader.read(text[:15])
        again = reader.read(text[:15])
        other = [*text[:10], (text[10] + 1) % 24, 5]
        changed = reader.read(other)
    assert cache.ran == [12, 3, 1, 2]
    assert np.allclose(again, logits(found, text[:15])[0][-1], atol=1e-5)
    assert np.allclose(changed, logits(found, other)[0][-1], atol=1e-5)


def test_a_memory_of_fixed_size_is_made_anew_for_another_beginning() -> None:
    found, text = network("qwen35"), tokens(20)
    with reader_of(found) as reader:
        reader.read(text[:12])
        further = reader.read(text[:15])
        other = [*text[:10], (text[10] + 1) % 24, 5]
        changed = reader.read(other)
    assert np.allclose(further, logits(found, text[:15])[0][-1], atol=1e-4)
    assert np.allclose(changed, logits(found, other)[0][-1], atol=1e-4)


def test_long_prompts_are_read_in_batches() -> None:
    found = network("llama")
    cache, text = Spy(found, 1200), tokens(1100)
    with Reader(found, cache, threads=1) as reader:
        ours = reader.read(text)
    assert cache.ran == [512, 512, 76]
    assert np.allclose(ours, logits(found, text)[0][-1], atol=1e-4)


@pytest.mark.parametrize(("name", "block"), [("llama", 1), ("qwen35", 3)])
def test_an_interruption_leaves_a_reader_that_goes_on(name: str, block: int) -> None:
    found, text = network(name), tokens(20)
    cache = Spy(found, 64)
    with Reader(found, cache, threads=1) as reader:
        reader.read(text[:12])
        cache.interrupted_in = block
        with pytest.raises(KeyboardInterrupt):
            reader.read(text[:16])
        cache.interrupted_in = None
        assert len(reader.tokens) == 12
        ours = reader.read(text)
    assert np.allclose(ours, logits(found, text)[0][-1], atol=1e-4)


def test_held_weights_are_decoded_once_and_change_nothing() -> None:
    plain = in_memory("qwen3moe", Path("tiny"))
    read: list[str] = []

    def counting(tensor: Tensor) -> Tensor:
        def rows(start: int, stop: int) -> NDArray[np.uint8]:
            read.append(tensor.name)
            return tensor.read(start, stop)

        return replace(tensor, read=rows)

    counted = replace(plain, tensors={name: counting(it) for name, it in plain.tensors.items()})
    text = tokens(9)
    (wanted,) = logits(load_network(plain), text)
    total = sum(4 * int(np.prod(it.shape)) for it in plain.tensors.values())
    for budget in (10 * total, total // 3, 0):
        model, held = hold(counted, budget)
        found = load_network(model)
        assert np.array_equal(logits(found, text)[0], wanted)
        first = len(read)
        assert np.array_equal(logits(found, text)[0], wanted)
        again = len(read) - first
        read.clear()
        assert held.nbytes <= budget
        if budget > total:
            assert again == 0
        elif budget:
            assert 0 < again < first
            assert held.nbytes > budget // 2
        else:
            assert again == first


def test_held_weights_cannot_be_written_to() -> None:
    model, _ = hold(in_memory("llama", Path("tiny")), 1 << 20)
    rows = model.tensors["output.weight"].rows(0, 3)
    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0] = 1


def test_there_is_memory() -> None:
    assert 1 << 20 < memory_budget() < 1 << 50


PROMPTS = (
    "The old man walked",
    "In 1990 the city",
    "It was not until",
    "She wrote the song with",
    "= History =\n",
    "x",
)


@pytest.mark.oracles
def test_greedy_is_that_of_llamacpp(tmp_path: Path, example_model: Path) -> None:
    with open_huggingface(example_model, CONTEXT) as model:
        path = write_f32(tmp_path / "f32.gguf", model)
    with subject(path) as found:
        for prompt in PROMPTS:
            ids = found.tokenizer.encode(prompt).tolist()
            with reader_of(found.network, 128) as reader:
                ours = list(generate(reader, ids, GREEDY, np.random.default_rng(0), never, 40))
            # llama.cpp's best token after each of ours: where all agree, its own greedy text is ours
            rows = llamacpp_logits(path, [*ids, *ours[:-1]])[len(ids) - 1 :]
            assert rows.argmax(axis=1).tolist() == ours, prompt


@pytest.mark.shared
def test_the_story_that_everyone_knows(shared: Path) -> None:
    registries = load_plugins().registries()
    with subject(shared / "models" / "stories260K" / "hf") as found:
        model, _ = hold(found.model, 1 << 26)
        network = subject_of(model, registries).network
        ids = found.tokenizer.encode("Once upon a time").tolist()
        with reader_of(network, 512) as reader:
            ours = list(generate(reader, ids, GREEDY, np.random.default_rng(0), never, 40))
        text = found.tokenizer.decode([*ids, *ours])[len("Once upon a time") :]
    assert text.startswith(", there was a little girl named Lily. She loved to play outside in the park.")
