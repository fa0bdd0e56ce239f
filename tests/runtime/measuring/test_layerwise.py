"""Comparison block by block, for every family: nothing differs from itself, and a changed tensor is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from memory_model import tensor
from tiny_networks import STANDALONE, UNBOUND, in_memory, tokens

from qconv.errors import ModelError
from qconv.formats.base import Model
from qconv.runtime.building.network import load_network
from qconv.runtime.measuring.layerwise import compare_layers, compare_steps
from qconv.runtime.measuring.weight_check import compare_weights, expected_error

TOKENS = tokens(20)


def changed(model: Model, name: str) -> Model:
    """Return the model with one tensor's values in another order."""
    old = model.tensors[name]
    rows = old.rows(0, old.row_count).reshape(old.shape)
    return replace(model, tensors={**model.tensors, name: tensor(name, np.ascontiguousarray(rows[..., ::-1]))})


@pytest.mark.parametrize("name", STANDALONE)
def test_a_model_does_not_differ_from_itself(name: str) -> None:
    network = load_network(in_memory(name, Path("tiny"), **UNBOUND.get(name, {})))
    embedded, layers = compare_layers(network, network, TOKENS)
    assert embedded == 0
    assert [it.layer for it in layers] == list(range(len(network.blocks)))
    for it in layers:
        assert it.drift == 0
        assert it.error < 1e-5, "a block alone does what it does in the whole pass"


@pytest.mark.parametrize("name", STANDALONE)
def test_a_changed_tensor_is_found(name: str) -> None:
    model = in_memory(name, Path("tiny"), **UNBOUND.get(name, {}))
    culprit = next(
        key
        for key in (f"blk.1.{it}.weight" for it in ("attn_output", "ssm_out", "ffn_down", "ffn_down_exps"))
        if key in model.tensors
    )
    broken = changed(model, culprit)
    source, result = load_network(model), load_network(broken)
    _, layers = compare_layers(source, result, TOKENS)
    bad = [it.layer for it in layers if it.error > 1e-3]
    assert bad == [1], "blocks behind the broken one are sound, given sound input"
    assert layers[-1].drift > 1e-3
    steps = compare_steps(source, result, TOKENS, 1)
    first = next(it for it in steps if it.error > 1e-3)
    assert first.tensor == culprit
    assert first.error > 0.1
    report = compare_weights(model, broken, 1)
    assert [fault.tensor for fault in report.faults] == [culprit]
    assert report.compared == len(model.tensors)


def test_blocks_that_read_more_than_the_stream_are_not_compared() -> None:
    network = load_network(in_memory("gemma4", Path("tiny")))
    with pytest.raises(ModelError, match="cannot be compared block by block"):
        compare_layers(network, network, TOKENS)
    with pytest.raises(ModelError, match="cannot be compared block by block"):
        compare_steps(network, network, TOKENS, 1)


def test_absent_and_misshapen_tensors() -> None:
    model = in_memory("llama", Path("tiny"))
    name = "blk.0.ffn_up.weight"
    rows = model.tensors[name].rows(0, model.tensors[name].row_count)
    fewer = replace(model, tensors={key: value for key, value in model.tensors.items() if key != name})
    other = replace(model, tensors={**model.tensors, name: tensor(name, np.ascontiguousarray(rows.T))})
    for result, words in ((fewer, "the result has no such tensor"), (other, "its shape is")):
        (fault,) = compare_weights(model, result, 1).faults
        assert (fault.tensor, fault.layer) == (name, 0)
        assert words in fault.problem
    (fault,) = compare_weights(fewer, model, 1).faults
    assert "the source has no such tensor" in fault.problem


def test_expected_errors_add_up() -> None:
    assert expected_error("F32", "Q8_0") == pytest.approx(0.016)
    assert expected_error("Q4_K", "Q6_K") == pytest.approx(np.hypot(0.214, 0.054))
    assert expected_error("F32", "A_PLUGINS") == pytest.approx(1.2)
