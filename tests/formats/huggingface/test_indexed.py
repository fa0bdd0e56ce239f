"""Sparse attention's configurations: which layers have an indexer, and what else GLM-5 and DeepSeek V3.2 say of their layers."""

from __future__ import annotations

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
from qconv.formats.base import Model, OpenContext
from qconv.formats.huggingface import open_huggingface

pytestmark = pytest.mark.usefixtures("no_tokenizer")

GLM = {key: value for key, value in CONFIGS["glm-dsa"].items() if key != "indexer_types"} | {"num_hidden_layers": 6}


def types_of(model: Model) -> list[int]:
    found: list[int] = np.asarray(model.metadata["glm-dsa.attention.indexer.types"].value).astype(int).tolist()
    return found


@pytest.mark.parametrize(
    ("said", "indexed"),
    [
        ({}, [1, 1, 1, 1, 1, 1]),
        ({"indexer_types": ["full", "shared", "shared", "full", "full", "shared"]}, [1, 0, 0, 1, 1, 0]),
        ({"index_topk_pattern": "FSSFSS"}, [1, 0, 0, 1, 0, 0]),
        ({"index_topk_freq": 2}, [1, 1, 0, 1, 0, 1]),
        ({"index_topk_freq": 3, "index_skip_topk_offset": 1}, [1, 0, 0, 1, 0, 0]),
    ],
)
def test_which_layers_have_an_indexer(
    tmp_path: Path, context: OpenContext, said: dict[str, Any], indexed: list[int]
) -> None:
    """The rules are those of transformers' configuration."""
    config = GLM | said
    weights = random_weights(hf_shapes(architecture_named("glm-dsa"), config))
    with open_huggingface(write_folder(tmp_path / "model", config, stored(weights)), context) as model:
        assert types_of(model) == indexed
        for layer, own in enumerate(indexed):
            assert (f"blk.{layer}.indexer.attn_k.weight" in model.tensors) is bool(own)
            assert f"blk.{layer}.attn_kv_a_mqa.weight" in model.tensors


@pytest.mark.oracles
def test_the_rule_is_that_of_transformers(tmp_path: Path, context: OpenContext) -> None:
    import transformers

    for number, (period, offset) in enumerate(((1, 2), (2, 2), (4, 2), (3, 0), (4, 5))):
        said = {"index_topk_freq": period, "index_skip_topk_offset": offset, "num_hidden_layers": 14}
        wanted = transformers.GlmMoeDsaConfig(**said).indexer_types
        config = GLM | said
        weights = random_weights(hf_shapes(architecture_named("glm-dsa"), config))
        folder = write_folder(tmp_path / str(number), config, stored(weights))
        with open_huggingface(folder, context) as model:
            assert ["full" if it else "shared" for it in types_of(model)] == wanted


@pytest.mark.parametrize("name", ["deepseek32", "glm-dsa"])
def test_experts_elsewhere_than_after_the_leading_layers_are_refused(
    tmp_path: Path, context: OpenContext, name: str
) -> None:
    layers = CONFIGS[name]["num_hidden_layers"]
    usual = ["dense"] + ["sparse"] * (layers - 1)
    with open_huggingface(model_folder(tmp_path / "usual", name, mlp_layer_types=usual), context) as model:
        assert model.metadata[f"{name}.leading_dense_block_count"].value == 1
    folder = model_folder(tmp_path / "other", name)
    (folder / "config.json").write_text(
        (folder / "config.json")
        .read_text()
        .replace("{", '{"mlp_layer_types": ' + str(usual[::-1]).replace("'", '"') + ", ", 1)
    )
    with pytest.raises(ModelError, match="mlp_layer_types is not what"):
        open_huggingface(folder, context)


@pytest.mark.parametrize("name", ["deepseek32", "glm-dsa"])
def test_the_block_for_the_token_after_next_is_left_out(tmp_path: Path, context: OpenContext, name: str) -> None:
    config = CONFIGS[name] | {"num_nextn_predict_layers": 1}
    last = config["num_hidden_layers"]
    weights = random_weights(hf_shapes(architecture_named(name), config))
    extra = {
        f"model.layers.{last}.eh_proj.weight": (16, 32),
        f"model.layers.{last}.self_attn.indexer.wk.weight": (8, 16),
    }
    write_folder(tmp_path / "model", config, stored(weights | random_weights(extra)))
    with open_huggingface(tmp_path / "model", context) as model:
        assert not any(key.startswith(f"blk.{last}.") for key in model.tensors)
        assert any("token after next" in note and "2 tensors" in note for note in model.notes)
