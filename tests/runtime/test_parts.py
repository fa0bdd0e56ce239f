"""Norms, activations and feed-forwards beside their definitions, written out in float64."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_networks import in_memory

from qconv.formats.base import Model
from qconv.runtime.configuration import Routing
from qconv.runtime.elementwise import ACTIVATIONS, layer_norm, rms_norm, soft_cap, softmax
from qconv.runtime.feed_forward import dense, mixture
from qconv.runtime.hooks import Hooks
from qconv.runtime.layers import Dense, Experts
from qconv.runtime.network import load_network
from qconv.runtime.workers import Workers

Wide = NDArray[np.float64]

VALUES = np.random.default_rng(0).standard_normal((300, 400), np.float32) * np.float32(3)
WEIGHT, BIAS = np.random.default_rng(1).standard_normal((2, 400), np.float32)


def silu(x: Wide) -> Wide:
    return np.asarray(x / (1 + np.exp(-x)))


def gelu(x: Wide) -> Wide:
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


@pytest.mark.parametrize(("name", "definition"), [("silu", silu), ("gelu_tanh", gelu)])
def test_activations(name: str, definition: object) -> None:
    assert callable(definition)
    found = VALUES.copy()
    ACTIVATIONS[name](found)
    assert np.abs(found - definition(VALUES.astype(np.float64))).max() < 2e-6
    extreme = np.array([[-1e4, -90.0, 0.0, 90.0, 1e4]], np.float32)
    with np.errstate(over="ignore"):
        ACTIVATIONS[name](extreme)
    assert np.allclose(extreme, [[0, 0, 0, 90, 1e4]], atol=1e-30)


def test_soft_cap_and_softmax() -> None:
    found = VALUES.copy()
    soft_cap(found, 2.0)
    assert np.abs(found - 2 * np.tanh(VALUES.astype(np.float64) / 2)).max() < 1e-6
    found = VALUES * np.float32(100)
    softmax(found)
    wide = VALUES.astype(np.float64) * 100
    shares = np.exp(wide - wide.max(axis=1, keepdims=True))
    assert np.abs(found - shares / shares.sum(axis=1, keepdims=True)).max() < 1e-4


def stack(model: Model, name: str) -> Wide:
    tensor = model.tensors[f"blk.0.{name}.weight"]
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


@pytest.mark.parametrize(("name", "activation"), [("llama", silu), ("gemma2", gelu), ("phi3", silu), ("gpt2", gelu)])
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
