"""What must hold of a pass whatever the weights: batches, prefixes, caches, threads, hooks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_networks import FAMILIES, in_memory, logits, network, tokens

from qconv.errors import UsageError
from qconv.runtime.building.network import Network, load_network
from qconv.runtime.cache import FloatCache
from qconv.runtime.forward import forward
from qconv.runtime.hooks import ProductInput

EXACT = 2e-5
ROUNDED = {"gemma3n": 1e-4}
"""What float32 leaves apart in families where it rounds further: with AVX-512, 2.6e-5 were seen in Gemma 3n's streams."""


def apart(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(one - other).max() / np.abs(other).max())


@pytest.mark.parametrize("name", FAMILIES)
def test_sequences_run_together_as_they_do_alone(name: str) -> None:
    found = network(name)
    sequences = [tokens(count, seed) for seed, count in enumerate((20, 1, 31, 20))]
    for together, sequence in zip(logits(found, *sequences), sequences, strict=True):
        (alone,) = logits(found, sequence)
        assert apart(together, alone) < EXACT
    assert apart(logits(found, sequences[0])[0], logits(found, sequences[3])[0]) > 0.05


@pytest.mark.parametrize("name", FAMILIES)
def test_later_tokens_change_nothing_and_earlier_ones_do(name: str) -> None:
    found = network(name)
    text = tokens(24)
    (whole,) = logits(found, text)
    (prefix,) = logits(found, text[:15])
    assert apart(prefix, whole[:15]) < EXACT
    (changed,) = logits(found, [(text[0] + 1) % 24, *text[1:]])
    assert apart(changed[1:], whole[1:]) > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cache_continues_where_it_ended(name: str) -> None:
    found = network(name, **({} if name in ("gpt2", "mistral3", "exaone4") else {"sliding_window": 6}))
    texts = [tokens(22, 1), tokens(17, 2)]
    cache = FloatCache(found.configuration, (22, 17))
    steps = [logits(found, texts[0][:9], texts[1][:4], cache=cache)]
    steps.append(logits(found, texts[0][9:10], texts[1][4:16], cache=cache))
    steps.append(logits(found, texts[0][10:], texts[1][16:], cache=cache))
    for number, whole in enumerate(logits(found, *texts)):
        assert apart(np.concatenate([step[number] for step in steps]), whole) < EXACT
    assert cache.places.lengths == [22, 17]
    with pytest.raises(UsageError, match="23 positions do not fit a key-value cache of 22"):
        logits(found, [1], [1], cache=cache)


