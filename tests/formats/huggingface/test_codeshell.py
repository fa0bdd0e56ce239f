"""CodeShell, which transformers has no class for: a StarCoder2 whose weights lie as CodeShell's do, its logits the reference."""

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

PARTS = {
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "self_attn.o_proj": "attn.c_proj",
    "mlp.c_fc": "mlp.c_fc",
    "mlp.c_proj": "mlp.c_proj",
}
CONFIG = {
    "architectures": ["CodeShellForCausalLM"],
    "model_type": "codeshell",
    "vocab_size": 96,
    "n_positions": 256,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 256,
    "num_query_groups": 2,
    "group_query_attention": True,
    "position_embedding_type": "rope",
    "activation_function": "gelu_pytorch_tanh",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": False,
}


def as_codeshell(folder: Path) -> Any:
    """Save a random StarCoder2 in CodeShell's names and order; return the StarCoder2."""
    model = save(
        folder,
        case(
            "starcoder2", "Starcoder2ForCausalLM", intermediate_size=256, sliding_window=256, tie_word_embeddings=False
        ),
    )
    tensors = load_file(folder / "model.safetensors")
    found: dict[str, NDArray[Any]] = {
        "transformer.wte.weight": tensors["model.embed_tokens.weight"],
        "lm_head.weight": tensors["lm_head.weight"],
    }
    for kind in ("weight", "bias"):
        found[f"transformer.ln_f.{kind}"] = tensors[f"model.norm.{kind}"]
        for layer in range(2):
            source, prefix = f"model.layers.{layer}.", f"transformer.h.{layer}."
            for name, other in PARTS.items():
                found[f"{prefix}{other}.{kind}"] = tensors[f"{source}{name}.{kind}"]
            projections = [tensors[f"{source}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            found[f"{prefix}attn.c_attn.{kind}"] = np.concatenate(projections)
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return model


@pytest.mark.oracles
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("no_tokenizer")
def test_llama_cpp_and_the_runtime_agree_with_transformers(tmp_path: Path, context: OpenContext) -> None:
    reference = as_codeshell(tmp_path / "model")
    with open_huggingface(tmp_path / "model", context) as model:
        path = write_f32(tmp_path / "model.gguf", model)
        own = [block.logits for prompt in PROMPTS for block in forward(load_network(model), [prompt])]
    for prompt, found in zip(PROMPTS, own, strict=True):
        wanted = expected(reference, prompt)
        assert wanted.std() > 0.5, "the reference must not be flat, or the comparison says nothing"
        theirs = np.abs(log_softmax(logits(path, prompt)) - wanted).max()
        ours = np.abs(log_softmax(found) - wanted).max() / np.ptp(wanted)
        print(f"codeshell: {theirs:.1e} {ours:.1e}")
        assert theirs < 2e-2
        assert ours < 2e-4


@pytest.mark.oracles
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("no_tokenizer")
def test_there_and_back(tmp_path: Path) -> None:
    as_codeshell(tmp_path / "model")
    qconv.convert_model(tmp_path / "model", tmp_path / "model.gguf", "f32")
    qconv.convert_model(tmp_path / "model.gguf", tmp_path / "back")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "back"))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == CONFIG
