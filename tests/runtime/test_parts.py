"""Norms, activations and feed-forwards beside their definitions, written out in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_networks import in_memory

from qconv.formats.base import Model
from qconv.runtime.building.configuration import Routing
from qconv.runtime.building.layers import Dense, Experts
from qconv.runtime.building.network import load_network
from qconv.runtime.elementwise import ACTIVATIONS, JOINING, layer_norm, rms_norm, sigmoid, soft_cap, softmax
from qconv.runtime.feed_forward import choose_experts, dense, mixture
from qconv.runtime.hooks import Hooks
from qconv.runtime.workers import Workers

Wide = NDArray[np.float64]

VALUES = np.random.default_rng(0).standard_normal((300, 400), np.float32) * np.float32(3)
WEIGHT, BIAS = np.random.default_rng(1).standard_normal((2, 400), np.float32)


def silu(x: Wide) -> Wide:
    return np.asarray(x / (1 + np.exp(-x)))


def gelu(x: Wide) -> Wide:
    return np.asarray(0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))


def gelu_tanh(x: Wide) -> Wide:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def test_norms() -> None:
    wide = VALUES.astype(np.float64) + 5
    out = np.empty_like(VALUES)
    rms_norm(wide.astype(np.float32), WEIGHT, None, 0.01, out)
    wanted = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 0.01) * WEIGHT
    assert np.abs(out - wanted).max() < 2e-5
    layer_norm(wide.astype(np.float32), WEIGHT, BIAS, 0.01, out)
    centred = wide - wide.mean(axis=1, keepdims=True)
    wanted = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 0.01) * WEIGHT + BIAS
    assert np.abs(out - wanted).max() < 2e-5
    again = wide.astype(np.float32)
    layer_norm(again, WEIGHT, BIAS, 0.01, again)
    assert np.array_equal(again, out)


@pytest.mark.parametrize(("name", "definition"), [("silu", silu), ("gelu", gelu), ("gelu_tanh", gelu_tanh)])
def test_activations(name: str, definition: object) -> None:
    assert callable(definition)
    found = VALUES.copy()
    ACTIVATIONS[name](found)
    assert np.abs(found - definition(VALUES.astype(np.float64))).max() < 2e-6
    extreme = np.array([[-1e4, -90.0, 0.0, 90.0, 1e4]], np.float32)
    with np.errstate(over="ignore"):
        ACTIVATIONS[name](extreme)
    assert np.allclose(extreme, [[0, 0, 0, 90, 1e4]], atol=1e-30)


def test_the_gate_of_gpt_oss() -> None:
    """Beyond 7 it is clamped, the gate above alone."""
    gate, up = VALUES[:150].copy(), VALUES[150:].copy()
    wide_gate, wide_up = gate.astype(np.float64), up.astype(np.float64)
    assert min(wide_gate.max(), wide_up.max(), -wide_gate.min(), -wide_up.min()) > 8
    JOINING["swiglu_oai"](gate, up)
    clamped = np.minimum(wide_gate, 7)
    wanted = clamped / (1 + np.exp(-1.702 * clamped)) * (np.clip(wide_up, -7, 7) + 1)
    assert np.abs(up - wanted).max() < 2e-5


def test_sigmoid() -> None:
    found = VALUES * np.float32(100)
    sigmoid(found)
    wide = VALUES.astype(np.float64) * np.float32(100)
    assert np.abs(found - np.where(wide < 0, np.exp(np.minimum(wide, 0)), 1) / (1 + np.exp(-np.abs(wide)))).max() < 1e-6


def test_soft_cap_and_softmax() -> None:
    found = VALUES.copy()
    soft_cap(found, 2.0)
    assert np.abs(found - 2 * np.tanh(VALUES.astype(np.float64) / 2)).max() < 1e-6
    found = VALUES * np.float32(100)
    softmax(found)
    wide = VALUES.astype(np.float64) * 100
    shares = np.exp(wide - wide.max(axis=1, keepdims=True))
    assert np.abs(found - shares / shares.sum(axis=1, keepdims=True)).max() < 1e-4


def stack(model: Model, name: str, block: int = 0) -> Wide:
    tensor = model.tensors[f"blk.{block}.{name}.weight"]
    return tensor.rows(0, tensor.row_count).reshape(tensor.shape).astype(np.float64)


def hooks(count: int) -> Hooks:
    return Hooks(None, None, np.zeros(count, np.intp), np.arange(count))


@pytest.mark.parametrize("name", ["mixtral", "qwen3moe"])
@pytest.mark.parametrize("used", [1, 2, 3])
def test_a_mixture_weighs_its_best_experts(name: str, used: int) -> None:
    model = in_memory(name, Path("tiny"))
    layer = load_network(model).blocks[0].feed_forward
    assert isinstance(layer, Experts)
    inputs = np.random.default_rng(2).standard_normal((40, 16), np.float32)
    with Workers(2) as workers:
        found = mixture(workers, layer, Routing("softmax", used, normalised=True), "silu", inputs, hooks(40))
    gates, ups, downs = (stack(model, f"ffn_{kind}_exps") for kind in ("gate", "up", "down"))
    for row, token in enumerate(inputs.astype(np.float64)):
        scores = stack(model, "ffn_gate_inp") @ token
        best = sorted(range(3), key=lambda expert: -scores[expert])[:used]
        shares = np.exp(scores[best]) / np.exp(scores[best]).sum()
        wanted = sum(
            share * (downs[expert] @ (silu(gates[expert] @ token) * (ups[expert] @ token)))
            for share, expert in zip(shares, best, strict=True)
        )
        assert np.abs(found[row] - wanted).max() < 1e-4


@pytest.mark.parametrize("used", [1, 2, 3])
def test_a_mixture_may_weigh_what_its_experts_are_given(used: int) -> None:
    model = in_memory("llama4", Path("tiny"))
    layer = load_network(model).blocks[1].feed_forward
    assert isinstance(layer, Experts)
    inputs = np.random.default_rng(2).standard_normal((40, 16), np.float32)
    with Workers(2) as workers:
        found = mixture(workers, layer, Routing("sigmoid", used, of_inputs=True), "silu", inputs, hooks(40))
    gates, ups, downs = (stack(model, f"ffn_{kind}_exps", 1) for kind in ("gate", "up", "down"))
    for row, token in enumerate(inputs.astype(np.float64)):
        scores = stack(model, "ffn_gate_inp", 1) @ token
        wanted = np.zeros(16)
        for expert in sorted(range(3), key=lambda it: -scores[it])[:used]:
            given = token / (1 + np.exp(-scores[expert]))
            wanted += downs[expert] @ (silu(gates[expert] @ given) * (ups[expert] @ given))
        assert np.abs(found[row] - wanted).max() < 1e-4


def test_scores_of_one_do_not_hide_which_expert_is_best() -> None:
    routing = Routing("sigmoid", 1, of_inputs=True)
    chosen, weights = choose_experts(np.array([[40.0, 60.0, 50.0]], np.float32), routing)
    assert chosen.tolist() == [[1]]
    assert weights.tolist() == [[1.0]]


@pytest.mark.parametrize("by_maximum", [False, True])
@pytest.mark.parametrize("gating", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalised", [False, True])
def test_experts_come_from_the_best_groups(
    gating: Literal["softmax", "sigmoid"], by_maximum: bool, normalised: bool
) -> None:
    """Four groups of three; the bias counts for the choice alone."""
    random = np.random.default_rng(5)
    logits, bias = random.standard_normal((50, 12), np.float32), random.standard_normal(12, np.float32) / np.float32(4)
    routing = Routing(gating, 4, normalised, 2.5, groups=4, groups_used=2, by_maximum=by_maximum)
    chosen, weights = choose_experts(logits.copy(), routing, bias)
    for row, own in enumerate(logits.astype(np.float64)):
        scores = np.exp(own) / np.exp(own).sum() if gating == "softmax" else 1 / (1 + np.exp(-own))
        preferred = scores + bias
        groups = [sorted(preferred[first : first + 3], reverse=True) for first in range(0, 12, 3)]
        best = sorted(range(4), key=lambda group: -(groups[group][0] if by_maximum else sum(groups[group][:2])))[:2]
        wanted = sorted((item for item in range(12) if item // 3 in best), key=lambda item: -preferred[item])[:4]
        assert chosen[row].tolist() == wanted
        share = scores[wanted] * 2.5 / (scores[wanted].sum() if normalised else 1)
        assert np.abs(weights[row] - share).max() < 1e-5


@pytest.mark.parametrize(
    ("name", "activation"), [("llama", silu), ("gemma2", gelu_tanh), ("phi3", silu), ("gpt2", gelu_tanh)]
)
def test_each_kind_of_feed_forward(name: str, activation: object) -> None:
    assert callable(activation)
    model = in_memory(name, Path("tiny"))
    network = load_network(model)
    layer = network.blocks[0].feed_forward
    assert isinstance(layer, Dense)
    inputs = np.random.default_rng(3).standard_normal((30, 16), np.float32)
    with Workers(2) as workers:
        found = dense(workers, layer, network.configuration.facts.activation, inputs, hooks(30))

    def project(kind: str, values: Wide) -> Wide:
        bias = model.tensors.get(f"blk.0.{kind}.bias")
        return np.asarray(values @ stack(model, kind).T + (0 if bias is None else bias.rows(0, 1)[0]))

    wide = inputs.astype(np.float64)
    if name == "gpt2":
        middle = activation(project("ffn_up", wide))
    elif name == "phi3":
        gate, up = np.split(project("ffn_up", wide), 2, axis=1)
        middle = activation(gate) * up
    else:
        middle = activation(project("ffn_gate", wide)) * project("ffn_up", wide)
    assert np.abs(found - project("ffn_down", middle)).max() < 1e-4


def test_an_error_in_a_task_reaches_the_caller() -> None:
    def fail(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    with Workers(2) as workers:
        with pytest.raises(ValueError, match="three"):
            workers.map(fail, range(10))
        assert workers.map(fail, [1, 2]) == [1, 2]