@pytest.mark.parametrize("name", ["llama", "qwen3moe", "gpt2"])
def test_threads_change_nothing(name: str) -> None:
    found, text = network(name), tokens(30)
    assert np.array_equal(logits(found, text, threads=1)[0], logits(found, text, threads=5)[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_pieces_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model is a single slab, piece and task in everything; here it is many."""
    found, texts = network(name), (tokens(23, 1), tokens(14, 2))
    whole, traced = logits(found, *texts), pieces_traced(found, texts)
    monkeypatch.setattr("qconv.runtime.weights.SLAB_WEIGHTS", 60)
    monkeypatch.setattr("qconv.runtime.weights.SLAB_ROWS", 3)
    monkeypatch.setattr("qconv.runtime.run._TASK_QUERIES", 5)
    monkeypatch.setattr("qconv.runtime.elementwise._PIECE", 40)
    for one, other in zip(logits(found, *texts), whole, strict=True):
        assert apart(one, other) < EXACT
    again = pieces_traced(found, texts)
    assert list(again) == list(traced)
    for tensor, values in traced.items():
        assert apart(again[tensor], values) < ROUNDED.get(name, EXACT)


def pieces_traced(found: Network, texts: tuple[list[int], ...]) -> dict[str, NDArray[np.float32]]:
    """Return what is traced, each tensor's pieces put side by side by their first columns."""
    pieces: dict[str, list[tuple[int, NDArray[np.float32]]]] = {}

    def trace(tensor: str, first: int, values: NDArray[np.float32]) -> None:
        pieces.setdefault(tensor, []).append((first, values.copy()))

    logits(found, *texts, trace=trace)
    whole = {}
    for tensor, parts in pieces.items():
        ordered = sorted(parts, key=lambda part: part[0])
        ends = np.cumsum([0, *(values.shape[1] for _, values in ordered)])
        assert [first for first, _ in ordered] == ends[:-1].tolist()
        whole[tensor] = np.concatenate([values for _, values in ordered], axis=1)
    return whole


def test_logits_come_for_the_positions_asked_for_in_blocks() -> None:
    found = network("llama")
    texts = tokens(20, 1), tokens(9, 2)
    whole = logits(found, *texts)
    half = list(forward(found, texts, wanted=slice(8, None), block_bytes=3 * 4 * 24 + 5))
    assert [len(block.logits) for block in half] == [3, 3, 3, 3, 1]
    assert np.concatenate([block.sequences for block in half]).tolist() == [0] * 12 + [1]
    assert np.concatenate([block.positions for block in half]).tolist() == [*range(8, 20), 8]
    assert apart(np.concatenate([block.logits for block in half]), np.vstack([whole[0][8:], whole[1][8:]])) < EXACT
    (picked,) = forward(found, texts, wanted=[np.array([3, 1]), np.array([], np.intp)])
    assert picked.positions.tolist() == [3, 1]
    assert apart(picked.logits, whole[0][[3, 1]]) < EXACT
    assert list(forward(found, texts, wanted=slice(0))) == []


@pytest.mark.parametrize("family", ["llama", "falcon"])
def test_shares_of_a_pass_make_up_the_pass(family: str) -> None:
    """Halves of blocks, also where both read the same stream, and pieces of the output."""
    found, shares = network(family), list[float]()
    for block in forward(found, [tokens(20)], block_bytes=8 * 4 * 24, progress=shares.append):
        assert len(block.logits) <= 8
    assert len(shares) == 2 * len(found.blocks) + 3
    assert sum(shares) == pytest.approx(1)


def test_a_window_hides_what_lies_before_it() -> None:
    found = network("gemma2", num_hidden_layers=1, sliding_window=5)
    text = tokens(20)
    (whole,) = logits(found, text)
    changed = list(text)
    changed[7] = (changed[7] + 1) % 24
    moved = np.abs(logits(found, changed)[0] - whole).max(axis=1) > 1e-6
    assert moved.nonzero()[0].tolist() == [7, 8, 9, 10, 11]


def test_every_second_layer_of_gemma2_sees_everything() -> None:
    configuration = network("gemma2", num_hidden_layers=4, sliding_window=5).configuration
    assert [configuration.layer_window(layer) for layer in range(4)] == [5, None, 5, None]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_collected_times_the_weights_is_what_is_traced(name: str) -> None:
    model = in_memory(name, Path("tiny"))
    inputs: list[ProductInput] = []
    results: dict[str, list[tuple[int, NDArray[np.float32]]]] = {}

    def collect(found: ProductInput) -> None:
        inputs.append(ProductInput(found.names, found.values.copy(), found.sequences, found.positions, found.expert))

    def trace(tensor: str, first: int, values: NDArray[np.float32]) -> None:
        results.setdefault(tensor, []).append((first, values.copy()))

    texts = [tokens(12, 1), tokens(7, 2)]
    logits(load_network(model), *texts, collector=collect, trace=trace)

    matrices = {key for key, tensor in model.tensors.items() if len(tensor.shape) > 1 and key.endswith(".weight")}
    configuration = load_network(model).configuration
    borrowing = [layer for layer in range(configuration.layers) if configuration.keys_from(layer) != layer]
    matrices -= {f"blk.{layer}.attn_{kind}.weight" for layer in borrowing for kind in "kv"}
    matrices -= {key for key in matrices if "conv1d" in key or "ssm_norm" in key}  # of single channels or groups
    matrices -= {key for key in matrices if "compressor_ape" in key}  # added to what others give
    collected = {tensor for found in inputs for tensor in found.names}
    outputs = {"output.weight"} if "output.weight" in matrices else {"token_embd.weight"}
    looked_up = {"token_embd.weight", "position_embd.weight", "per_layer_token_embd.weight"}
    assert collected == (matrices - looked_up) | outputs
    for found in inputs:
        for tensor in found.names:
            assert found.values.shape == (len(found.positions), model.tensors[tensor].columns)
            if tensor.endswith("altup_router.weight"):
                continue  # asked twice in a block, told once
            if found.expert is None and tensor not in outputs:
                assert found.sequences.tolist() == [0] * 12 + [1] * 7
                assert found.positions.tolist() == [*range(12), *range(7)]
                pieces = [values for _, values in sorted(results[tensor], key=lambda piece: piece[0])]
                weights = model.tensors[tensor].rows(0, model.tensors[tensor].row_count)
                bias = model.tensors.get(tensor.replace(".weight", ".bias"))
                wanted = found.values @ weights.T + (0 if bias is None else bias.rows(0, 1))
                assert apart(np.concatenate(pieces, axis=1), wanted) < EXACT


def test_tensors_that_share_an_input_are_announced_once() -> None:
    found: list[tuple[str, ...]] = []
    logits(network("llama"), tokens(5), collector=lambda item: found.append(item.names))
    assert found[:4] == [
        ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"),
        ("blk.0.attn_output.weight",),
        ("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"),
        ("blk.0.ffn_down.weight",),
    ]
    assert found[-1] == ("output.weight",)
    fused: list[tuple[str, ...]] = []
    logits(network("phi3"), tokens(5), collector=lambda item: fused.append(item.names))
    assert fused[0] == ("blk.0.attn_qkv.weight",)
    assert fused[2] == ("blk.0.ffn_up.weight",)


@pytest.mark.parametrize("name", ["mixtral", "qwen3moe"])
def test_each_token_goes_to_as_many_experts_as_it_should(name: str) -> None:
    found = network(name)
    rows: Counter[tuple[str, int, int]] = Counter()

    def collect(item: ProductInput) -> None:
        if item.expert is not None:
            for tensor in item.names:
                rows.update((tensor, int(s), int(p)) for s, p in zip(item.sequences, item.positions, strict=True))

    logits(found, tokens(12, 1), tokens(7, 2), collector=collect)
    assert set(rows.values()) == {min(found.configuration.experts, found.configuration.experts_used)}
    assert len(rows) == 19 * 2 * 3  # tokens, layers, tensors


def test_tracing_and_collecting_leave_the_result_alone() -> None:
    found, text = network("gemma3"), tokens(20)
    hooks: dict[str, Any] = {"collector": lambda item: None, "trace": lambda *arguments: None}
    assert np.array_equal(logits(found, text)[0], logits(found, text, **hooks)[0])


def test_the_residual_stream_is_traced_after_each_block() -> None:
    names: list[str] = []
    logits(network("llama"), tokens(4), trace=lambda name, first, values: names.append(name))
    assert names[0] == "token_embd.weight"
    assert [name for name in names if name.count(".") == 1 and name.startswith("blk.")] == ["blk.0", "blk.1"]
    assert names.index("blk.0") < names.index("blk.1.attn_norm.weight") < names.index("blk.1")
