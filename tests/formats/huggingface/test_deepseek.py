"""DeepSeek: what its configuration and checkpoints have that others have not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_folder import (
    CONFIGS,
    architecture_named,
    hf_shapes,
    model_folder,
    random_weights,
    stored,
    write_folder,
)

from qconv.errors import ModelError
from qconv.formats.base import OpenContext
from qconv.formats.huggingface import open_huggingface
from qconv.runtime.attention.rope import rope_table
from qconv.runtime.building.read_configuration import read_configuration

pytestmark = pytest.mark.usefixtures("no_tokenizer")

YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 16, "mscale": 0.707, "mscale_all_dim": 0.707}


def test_the_block_for_the_token_after_next_is_left_out(tmp_path: Path, context: OpenContext) -> None:
    config = CONFIGS["deepseek3"] | {"num_nextn_predict_layers": 1}
    weights = random_weights(hf_shapes(architecture_named("deepseek3"), config))
    extra = {"model.layers.2.eh_proj.weight": (16, 32), "model.layers.2.input_layernorm.weight": (16,)}
    write_folder(tmp_path / "model", config, stored(weights | random_weights(extra)))
    with open_huggingface(tmp_path / "model", context) as model:
        assert not any(name.startswith("blk.2.") for name in model.tensors)
        assert any("token after next" in note and "2 tensors" in note for note in model.notes)


def test_leading_blocks_are_dense(tmp_path: Path, context: OpenContext) -> None:
    with open_huggingface(model_folder(tmp_path / "model", "deepseek2"), context) as model:
        assert "blk.0.ffn_up.weight" in model.tensors
        assert "blk.1.ffn_up.weight" not in model.tensors
        assert model.tensors["blk.1.ffn_up_exps.weight"].shape == (3, 12, 16)
        assert model.tensors["blk.1.ffn_up_shexp.weight"].shape == (24, 16)


@pytest.mark.parametrize(("name", "rank"), [("deepseek2", None), ("deepseek3", 6)])
def test_the_latent_and_its_sizes(tmp_path: Path, context: OpenContext, name: str, rank: int | None) -> None:
    folder = model_folder(tmp_path / "model", name)
    weights = random_weights(hf_shapes(architecture_named(name), CONFIGS[name]))
    with open_huggingface(folder, context) as model:
        keys = {key.removeprefix("deepseek2."): field.value for key, field in model.metadata.items()}
        assert keys.get("attention.q_lora_rank") == rank
        assert (keys["attention.key_length"], keys["attention.value_length"], keys["attention.head_count_kv"]) == (
            14,
            10,
            1,
        )
        assert (keys["attention.key_length_mla"], keys["attention.value_length_mla"]) == (10, 5)
        found = model.tensors["blk.1.attn_k_b.weight"]
        assert found.shape == (4, 10, 6)
        original = weights["model.layers.1.self_attn.kv_b_proj.weight"].reshape(4, 11, 10)
        assert np.array_equal(found.rows(0, 40).reshape(found.shape), original[:, :6].swapaxes(1, 2))
        assert read_configuration(model).architecture == name


def test_yarn_multiplies_the_logits(tmp_path: Path, context: OpenContext) -> None:
    with open_huggingface(model_folder(tmp_path / "model", "deepseek2", rope_scaling=YARN), context) as model:
        assert model.metadata["deepseek2.rope.scaling.yarn_log_multiplier"].value == pytest.approx(0.0707)
        found = read_configuration(model)
    assert found.attention_scale == pytest.approx(10**-0.5 * (1 + 0.0707 * math.log(40)) ** 2)


@pytest.mark.parametrize(
    ("change", "turned", "logits"),
    [
        ({"mscale": 1.0}, (1 + 0.1 * math.log(40)) / (1 + 0.0707 * math.log(40)), (1 + 0.0707 * math.log(40)) ** 2),
        ({"mscale_all_dim": None}, 1 + 0.1 * math.log(40), 1.0),
        ({"mscale_all_dim": 0}, 1 + 0.1 * math.log(40), 1.0),
        ({"attention_factor": 2.0}, 2.0, (1 + 0.0707 * math.log(40)) ** 2),
    ],
)
def test_other_yarn(tmp_path: Path, context: OpenContext, change: dict[str, Any], turned: float, logits: float) -> None:
    """What transformers multiplies by, in GGUF's two keys."""
    folder = model_folder(tmp_path / "model", "deepseek2", rope_scaling=YARN | change)
    with open_huggingface(folder, context) as model:
        found = read_configuration(model)
    assert found.attention_scale == pytest.approx(10**-0.5 * logits, rel=1e-6)
    assert found.rope is not None
    assert np.abs(rope_table(found.rope, np.arange(3)))[0] == pytest.approx(turned, rel=1e-6)


@pytest.mark.parametrize("change", [{"mscale": "1"}, {"attention_factor": 0}, {"mscale": -3.0}])
def test_absurd_yarn_is_refused(tmp_path: Path, context: OpenContext, change: dict[str, Any]) -> None:
    folder = model_folder(tmp_path / "model", "deepseek2", rope_scaling=YARN | change)
    with pytest.raises(ModelError, match=next(iter(change))):
        open_huggingface(folder, context)


def test_groups_that_llama_cpp_chooses_otherwise_are_told(tmp_path: Path, context: OpenContext) -> None:
    changes: dict[str, Any] = {
        "topk_method": "group_limited_greedy",
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
    }
    with open_huggingface(model_folder(tmp_path / "model", "deepseek2", **changes), context) as model:
        assert any("sum of their two best" in note for note in model.notes)
        assert read_configuration(model).routing is not None
