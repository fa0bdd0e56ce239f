"""Scaling inputs changes no prediction: whatever is multiplied, something before it is divided, in every family."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_networks import FAMILIES, in_memory, logits, tokens

from qconv.convert.packed.activation_folds import find_folds, scale_tensors
from qconv.runtime.building.network import load_network
from qconv.runtime.weights import Matrix

# families without a norm whose readers are all linear: norms come after, not before
WITHOUT_NORMS = ("olmo2",)


def scales_of(width: int, seed: int) -> NDArray[np.float32]:
    return np.exp(0.5 * np.random.default_rng(seed).normal(size=width)).astype(np.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_stay(family: str, tmp_path: Path) -> None:
    model = in_memory(family, tmp_path)
    network = load_network(model)
    folds = find_folds(network, frozenset(model.tensors), lambda name, expert: True)
    assert folds
    widths = [fold.readers[0].columns for fold in folds]
    scaled = scale_tensors(model.tensors, folds, lambda number: scales_of(widths[number], number))
    changed = [name for name in scaled if scaled[name] is not model.tensors[name]]
    assert len(changed) >= 4
    weights = {name: scaled[name].rows(0, scaled[name].row_count) for name in changed}
    assert all(not np.allclose(weights[it], model.tensors[it].rows(0, model.tensors[it].row_count)) for it in changed)
    other = load_network(replace(model, tensors=MappingProxyType(scaled)))
    sequence = tokens(9)
    (before,), (after,) = logits(network, sequence), logits(other, sequence)
    np.testing.assert_allclose(after, before, rtol=2e-3, atol=2e-3 * np.abs(before).max())


def places(family: str, tmp_path: Path, **config: object) -> set[tuple[str, ...]]:
    """Return for each fold of the second block its giver and its readers."""
    model = in_memory(family, tmp_path, **config)
    found = find_folds(load_network(model), frozenset(model.tensors), lambda name, expert: expert == 0)
    return {
        (fold.givers[0].tensor.name, *dict.fromkeys(it.name for it in fold.readers))
        for fold in found
        if fold.moment[0].startswith("blk.1.")
    }


def short(found: set[tuple[str, ...]]) -> set[str]:
    return {" ".join(name.removeprefix("blk.1.").removesuffix(".weight") for name in it) for it in found}


def test_places_of_grouped_heads(tmp_path: Path) -> None:
    """Values that several query heads share cannot be scaled for each of them."""
    assert short(places("llama", tmp_path)) == {
        "attn_norm attn_q attn_k attn_v",
        "ffn_norm ffn_gate ffn_up",
        "ffn_up ffn_down",
    }
    assert "attn_v attn_output" in short(places("llama", tmp_path, num_key_value_heads=4))


def test_routers_and_shared_experts_are_scaled_along(tmp_path: Path) -> None:
    found = short(places("qwen2moe", tmp_path))
    entering = "ffn_gate_exps ffn_up_exps ffn_gate_shexp ffn_up_shexp"
    assert f"ffn_norm ffn_gate_inp ffn_gate_inp_shexp {entering}" in found
    assert "ffn_up_exps ffn_down_exps" in found
    assert "ffn_up_shexp ffn_down_shexp" in found


def test_parallel_blocks_share_a_norm(tmp_path: Path) -> None:
    assert "attn_norm attn_q attn_k attn_v ffn_gate ffn_up" in short(places("cohere", tmp_path))


def test_what_is_not_linear_is_left_alone(tmp_path: Path) -> None:
    assert not any(it.startswith("ffn_up") for it in short(places("gpt2", tmp_path)))  # an activation after up
    assert not any(it.startswith("ffn_up") for it in short(places("gpt-oss", tmp_path)))  # up is clipped
    assert not any("norm" in it for it in short(places("olmo2", tmp_path)))  # norms come after


def test_experts_that_no_token_met_are_left_alone(tmp_path: Path) -> None:
    model = in_memory("mixtral", tmp_path)
    found = find_folds(load_network(model), frozenset(model.tensors), lambda name, expert: expert == 1)
    givers = [fold.givers[0] for fold in found]
    assert all(isinstance(it, Matrix) and it.first == it.rows for it in givers)
    assert len(givers) == 2
