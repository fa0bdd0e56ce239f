"""Yarn's keys in GGUF files: what llama.cpp makes of them, and where it and qconv differ, with a note."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversions import without_source, write_model
from f32_gguf import write_f32
from huggingface_folder import architecture_named
from llamacpp_models import logits
from tiny_networks import CONTEXT, FAMILIES, in_memory
from transformers_models import CASES, PROMPTS, expected, log_softmax, save

from qconv.formats.base import Model, OpenContext
from qconv.formats.gguf import open_gguf
from qconv.formats.huggingface import open_huggingface
from qconv.formats.metadata import float32, string, uint32
from qconv.formats.yarn import Magnitudes, keys_of_magnitudes, note_unread, yarn_magnitudes
from qconv.runtime.building.network import load_network
from qconv.runtime.forward import forward

ROUNDING = 1e-3  # of log-probabilities, in two orders of summation
Keys = dict[str, Any]
BETAS: Keys = {"yarn_beta_fast": 8.0, "yarn_beta_slow": 3.0}
FOLLOWED: tuple[tuple[str, Keys], ...] = (
    ("llama", {}),
    ("llama", {"yarn_log_multiplier": 0.1}),
    ("llama", {"attn_factor": 0.7}),
    ("deepseek2", {}),
    ("deepseek2", {"attn_factor": 0.7}),
    ("deepseek2", {"attn_factor": 0.7, "yarn_log_multiplier": 0.0707}),
    ("deepseek3", {"yarn_log_multiplier": 0.1}),
    ("deepseek32", {}),
    ("deepseek32", {"attn_factor": 0.7, "yarn_log_multiplier": 0.0707}),
    ("mistral4", {"yarn_log_multiplier": 0.0707}),
    ("mistral3", {"attn_factor": 0.7, "yarn_log_multiplier": 0.5}),
    ("mistral3", BETAS),
    ("glm-dsa", {"attn_factor": 0.7}),
    ("llama", {"type": "linear"}),
    ("deepseek2", {"type": "linear"}),
    ("deepseek3", {"type": "linear", "yarn_log_multiplier": 0.0707}),
    ("deepseek32", {"type": "linear"}),
)
NOTED: tuple[tuple[str, Keys], ...] = (
    ("llama", BETAS),
    ("deepseek2", BETAS),
    ("glm-dsa", {"yarn_log_multiplier": 0.1}),
    ("gemma3", {"attn_factor": 0.7}),
)


def with_yarn(model: Model, keys: Keys) -> Model:
    """Return the model without tables of frequencies, its rotary scaling replaced by yarn, or another ``type``, with ``keys``."""
    prefix = f"{model.architecture}.rope.scaling."
    metadata = {key: field for key, field in model.metadata.items() if not key.startswith(prefix)}
    metadata |= {
        f"{prefix}type": string(keys.get("type", "yarn")),
        f"{prefix}factor": float32(4.0),
        f"{prefix}original_context_length": uint32(64),
        **{prefix + key: float32(value) for key, value in keys.items() if key != "type"},
    }
    if (length := f"{model.architecture}.attention.temperature_length") in metadata:
        metadata[length] = uint32(64)
    tensors = {name: it for name, it in model.tensors.items() if not name.startswith("rope_")}
    return replace(model, metadata=metadata, tensors=tensors)


@pytest.mark.oracles
@pytest.mark.usefixtures("no_tokenizer")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "keys"), [*FOLLOWED, *NOTED])
def test_keys_mean_what_llama_cpp_makes_of_them_or_a_note_tells(
    name: str, keys: Keys, tmp_path: Path, context: OpenContext
) -> None:
    """Both in the forward pass and, by transformers, in the folder that is written."""
    import transformers

    case = next(item for item in CASES if item.name == name)
    save(tmp_path / "model", case)
    with open_huggingface(tmp_path / "model", context) as opened:
        path = write_f32(tmp_path / "model.gguf", with_yarn(without_source(opened), keys))
    with open_gguf(path, CONTEXT) as model:
        network = load_network(model)
        ours = [log_softmax(block.logits) for prompt in PROMPTS for block in forward(network, [prompt])]
        write_model(model, tmp_path / "back", "hf")
    again = getattr(transformers, case.class_name).from_pretrained(tmp_path / "back").eval()
    for prompt, found in zip(PROMPTS, ours, strict=True):
        assert np.abs(expected(again, prompt) - found).max() < 3 * ROUNDING
    worst = max(np.abs(log_softmax(logits(path, prompt)) - it).max() for prompt, it in zip(PROMPTS, ours, strict=True))
    print(f"{name} {keys}: {worst:.1e}, notes {network.notes}")
    if (name, keys) in FOLLOWED:
        assert network.notes == ()
        assert worst < ROUNDING
    else:
        (note,) = network.notes
        assert "llama.cpp" in note
        assert all(key in note for key in keys)
        assert worst > 0.1, "the note would warn of nothing"


@pytest.mark.parametrize("name", [name for name in FAMILIES if architecture_named(name).rope is not None])
def test_any_magnitudes_that_a_family_has_can_be_said(name: str) -> None:
    architecture = architecture_named(name)
    for turned in (1.0, 0.8, 1.0 + 0.1 * np.log(4.0), 2.5):
        for square in (1.0, 0.64, 1.3, turned**2):
            wanted = Magnitudes(turned, square if architecture.rope and architecture.rope.log_multiplier else 1.0)
            for yarn in (True, False):
                keys = keys_of_magnitudes(architecture, 4.0, wanted, yarn=yarn)
                found = yarn_magnitudes(architecture, 4.0, *keys, yarn=yarn)
                assert (found.turned, found.logits) == pytest.approx((wanted.turned, wanted.logits), rel=1e-5)


def test_nothing_is_told_of_keys_that_do_nothing() -> None:
    for name in ("llama", "glm-dsa", "gemma3"):
        model = in_memory(name, Path("tiny"))
        usual = {"yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0, "yarn_log_multiplier": 0.0, "attn_factor": 1.0}
        for keys in ({}, usual):
            assert note_unread(architecture_named(name), with_yarn(model, keys).metadata) == ()
        prefix = f"{model.architecture}.rope.scaling."
        unscaled = {**model.metadata, **{prefix + key: float32(value) for key, value in BETAS.items()}}
        unscaled.pop(f"{prefix}type", None)
        assert note_unread(architecture_named(name), unscaled) == ()
