"""MiniCPM, which transformers has no class for: a Granite whose multipliers are those that MiniCPM's configuration gives, its logits the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversions import convert_without_source
from f32_gguf import write_f32
from llamacpp_models import logits
from safetensors.numpy import load_file
from transformers_models import LONGROPE, PROMPTS, case, expected, log_softmax, save

import qconv
from qconv.formats.base import OpenContext
from qconv.formats.huggingface import open_huggingface
from qconv.runtime.building.network import load_network
from qconv.runtime.forward import forward

LAYERS, HIDDEN = 2, 64
SCALES = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 128}
ROPES: dict[str, dict[str, Any]] = {
    "plain": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "longrope": {"original_max_position_embeddings": 32, "rope_parameters": LONGROPE},
}

pytestmark = [pytest.mark.oracles, pytest.mark.usefixtures("no_tokenizer"), pytest.mark.filterwarnings("ignore")]


def as_minicpm(folder: Path, rope: dict[str, Any], tied: bool) -> Any:
    """Save a random Granite under MiniCPM's configuration; return the Granite."""
    multipliers = {
        "embedding_multiplier": SCALES["scale_emb"],
        "residual_multiplier": SCALES["scale_depth"] / LAYERS**0.5,
        "logits_scaling": HIDDEN / SCALES["dim_model_base"],
        "attention_multiplier": 16**-0.5,
    }
    model = save(folder, case("granite", "GraniteForCausalLM", **multipliers, **rope, tie_word_embeddings=tied))
    config = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in config.items() if key not in multipliers}
    kept |= {"architectures": ["MiniCPMForCausalLM"], "model_type": "minicpm"} | SCALES
    (folder / "config.json").write_text(json.dumps(kept))
    return model


@pytest.mark.parametrize("kind", ROPES)
def test_llama_cpp_and_the_runtime_agree_with_transformers(kind: str, tmp_path: Path, context: OpenContext) -> None:
    reference = as_minicpm(tmp_path / "model", ROPES[kind], tied=kind == "plain")
    with open_huggingface(tmp_path / "model", context) as model:
        path = write_f32(tmp_path / "model.gguf", model)
        own = [block.logits for prompt in PROMPTS for block in forward(load_network(model), [prompt])]
    for prompt, found in zip(PROMPTS, own, strict=True):
        wanted = expected(reference, prompt)
        assert wanted.std() > 0.5, "the reference must not be flat, or the comparison says nothing"
        assert np.abs(log_softmax(found) - wanted).max() < 2e-4 * np.ptp(wanted)
        if kind == "plain" or len(prompt) > 32:  # llama.cpp goes by its context, transformers by the prompt
            assert np.abs(log_softmax(logits(path, prompt)) - wanted).max() < 2e-2


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("known", [True, False])
def test_there_and_back(kind: str, known: bool, tmp_path: Path) -> None:
    """With what the file keeps of its source and without it."""
    as_minicpm(tmp_path / "model", ROPES[kind], tied=False)
    qconv.convert_model(tmp_path / "model", tmp_path / "model.gguf", "f32")
    if known:
        qconv.convert_model(tmp_path / "model.gguf", tmp_path / "back")
    else:
        convert_without_source(tmp_path / "model.gguf", tmp_path / "back", "hf")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "back"))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("model", "back")]
    if known:
        assert configs[0] == configs[1]
    assert {key: configs[1][key] for key in SCALES} == SCALES
