"""Kimi Linear: lists that name layers by their numbers, names of checkpoints, and what llama.cpp cannot run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversions import convert_without_source, write_model
from f32_gguf import write_f32
from huggingface_folder import (
    CONFIGS,
    architecture_named,
    hf_shapes,
    model_folder,
    random_weights,
    stored,
    write_folder,
)
from llamacpp_models import logits
from safetensors import safe_open
from transformers_models import KIMI_LINEAR, VOCABULARY, case, log_softmax, save

import qconv
from qconv.convert.prune import prune_layers
from qconv.errors import ModelError
from qconv.formats.base import Model, OpenContext
from qconv.formats.huggingface import open_huggingface
from qconv.runtime.building.network import load_network
from qconv.runtime.cache import FloatCache
from qconv.runtime.forward import forward

pytestmark = pytest.mark.usefixtures("no_tokenizer")

TINY = CONFIGS["kimi-linear"]
LINEAR = TINY["linear_attn_config"]
KINDS = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]


def kv_heads(model: Model) -> list[int]:
    found: list[int] = np.asarray(model.metadata["kimi-linear.attention.head_count_kv"].value).tolist()
    return found


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({}, [0, 0, 1, 0]),
        ({"linear_attn_config": LINEAR | {"kda_layers": [4, 2], "full_attn_layers": [3, 1]}}, [1, 0, 1, 0]),
        # a list of all layers comes first, as in transformers
        ({"layer_types": KINDS[::-1]}, [0, 1, 0, 0]),
        ({"linear_attn_config": {"num_heads": 4, "head_dim": 8}, "num_hidden_layers": 6}, [0, 0, 0, 0, 1, 0]),
    ],
)
def test_which_layers_have_linear_attention(
    said: dict[str, Any], found: list[int], tmp_path: Path, context: OpenContext
) -> None:
    config = TINY | said
    weights = random_weights(hf_shapes(architecture_named("kimi-linear"), config))
    with open_huggingface(write_folder(tmp_path / "model", config, stored(weights)), context) as model:
        assert kv_heads(model) == found
        for layer, own in enumerate(found):
            assert (f"blk.{layer}.ssm_f_a.weight" in model.tensors) is not bool(own)
            assert (f"blk.{layer}.attn_kv_a_mqa.weight" in model.tensors) is bool(own)


@pytest.mark.oracles
def test_the_rule_is_that_of_transformers(tmp_path: Path, context: OpenContext) -> None:
    import transformers

    lists = {"kda_layers": [1, 2, 3, 5, 6, 7, 9], "full_attn_layers": [4, 8], "num_heads": 4, "head_dim": 8}
    for number, linear in enumerate((lists, {"num_heads": 4, "head_dim": 8})):
        said = {"linear_attn_config": linear, "num_hidden_layers": 9}
        wanted = transformers.KimiLinearConfig(**said).layer_types
        config = TINY | said
        weights = random_weights(hf_shapes(architecture_named("kimi-linear"), config))
        with open_huggingface(write_folder(tmp_path / str(number), config, stored(weights)), context) as model:
            assert ["full_attention" if it else "linear_attention" for it in kv_heads(model)] == wanted


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"linear_attn_config": LINEAR | {"kda_layers": [1, 2]}}, "layer 4 in none of"),
        ({"linear_attn_config": LINEAR | {"full_attn_layers": [3, 4]}}, r"has 4 in .*full_attn_layers"),
        ({"linear_attn_config": LINEAR | {"full_attn_layers": [3, 5]}}, "list layers from 1 to 4"),
        ({"linear_attn_config": LINEAR | {"full_attn_layers": "3"}}, "list layers from 1 to 4"),
        ({"linear_attn_config": LINEAR | {"num_heads": 2}}, "as many heads in linear attention"),
        ({"q_lora_rank": 6}, "queries of the whole width"),
        ({"moe_renormalize": False}, "by their sum"),
        ({"moe_router_activation_func": "softmax"}, "sigmoid only"),
        ({"tie_word_embeddings": True}, "output matrix of its own"),
        ({"mla_use_nope": False}, "rotates nothing"),
    ],
)
def test_what_cannot_be_is_refused(said: dict[str, Any], words: str, tmp_path: Path, context: OpenContext) -> None:
    folder = model_folder(tmp_path / "model", "kimi-linear")
    (folder / "config.json").write_text(json.dumps(TINY | said))
    with pytest.raises(ModelError, match=words):
        open_huggingface(folder, context)


def test_a_configuration_of_its_own_says_what_loaders_look_for(tmp_path: Path) -> None:
    qconv.convert_model(model_folder(tmp_path / "source", "kimi-linear"), tmp_path / "model.gguf", "f32")
    convert_without_source(tmp_path / "model.gguf", tmp_path / "back", "hf")
    found = json.loads((tmp_path / "back" / "config.json").read_text())
    assert found["linear_attn_config"] == LINEAR
    assert found["layer_types"] == KINDS
    for key in ("num_experts", "num_experts_per_token", "num_shared_experts", "num_key_value_heads"):
        assert found[key] == TINY[key]


def test_pruned_layers_are_counted_anew(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "source", "kimi-linear")
    with qconv.open(source) as model:
        write_model(prune_layers(model, frozenset({1})), tmp_path / "back", "hf")
    found = json.loads((tmp_path / "back" / "config.json").read_text())
    assert found["linear_attn_config"] == LINEAR | {"kda_layers": [1, 3], "full_attn_layers": [2]}
    with qconv.open(tmp_path / "back") as pruned:
        assert kv_heads(pruned) == [0, 1, 0]


def test_dense_layers_as_transformers_names_them(tmp_path: Path, context: OpenContext) -> None:
    weights = random_weights(hf_shapes(architecture_named("kimi-linear"), TINY))
    assert "model.layers.0.mlp.gate_proj.weight" in weights
    renamed = {name.replace(".mlp.", ".block_sparse_moe."): array for name, array in weights.items()}
    source = write_folder(tmp_path / "source", TINY, stored(renamed))
    qconv.convert_model(source, tmp_path / "model.gguf", "f32")
    qconv.convert_model(tmp_path / "model.gguf", tmp_path / "back")
    with open_huggingface(source, context) as one, open_huggingface(tmp_path / "back", context) as other:
        assert one.tensors.keys() == other.tensors.keys()
    with safe_open(tmp_path / "back" / "model.safetensors", "np") as file:
        assert set(file.keys()) == set(renamed)


def test_rates_come_back_from_files_that_leave_out_axes(tmp_path: Path) -> None:
    """llama.cpp's own quantizer drops axes of one in front."""
    source = model_folder(tmp_path / "source", "kimi-linear")
    qconv.convert_model(source, tmp_path / "model.gguf", "f32")
    with qconv.open(tmp_path / "model.gguf") as model:
        assert model.tensors["blk.0.ssm_a"].shape == (1, 1, 4, 1)
        short = {
            key: replace(it, shape=it.shape[2:]) if key.endswith("ssm_a") else it for key, it in model.tensors.items()
        }
        changed = replace(model, tensors=short)
        write_model(changed, tmp_path / "back", "hf")
        whole, again = (next(iter(forward(load_network(it), [[1, 2, 3]]))).logits for it in (model, changed))
        assert np.array_equal(whole, again)
    with qconv.open(source) as one, qconv.open(tmp_path / "back") as other:
        rates = [it.tensors["blk.0.ssm_a"] for it in (one, other)]
        assert rates[0].shape == rates[1].shape
        assert np.abs(rates[0].rows(0, 4) - rates[1].rows(0, 4)).max() < 1e-6


