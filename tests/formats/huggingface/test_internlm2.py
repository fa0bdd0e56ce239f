"""InternLM 2, which transformers has no class for: a Llama whose weights lie as InternLM's do, its logits the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from f32_gguf import write_f32
from llamacpp_models import logits
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from transformers_models import PROMPTS, case, expected, log_softmax, save

import qconv
from qconv.formats.base import OpenContext
from qconv.formats.huggingface import open_huggingface
from qconv.runtime.building.network import load_network
from qconv.runtime.forward import forward

HEADS, KV_HEADS, SIZE, HIDDEN = 4, 2, 16, 64
PARTS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}


def as_internlm(folder: Path) -> Any:
    """Save a random Llama in InternLM's names and order; return the Llama."""
    model = save(folder, case("llama", "LlamaForCausalLM", rope_parameters={"rope_type": "default", "rope_theta": 1e6}))
    tensors = load_file(folder / "model.safetensors")
    found: dict[str, NDArray[Any]] = {
        "model.tok_embeddings.weight": tensors["model.embed_tokens.weight"],
        "model.norm.weight": tensors["model.norm.weight"],
        "output.weight": tensors["lm_head.weight"],
    }
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        for name, other in PARTS.items():
            found[f"{prefix}{other}.weight"] = tensors[f"{prefix}{name}.weight"]
        query, key, value = (
            tensors[f"{prefix}self_attn.{kind}_proj.weight"].reshape(KV_HEADS, -1, SIZE, HIDDEN) for kind in "qkv"
        )
        found[f"{prefix}attention.wqkv.weight"] = np.concatenate([query, key, value], axis=1).reshape(-1, HIDDEN)
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False}
    (folder / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.oracles
@pytest.mark.usefixtures("no_tokenizer")
def test_llama_cpp_and_the_runtime_agree_with_transformers(tmp_path: Path, context: OpenContext) -> None:
    reference = as_internlm(tmp_path / "model")
    with open_huggingface(tmp_path / "model", context) as model:
        path = write_f32(tmp_path / "model.gguf", model)
        own = [block.logits for prompt in PROMPTS for block in forward(load_network(model), [prompt])]
    for prompt, found in zip(PROMPTS, own, strict=True):
        wanted = expected(reference, prompt)
        assert wanted.std() > 0.5, "the reference must not be flat, or the comparison says nothing"
        assert np.abs(log_softmax(logits(path, prompt)) - wanted).max() < 2e-2
        assert np.abs(log_softmax(found) - wanted).max() < 2e-4 * np.ptp(wanted)


@pytest.mark.oracles
@pytest.mark.usefixtures("no_tokenizer")
def test_there_and_back(tmp_path: Path) -> None:
    as_internlm(tmp_path / "model")
    qconv.convert_model(tmp_path / "model", tmp_path / "model.gguf", "f32")
    qconv.convert_model(tmp_path / "model.gguf", tmp_path / "back")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "back"))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("model", "back")]
    assert configs[0] == configs[1]
