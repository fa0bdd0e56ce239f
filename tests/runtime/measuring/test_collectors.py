"""Importance and second moments, against sums written out, the pass's own trace, and transformers with hooks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measuring import PROSE, subject
from tiny_networks import in_memory, tokens

from qconv.convert.measure import Cut, cut_text
from qconv.errors import ModelError
from qconv.quantizers.importance import ImportanceEntry, ImportanceMatrix
from qconv.runtime.building.network import load_network
from qconv.runtime.forward import forward
from qconv.runtime.hooks import ProductInput
from qconv.runtime.measuring.hessian import HessianCollector
from qconv.runtime.measuring.identity import read_text
from qconv.runtime.measuring.importance import ImportanceCollector
from qconv.runtime.measuring.importance_statistics import coverage, layer_statistics, tensor_statistics

RNG = np.random.default_rng(11)


class Model:
    """As much of a model as a collector looks at."""

    path = Path("m.gguf")

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        self.tensors = {name: type("Tensor", (), {"shape": shape}) for name, shape in shapes.items()}


DOWN = "blk.0.ffn_down_exps.weight"
MIXTURE: Any = Model(**{DOWN: (3, 5, 4), "blk.0.attn_q.weight": (8, 4), "output.weight": (9, 4)})


def product(
    names: tuple[str, ...], values: np.ndarray, positions: list[int], expert: int | None = None
) -> ProductInput:
    index = np.array(positions, np.intp)
    return ProductInput(names, values.astype(np.float32), np.zeros_like(index), index, expert)


@pytest.mark.parametrize("skip_first", [False, True])
def test_every_expert_has_its_own_sums_and_count(skip_first: bool) -> None:
    collector = ImportanceCollector(MIXTURE, skip_first=skip_first)
    rows = RNG.normal(size=(6, 4))
    collector(product((DOWN,), rows[:3], [0, 1, 4], expert=0))
    collector(product((DOWN,), rows[3:5], [0, 2], expert=2))
    collector(product((DOWN,), rows[5:], [3], expert=2))
    entry = collector.entries()[DOWN]
    kept = [rows[1:3], rows[:0], rows[4:]] if skip_first else [rows[:3], rows[:0], rows[3:]]
    assert entry.counts.tolist() == [len(it) for it in kept]
    for got, it in zip(entry.sums, kept, strict=True):
        np.testing.assert_allclose(got, np.square(it.astype(np.float32)).sum(axis=0), rtol=1e-6)


def test_long_sums_keep_growing() -> None:
    """A float32 sum would stay at 2^24."""
    collector = ImportanceCollector(MIXTURE, skip_first=False)
    big = np.full((1, 4), 4096.0)
    collector(product(("blk.0.attn_q.weight",), big, [0]))
    for _ in range(100):
        collector(product(("blk.0.attn_q.weight",), np.ones((10, 4)), [0] * 10))
    assert collector.entries()["blk.0.attn_q.weight"].sums.tolist() == [[2.0**24 + 1000] * 4]


def test_names_share_sums_and_the_output_is_optional() -> None:
    for output in (False, True):
        collector = ImportanceCollector(MIXTURE, skip_first=False, output=output)
        collector(product(("blk.0.attn_q.weight", "blk.0.attn_k.weight"), np.ones((2, 4)), [0, 1]))
        collector(product(("output.weight",), np.ones((2, 4)), [0, 1]))
        names = ["blk.0.attn_k.weight", "blk.0.attn_q.weight"]
        assert list(collector.entries()) == names + ["output.weight"] * output


def test_inputs_that_are_not_finite_are_named() -> None:
    rows = np.ones((2, 4))
    rows[1, 2] = math.inf
    for collector in (ImportanceCollector(MIXTURE, skip_first=False), HessianCollector(bool, skip_first=False)):
        with pytest.raises(ModelError, match=r"blk\.0\.attn_q\.weight: its input holds NaN"), np.errstate(all="ignore"):
            collector(product(("blk.0.attn_q.weight",), rows, [0, 1]))


def test_second_moments() -> None:
    collector = HessianCollector(lambda name: name != "other", skip_first=True)
    rows = RNG.normal(size=(1300, 6)).astype(np.float32)
    collector(product(("q", "k"), rows[:700], list(range(700))))
    collector(product(("q", "k"), rows[700:], list(range(600))))
    collector(product(("other",), rows, list(range(1300))))
    collector(product((DOWN,), rows[:5], [1] * 5, expert=1))
    kept = np.delete(rows, [0, 700], axis=0).astype(np.float64)
    found = collector.moment("k")
    assert found is not None
    assert found is collector.moment("q")
    assert found.count == 1298
    np.testing.assert_allclose(found.total, kept.T @ kept, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found.mean(), kept.T @ kept / 1298, rtol=1e-5, atol=1e-6)
    assert collector.moment("other") is None
    assert collector.moment(DOWN) is None
    stack = collector.moment(DOWN, 1)
    assert stack is not None
    assert stack.count == 5
    collector.clear()
    assert collector.moment("q") is None


def test_state_and_restore_continue_exactly() -> None:
    def feed(collector: ImportanceCollector, part: slice) -> None:
        for block in blocks[part]:
            collector(product((DOWN,), block, list(range(len(block))), expert=1))

    blocks = [RNG.normal(size=(7, 4)) for _ in range(6)]
    whole, first, second = (ImportanceCollector(MIXTURE, skip_first=True) for _ in range(3))
    feed(whole, slice(6))
    feed(first, slice(2))
    second.restore({key: value.copy() for key, value in first.state().items()})
    feed(second, slice(2, 6))
    for key, value in whole.state().items():
        assert (second.state()[key] == value).all()


def test_statistics_by_hand() -> None:
    entries = {
        "blk.0.ffn_up.weight": ImportanceEntry(np.array([[4, 4, 4, 4]], np.float32), np.array([2.0])),
        "blk.1.ffn_up.weight": ImportanceEntry(np.array([[8, 0, 0, 24]], np.float32), np.array([4.0])),
        "blk.1.ffn_down_exps.weight": ImportanceEntry(
            np.array([[2, 6], [0, 0], [20, 0]], np.float32), np.array([2.0, 0, 10])
        ),
    }
    found = tensor_statistics(ImportanceMatrix(entries))
    assert [it.name for it in found] == [
        "blk.1.ffn_down_exps.weight",
        "blk.0.ffn_up.weight",
        "blk.1.ffn_up.weight",
    ]
    experts, flat, skewed = found
    assert (flat.layer, flat.kind, flat.total, flat.similarity) == (0, "ffn_up", 8, None)
    assert (flat.entropy, flat.entropy_share, flat.outliers, flat.deviation) == (2, 1, 0, 0)
    assert (skewed.total, skewed.minimum, skewed.maximum, skewed.mean) == (8, 0, 6, 2)
    assert skewed.deviation == pytest.approx(math.sqrt((0 + 4 + 4 + 16) / 4))
    assert (skewed.active, skewed.count, skewed.outliers) == (0.5, 4, 0.25)
    assert skewed.entropy == pytest.approx(-(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75)))
    assert skewed.similarity == pytest.approx(32 * 4 / (8 * math.hypot(8, 24)))
    assert (experts.count, experts.total, experts.similarity) == (4, 1 + 3 + 2 + 0, None)
    lines = layer_statistics(found)
    assert [(it.layer, it.total) for it in lines] == [(0, 8), (1, (6 * 4 + 8 * 4) / 8)]
    assert lines[1].similarity == skewed.similarity
    (covered,) = [it for it in coverage(ImportanceMatrix(entries), 5) if it.matrices > 1]
    assert (covered.unseen, covered.least, covered.median, covered.most, covered.thin) == (1, 0, 2, 10, (0, 1))


@pytest.mark.oracles
@pytest.mark.filterwarnings("ignore")
def test_sums_are_those_of_llamacpps_definition(example_model: Path) -> None:
    """All positions of every chunk, BOS in its place: by hooks on transformers' modules."""
    import torch
    from transformers import AutoModelForCausalLM

    with subject(example_model) as found:
        windows = cut_text(found, read_text(PROSE), Cut(128, limit=2))
        collector = ImportanceCollector(found.model, skip_first=False, output=True)
        for _ in forward(found.network, list(windows.evaluated), collector=collector):
            pass
        ours = collector.entries()
    model = AutoModelForCausalLM.from_pretrained(example_model, dtype=torch.float32)
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    names |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    theirs: dict[str, Any] = {}

    def watch(name: str) -> Any:
        def hook(module: Any, inputs: Any) -> None:
            rows = inputs[0].double().reshape(-1, inputs[0].shape[-1])
            theirs[name] = theirs.get(name, 0) + rows.square().sum(0).numpy()

        return hook

    for path, module in model.named_modules():
        if path.split(".")[-1] in names:
            name = f"blk.{path.split('.')[2]}.{names[path.split('.')[-1]]}.weight"
            module.register_forward_pre_hook(watch(name))
    model.lm_head.register_forward_pre_hook(watch("output.weight"))
    with torch.no_grad():
        for tokens in windows.evaluated:
            model(torch.tensor(np.array([tokens])).long())
    assert set(ours) == set(theirs)
    worst = max(float(np.abs(ours[name].sums[0] / theirs[name] - 1).max()) for name in theirs)
    print(f"sums differ by at most {worst:.1e}")
    assert worst < 1e-4
    assert {float(entry.counts[0]) for entry in ours.values()} == {256.0}


