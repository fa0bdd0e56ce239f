"""EXL2 folders of families that have experts or fused projections: names, moments, and the weights that were chosen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tiny_networks import in_memory, logits, open_folder, tokens

from qconv.convert.exl2 import folder as exl2_folder
from qconv.convert.exl2.folder import Exl2Request, Exl2Result, write_exl2
from qconv.convert.exl2.modules import Exl2Linear, exl2_subject
from qconv.convert.measure import Subject
from qconv.errors import ModelError
from qconv.formats.base import Model
from qconv.plugins.manager import load_plugins
from qconv.quantizers.rounding.exl2_options import feed_forward_options
from qconv.quantizers.rounding.exl2_rounding import Exl2Matrix
from qconv.runtime.building.network import load_network
from qconv.runtime.measuring.identity import ModelIdentity
from qconv.runtime.measuring.windows import cut_standard

REGISTRIES = load_plugins("").registries()
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "qwen3moe": {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
    "phi3": {},
}

Floats = NDArray[np.float32]


def subject_of(model: Model, path: Path) -> Subject:
    tokenizer: Any = SimpleNamespace(digest=lambda: "0" * 64)
    model = replace(model, path=path)
    return Subject(model, load_network(model), tokenizer, ModelIdentity("0", "", "", ()))


def quantize(
    model: Model, output: Path, monkeypatch: pytest.MonkeyPatch, **request: Any
) -> tuple[Exl2Result, dict[str, tuple[Exl2Linear, Exl2Matrix]]]:
    """Write a folder; return what came of it, and every matrix as it was chosen."""
    chosen: dict[str, tuple[Exl2Linear, Exl2Matrix]] = {}
    save = exl2_folder._Store.save

    def keep(self: Any, linear: Exl2Linear, matrix: Exl2Matrix) -> None:
        chosen[linear.name] = (linear, matrix)
        save(self, linear, matrix)

    monkeypatch.setattr(exl2_folder._Store, "save", keep)
    windows = cut_standard(tokens(256), 32, None)
    asked = Exl2Request(5.0, threads=1, **request)
    return write_exl2(subject_of(model, output), REGISTRIES, windows, output, asked), chosen


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reader_gives_the_chosen_weights(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = in_memory(family, tmp_path / "tiny", **SIZES | FAMILIES[family])
    measurement = tmp_path / "measurement.json"
    _, chosen = quantize(model, tmp_path / "out", monkeypatch, measurement=measurement)
    with open_folder(tmp_path / "out") as found:
        assert found.tensors.keys() == model.tensors.keys()
        for linear, matrix in chosen.values():
            weights = matrix.weights[: linear.outputs]
            tensor = found.tensors[linear.canonical]
            after = tensor.rows(linear.first, linear.first + linear.outputs)
            np.testing.assert_array_equal(after, linear.in_pass(weights))
            before = model.tensors[linear.canonical].rows(linear.first, linear.first + linear.outputs)
            assert np.abs(after - before).mean() < 0.4 * np.abs(before).mean()  # some have 2 or 3 bits
        (after,), (before,) = (logits(load_network(it), tokens(20, seed=3)) for it in (found, model))
        assert np.corrcoef(after.ravel(), before.ravel())[0, 1] > 0.9
    modules = json.loads(measurement.read_text())["measurement"]
    attention, feed_forward = list(modules)[:2]
    assert attention == "model.layers.0.self_attn"
    if family == "phi3":
        assert feed_forward == "model.layers.0.mlp"
        expected = {"gate_proj", "up_proj", "down_proj"}
    else:
        assert feed_forward == "model.layers.0.block_sparse_moe"
        expected = {"w1", "w2", "w3"}
    rows = modules[feed_forward]
    assert set(rows[0]) == expected | {"accuracy", "total_bits"}
    assert len(rows) == len(feed_forward_options())
    assert rows[-1]["accuracy"] > rows[0]["accuracy"]
    bits = {name: linear for name, (linear, _) in chosen.items() if ".self_attn." not in name and name != "lm_head"}
    places = {"w1": 0, "gate_proj": 0, "w3": 1, "up_proj": 1, "w2": 2, "down_proj": 2}
    assert rows[3]["total_bits"] == sum(
        it.bits(feed_forward_options()[3][places[it.projection]]) for it in bits.values()
    )


def test_names_are_exllamav2s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {
        "mixtral": "block_sparse_moe.experts.2.w1",
        "qwen3moe": "mlp.experts.2.gate_proj",
        "phi3": "mlp.gate_proj",
    }
    kept = {"mixtral": "block_sparse_moe.gate.weight", "qwen3moe": "mlp.gate.weight"}
    for family, name in expected.items():
        model = in_memory(family, tmp_path / "tiny", **SIZES | FAMILIES[family])
        quantize(model, tmp_path / family, monkeypatch)
        tensors = load_file(tmp_path / family / "model.safetensors")
        assert f"model.layers.0.{name}.q_weight" in tensors
        assert f"model.layers.0.self_attn.{'v_proj'}.q_weight" in tensors
        assert not any("qkv_proj" in it or "gate_up_proj" in it for it in tensors)
        if family in kept:
            assert tensors[f"model.layers.0.{kept[family]}"].dtype == np.float16


def test_what_enters_experts_counts_for_all_alike(tmp_path: Path) -> None:
    model = in_memory("mixtral", tmp_path / "tiny", **SIZES | FAMILIES["mixtral"])
    found = exl2_subject(model, load_network(model), REGISTRIES.open_context())
    module = found.modules[1]
    assert [it.moment for it in module.linears[:6]] == [("blk.0.ffn_gate_inp.weight", None)] * 6
    assert [it.moment for it in module.linears[6:]] == [("blk.0.ffn_down_exps.weight", it) for it in range(3)]
    assert [it.first for it in module.linears] == [0, 96, 192, 0, 96, 192, 0, 64, 128]


def test_experts_without_tokens_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = FAMILIES["mixtral"] | {"num_local_experts": 8, "num_experts_per_tok": 1}
    model = in_memory("mixtral", tmp_path / "tiny", **SIZES | config)
    gate = model.tensors["blk.0.ffn_gate_inp.weight"]
    rows = gate.rows(0, gate.row_count).copy()
    rows[4] = 0.0
    rows[5] = rows[6]  # of two that are alike, the second is never the best
    rows[6] = rows[5]

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        return rows[start:stop].view(np.uint8)

    model = replace(model, tensors={**model.tensors, gate.name: replace(gate, read=read)})
    result, chosen = quantize(model, tmp_path / "out", monkeypatch)
    assert result.unseen
    assert all(name.endswith(".w2") for name in result.unseen)
    _, matrix = chosen[result.unseen[0]]
    np.testing.assert_array_equal(matrix.order, np.arange(96))


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("qwen2moe", {}),
        ("deepseek2", {}),
        ("mistral4", {}),
        ("llama4", {}),
        ("llama4", {"interleave_moe_layer_step": 1}),
        ("cohere", {}),
        ("falcon", {}),
        ("olmoe", {}),
    ],
)
def test_other_families_are_refused(family: str, config: dict[str, Any], tmp_path: Path) -> None:
    model = in_memory(family, tmp_path / "tiny", **config)
    with pytest.raises(ModelError, match=r"EXL2|projection of its own"):
        exl2_subject(model, load_network(model), REGISTRIES.open_context())
