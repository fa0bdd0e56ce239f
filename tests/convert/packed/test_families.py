"""GPTQ and AWQ folders of every family: they come back, scaled ones predict the same, experts have names or are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from huggingface_folder import CONFIGS, architecture_named, hf_shapes, random_weights, stored, write_folder
from safetensors.numpy import load_file
from tiny_networks import CONTEXT, in_memory, logits, open_folder, tokens

from qconv.convert.calibration.second_moments import MomentJob, measure_moments
from qconv.convert.measure import Subject
from qconv.convert.packed.folder import PackedRequest, plan_packed, run_packed
from qconv.convert.settings import Settings
from qconv.errors import EncodingError, ModelError
from qconv.formats.base import Model
from qconv.formats.calibration import open_calibration
from qconv.plugins.manager import load_plugins
from qconv.runtime.building.network import load_network
from qconv.runtime.measuring.identity import ModelIdentity, Text
from qconv.runtime.measuring.windows import cut_standard

REGISTRIES = load_plugins("").registries()

SIZES = {
    "intermediate_size": 24,
    "intermediate_size_mlp": 24,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
LATENT = {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
FAMILIES = tuple(name for name in CONFIGS if name not in ("gpt-oss", "granitemoe", "granitehybrid"))
# packed folders have no stacked experts
DENSE: dict[str, dict[str, Any]] = {
    "gemma4": {"enable_moe_block": False, "num_experts": None, "head_dim": 8, "hidden_size_per_layer_input": 8}
}


def tiny(family: str, folder: Path, **more: Any) -> Model:
    latent = {key: value for key, value in LATENT.items() if CONFIGS[family].get(key) != 0}
    latent = latent if "kv_lora_rank" in CONFIGS[family] else {}
    latent = latent | ({"q_lora_rank": 8} if "q_lora_rank" in CONFIGS[family] else {})
    known = {key: value for key, value in SIZES.items() if key in CONFIGS[family]}
    return in_memory(family, folder / "tiny", **known | latent | DENSE.get(family, {}) | more)


def tiny_calibration(model: Model, path: Path) -> Path:
    """Measure second moments on random tokens."""

    tokenizer: Any = SimpleNamespace(digest=lambda: "0" * 64)
    found = Subject(replace(model, path=path), load_network(model), tokenizer, ModelIdentity("", "", "", ()))
    windows = cut_standard(tokens(256), 32, None)
    measure_moments(MomentJob(found, [Text("random", "", "0" * 64)], windows), path, memory=1 << 30)
    return path


def pack(model: Model, output: Path, request: PackedRequest, **settings: Any) -> dict[str, Any]:
    planned = plan_packed(model, output, request, Settings(**settings), REGISTRIES)
    run_packed(planned, False, lambda count: None)
    return {"notes": planned.plan.notes, "linears": [it.name for it in planned.linears]}


@pytest.mark.parametrize("packing", ["gptq", "awq"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back(family: str, packing: Any, tmp_path: Path) -> None:
    model = tiny(family, tmp_path)
    done = pack(model, tmp_path / "out", PackedRequest(packing, group_size=8))
    with open_folder(tmp_path / "out") as found:
        assert {name: it.shape for name, it in found.tensors.items()} == {
            name: it.shape for name, it in model.tensors.items()
        }
        for name, tensor in model.tensors.items():
            before = tensor.rows(0, tensor.row_count)
            after = found.tensors[name].rows(0, tensor.row_count)
            matrix = name.startswith("blk.") and before.shape[0] > 1 and "norm" not in name and "gate_inp" not in name
            assert np.abs(after - before).max() <= (0.12 if matrix else 0.002) * max(1, np.abs(before).max())
    assert len(done["linears"]) == len(set(done["linears"])) >= 8


@pytest.mark.parametrize("family", ["llama", "mixtral", "qwen2moe", "phi3", "gpt2", "deepseek2", "falcon", "gemma2"])
def test_scaled_families_predict_the_same(family: str, tmp_path: Path) -> None:
    """What AWQ divides norms, values and rows by, it multiplies elsewhere: predictions are those of rounded weights, no worse."""
    model = tiny(family, tmp_path)
    calibration = tiny_calibration(model, tmp_path / "cal.gguf")
    losses = []
    (before,) = logits(load_network(model), tokens(24, seed=5))
    for number, words in enumerate(({}, {"calibration": calibration})):
        pack(model, tmp_path / str(number), PackedRequest("awq", group_size=8), **words)
        with open_folder(tmp_path / str(number)) as found:
            (after,) = logits(load_network(found), tokens(24, seed=5))
        losses.append(
            float(np.square(after - before).mean() / np.square(before - before.mean(1, keepdims=True)).mean())
        )
    assert losses[1] < max(1.5 * losses[0], 0.02)


def test_every_expert_has_a_name(tmp_path: Path) -> None:
    """A checkpoint that has its experts in stacks becomes one that names them, as loaders of packed folders want."""
    settings = CONFIGS["mixtral"] | {"intermediate_size": 24}
    shapes = {
        name: shape
        for name, shape in hf_shapes(architecture_named("mixtral"), settings, optional=True).items()
        if "block_sparse_moe" not in name and ".bias" not in name
    }
    write_folder(tmp_path / "stacked", settings, stored(random_weights(shapes)))
    with open_folder(tmp_path / "stacked") as model:
        done = pack(model, tmp_path / "out", PackedRequest("gptq", group_size=8))
    assert "model.layers.1.block_sparse_moe.experts.2.w3" in done["linears"]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert "model.layers.0.block_sparse_moe.gate.weight" in tensors
    assert not any("gate_up_proj" in name for name in tensors)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["dynamic"] == {r"-:model\.layers\.\d+\.block_sparse_moe\.gate$": {}}
    with open_folder(tmp_path / "out") as model:
        pack(model, tmp_path / "awq", PackedRequest("awq", group_size=8))
    config = json.loads((tmp_path / "awq" / "config.json").read_text())["quantization_config"]
    assert config["modules_to_not_convert"] == [f"model.layers.{it}.block_sparse_moe.gate" for it in (0, 1)]


@pytest.mark.parametrize(("family", "place"), [("mistral4", "mlp"), ("llama4", "feed_forward")])
def test_experts_that_transformers_stacks_have_names_too(family: str, place: str, tmp_path: Path) -> None:
    done = pack(tiny(family, tmp_path), tmp_path / "out", PackedRequest("gptq", group_size=8))
    assert f"model.layers.1.{place}.experts.2.gate_proj" in done["linears"]
    assert not any("gate_up_proj" in name for name in load_file(tmp_path / "out" / "model.safetensors"))


def test_experts_without_tokens_are_named(tmp_path: Path) -> None:
    model = tiny("mixtral", tmp_path, num_local_experts=12, num_experts_per_tok=1)
    calibration = tiny_calibration(model, tmp_path / "cal.gguf")
    with open_calibration(calibration, CONTEXT) as file:
        unseen = [
            f"model.layers.{layer}.block_sparse_moe.experts.{expert}"
            for layer in (0, 1)
            for expert in np.flatnonzero(file.counts(f"blk.{layer}.ffn_down_exps.weight") == 0)
        ]
    assert unseen
    done = pack(model, tmp_path / "out", PackedRequest("gptq", group_size=8), calibration=calibration)
    (note,) = (it for it in done["notes"] if "no token met" in it)
    assert unseen[0] in note


@pytest.mark.parametrize("family", ["gpt-oss", "granitemoe", "granitehybrid"])
def test_experts_without_names_are_refused(family: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds all experts in one"):
        pack(in_memory(family, tmp_path / "tiny"), tmp_path / "out", PackedRequest("gptq", group_size=8))


def test_sizes_that_words_do_not_fill_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EncodingError, match=r"20 × 16 weights.*multiples of 8") as error:
        pack(in_memory("llama", tmp_path / "tiny"), tmp_path / "out", PackedRequest("awq", group_size=8))
    assert error.value.tensor == "model.layers.0.mlp.gate_proj"


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path)
    name = "blk.1.attn_v.weight"
    whole = model.tensors[name]
    broken = replace(whole, read=lambda start, stop: np.full((stop - start, 4 * whole.columns), 255, np.uint8))
    model = replace(model, tensors={**model.tensors, name: broken})
    with pytest.raises(EncodingError, match="not finite") as error:
        pack(model, tmp_path / "out", PackedRequest("gptq", group_size=8))
    assert error.value.tensor == "model.layers.1.self_attn.v_proj"
    assert not list(tmp_path.iterdir())