@pytest.mark.parametrize("name", ["mixtral", "qwen3moe"])
def test_every_token_counts_for_each_of_its_experts(name: str) -> None:
    sequences = [tokens(60), tokens(60, seed=1)]
    routed: dict[str, list[np.ndarray]] = {}

    def keep(name: str, first: int, values: np.ndarray) -> None:
        if "ffn_gate_inp" in name:
            routed[name] = [values.copy()]

    model = in_memory(name, Path("tiny"))
    network = load_network(model)
    used = network.configuration.experts_used
    collector = ImportanceCollector(model, skip_first=True)
    list(forward(network, sequences, wanted=slice(0), collector=collector, trace=keep))
    entries = collector.entries()
    for layer in range(network.configuration.layers):
        (logits,) = routed[f"blk.{layer}.ffn_gate_inp.weight"]
        logits = np.delete(logits, [0, 60], axis=0)
        chosen = np.argsort(-logits, axis=1, kind="stable")[:, :used]
        expected = np.bincount(chosen.ravel(), minlength=network.configuration.experts)
        for kind in ("gate", "up", "down"):
            entry = entries[f"blk.{layer}.ffn_{kind}_exps.weight"]
            assert entry.counts.tolist() == expected.tolist()
            assert ((entry.sums > 0).any(axis=1) == (expected > 0)).all()
        assert entries[f"blk.{layer}.ffn_gate_inp.weight"].counts.tolist() == [118]
