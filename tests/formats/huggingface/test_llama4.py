"""Llama 4: what its checkpoints have that others have not, and texts of more than one chunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
from llamacpp_models import logits as llamacpp_logits
from tiny_networks import logits, network, open_folder, tokens
from transformers_models import LLAMA4, VOCABULARY, case, expected, log_softmax, save

from qconv.errors import ModelError
from qconv.formats.base import OpenContext
from qconv.formats.huggingface import open_huggingface
from qconv.runtime.building.network import load_network
from qconv.runtime.forward import forward

pytestmark = pytest.mark.usefixtures("no_tokenizer")


def test_the_text_model_of_a_multimodal_checkpoint(tmp_path: Path, context: OpenContext) -> None:
    text = CONFIGS["llama4"] | {"no_rope_layers": [], "attn_temperature_tuning": 4}
    weights = random_weights(hf_shapes(architecture_named("llama4"), text))
    inside = {f"language_model.{key}": value for key, value in weights.items()}
    vision = random_weights({"vision_model.class_embedding": (4,), "multi_modal_projector.linear_1.weight": (4, 4)})
    config = {"architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4", "text_config": text}
    write_folder(tmp_path / "model", config, stored(inside | vision))
    with open_huggingface(tmp_path / "model", context) as model:
        assert model.architecture == "llama4"
        assert any("vision tower" in note for note in model.notes)
        dense = {name for name in model.tensors if name.startswith("blk.0.ffn_")}
        assert dense == {f"blk.0.ffn_{kind}.weight" for kind in ("norm", "gate", "up", "down")}
        joined = weights["model.layers.1.feed_forward.experts.gate_up_proj"]
        gate, down = model.tensors["blk.1.ffn_gate_exps.weight"], model.tensors["blk.1.ffn_down_exps.weight"]
        assert gate.shape == (3, 12, 16)
        assert np.array_equal(gate.rows(0, 36).reshape(gate.shape), joined[:, :, :12].swapaxes(1, 2))
        own = weights["model.layers.1.feed_forward.experts.down_proj"]
        assert np.array_equal(down.rows(0, 48).reshape(down.shape), own.swapaxes(1, 2))
        assert model.tensors["blk.0.ffn_up.weight"].shape == (20, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_local_experts": 128}, "unless there are 128 experts"),
        ({"use_qk_norm": False}, "unless there are 128 experts"),
        ({"attn_temperature_tuning": False}, "queries of layers without rotations grow"),
        ({"no_rope_layer_interval": 3}, "every fourth layer"),
        ({"attention_bias": True}, "no biases"),
    ],
)
def test_what_llama_cpp_has_no_keys_for_is_refused(
    tmp_path: Path, context: OpenContext, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        open_huggingface(model_folder(tmp_path / "model", "llama4", **change), context)


def test_other_constants_than_llama_cpps_are_told(tmp_path: Path, context: OpenContext) -> None:
    with open_huggingface(model_folder(tmp_path / "model", "llama4", attn_scale=0.2), context) as model:
        notes = " ".join(model.notes)
    assert all(key in notes for key in ("attention_chunk_size is 7", "floor_scale is 5", "attn_scale is 0.2"))
    usual = model_folder(tmp_path / "usual", "llama4", attention_chunk_size=8192, floor_scale=8192)
    with open_huggingface(usual, context) as model:
        assert not any("llama.cpp" in note for note in model.notes)


def test_chunks_and_temperatures_show() -> None:
    text = tokens(24)
    usual = {"attention_chunk_size": 8192, "floor_scale": 8192}
    (level,) = logits(network("llama4", **usual), text)
    for change, first in (({"attention_chunk_size": 7}, 7), ({"floor_scale": 5}, 4)):
        (found,) = logits(network("llama4", **usual | change), text)
        assert np.allclose(found[:first], level[:first], rtol=0, atol=1e-5)
        assert np.abs(found[first:] - level[first:]).max() > 1e-3


@pytest.mark.oracles
@pytest.mark.filterwarnings("ignore")
def test_a_text_of_more_than_one_chunk(tmp_path: Path, context: OpenContext) -> None:
    """Chunks and temperatures of 8192 positions, as llama.cpp has them, and the predictions behind the first."""
    sizes = {"num_hidden_layers": 4, "num_attention_heads": 1, "num_key_value_heads": 1, "hidden_size": 32}
    long = case("long", "Llama4ForCausalLM", **LLAMA4 | sizes, max_position_embeddings=16384)
    reference = save(tmp_path / "model", long)
    text = [int(token) for token in np.random.default_rng(3).integers(3, VOCABULARY, 8230)]
    wanted = expected(reference, text)[8180:]
    with open_huggingface(tmp_path / "model", context) as model:
        path = write_f32(tmp_path / "model.gguf", model)
    assert np.abs(log_softmax(llamacpp_logits(path, text)[8180:]) - wanted).max() < 2e-2
    with open_folder(tmp_path / "model") as model:
        found = [it.logits for it in forward(load_network(model), [text], wanted=slice(8180, None))]
    assert np.abs(log_softmax(np.concatenate(found)) - wanted).max() < 2e-4
    # what is seen of one chunk, or a temperature of 1, would give others
    for key, value in (("attention_chunk_size", 16384), ("attn_scale", 0.0)):
        for layer in reference.model.layers:
            layer.self_attn.attn_scale = value if key == "attn_scale" else 0.1
        reference.config.attention_chunk_size = value if key == "attention_chunk_size" else 8192
        assert np.abs(expected(reference, text)[8192:] - wanted[12:]).max() > 1e-2, key
