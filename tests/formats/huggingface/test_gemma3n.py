"""Gemma 3n: what llama.cpp has fixed is refused where a model has it otherwise, and the table of embeddings per layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversions import convert_without_source
from huggingface_folder import CONFIGS, architecture_named, hf_shapes, random_weights, stored, write_folder
from memory_model import tensor
from tiny_networks import open_folder

import qconv
from qconv.errors import MissingTensorError, ModelError
from qconv.formats.architectures import TRANSFORMS
from qconv.formats.huggingface.configuration import check_configuration, read_hyper_parameters

GEMMA3N = architecture_named("gemma3n")
CONFIG = CONFIGS["gemma3n"]
PATH = Path("config.json")
KINDS = ["sliding_attention"] * 4 + ["full_attention"]
TABLE = "model.embed_tokens_per_layer.weight"


@pytest.mark.parametrize(
    "changes",
    [
        {"num_kv_shared_layers": 6},
        {"num_kv_shared_layers": None},
        {"hidden_size_per_layer_input": 128},
        {"laurel_rank": 32},
        {"altup_num_inputs": 3},
        {"altup_active_idx": 1},
        {"altup_correct_scale": False},
        {"final_logit_softcapping": 20.0},
        {"activation_sparsity_pattern": [0.9] * 10 + [0.0] * 15},
        {"activation_sparsity_pattern": [0.95] * 9 + [0.0] * 16},
        {"activation_sparsity_pattern": [0.95] * 11 + [0.0] * 14},
        {"activation_sparsity_pattern": None},
        {"layer_types": KINDS[:3] * 8 + KINDS[4:]},
        {"layer_types": KINDS[:4] * 6 + KINDS[4:]},
        {"attention_bias": True},
        {"hidden_activation": "silu"},
    ],
)
def test_what_llama_cpp_has_fixed(changes: dict[str, Any]) -> None:
    config = CONFIG | {"layer_types": KINDS * 5}
    check_configuration(GEMMA3N, config, read_hyper_parameters(GEMMA3N, config, PATH), PATH)
    with pytest.raises(ModelError):
        odd = config | changes
        check_configuration(GEMMA3N, odd, read_hyper_parameters(GEMMA3N, odd, PATH), PATH)


def test_a_first_row_that_stands_for_those_that_are_not_there() -> None:
    transform = TRANSFORMS["repeat_first_row"]
    rows = np.arange(15, dtype=np.float32).reshape(5, 3)
    (longer,) = transform.forward([tensor("x", rows)], {"rows": 5, "total": 8})
    assert longer.shape == (8, 3)
    wanted = np.concatenate([rows, rows[[0, 0, 0]]])
    for start in range(8):
        for stop in range(start + 1, 9):
            assert np.array_equal(longer.rows(start, stop), wanted[start:stop])
    (again,) = transform.inverse([longer], {"rows": 5, "total": 8})
    assert again.shape == (5, 3)
    assert np.array_equal(again.rows(0, 5), rows)
    for arguments in ({"rows": 4, "total": 8}, {"rows": 5, "total": 4}):
        with pytest.raises(ModelError, match="has no"):
            transform.forward([tensor("x", rows)], arguments)
    with pytest.raises(ModelError, match="has no 9 rows"):
        transform.inverse([longer], {"rows": 9, "total": 9})


@pytest.mark.usefixtures("no_tokenizer")
def test_the_table_of_embeddings_there_and_back(tmp_path: Path) -> None:
    write_folder(tmp_path / "source", CONFIG, stored(random_weights(hf_shapes(GEMMA3N, CONFIG))))
    qconv.convert_model(tmp_path / "source", tmp_path / "model.gguf", "bf16")
    with qconv.open(tmp_path / "model.gguf") as model:
        table = model.tensors["per_layer_token_embd.weight"]
        assert table.shape == (24, 25 * 256)
        assert np.array_equal(table.rows(20, 24), np.repeat(table.rows(0, 1), 4, axis=0))
    qconv.convert_model(tmp_path / "model.gguf", tmp_path / "back")
    convert_without_source(tmp_path / "model.gguf", tmp_path / "rebuilt", "hf")
    for folder, rows in (("back", 20), ("rebuilt", 24)):
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert config["vocab_size_per_layer_input"] == rows
        with open_folder(tmp_path / folder) as model:
            assert model.tensors["per_layer_token_embd.weight"].shape == (24, 25 * 256)
    found = json.loads((tmp_path / "rebuilt" / "config.json").read_text())
    known = {
        key: value for key, value in CONFIG.items() if key not in ("intermediate_size", "vocab_size_per_layer_input")
    }
    assert {key: found[key] for key in known} == known
    assert found["intermediate_size"] == [24] * 25
    assert found["layer_types"] == KINDS * 5
    assert (found["altup_num_inputs"], found["altup_correct_scale"], found["laurel_rank"]) == (4, True, 64)


def test_keys_of_shared_layers_are_demanded_as_llama_cpp_demands_them(tmp_path: Path) -> None:
    weights = random_weights(hf_shapes(GEMMA3N, CONFIG))
    read = {name: array for name, array in weights.items() if ".24.self_attn.k_" not in name}
    write_folder(tmp_path / "m", CONFIG, stored(read))
    with pytest.raises(MissingTensorError, match=r"layers\.24\.self_attn\.k_proj"), open_folder(tmp_path / "m"):
        pass