LONG = [int(token) for token in np.random.default_rng(9).integers(3, VOCABULARY, 150)]


@pytest.mark.oracles
@pytest.mark.filterwarnings("ignore")
def test_a_long_text_at_once_and_token_by_token(tmp_path: Path, context: OpenContext) -> None:
    """Longer than chunks of the delta rule here (16), in llama.cpp and in transformers (64)."""
    import torch

    source = save(tmp_path / "model", case("kimi-linear", "KimiLinearForCausalLM", **KIMI_LINEAR))
    with torch.no_grad():
        wanted = source(torch.tensor([LONG])).logits[0].numpy()
    with open_huggingface(tmp_path / "model", context) as folder:
        path = write_f32(tmp_path / "model.gguf", folder)
        network = load_network(folder)
        whole = np.concatenate([it.logits for it in forward(network, [LONG])])
        cache, parts = FloatCache(network.configuration, (len(LONG),)), []
        for part in (LONG[:19], *([token] for token in LONG[19:])):
            parts += [it.logits for it in forward(network, [part], cache=cache)]
    for found in (whole, np.concatenate(parts)):
        difference = np.abs(found - wanted).max() / np.abs(wanted).max()
        print(f"{len(LONG)} tokens: {difference:.1e}")
        assert difference < 2e-5
    difference = np.abs(log_softmax(logits(path, LONG)) - log_softmax(wanted)).max()
    print(f"llama.cpp: {difference:.1e}")
    assert difference < 1e-3
