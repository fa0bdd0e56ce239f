"""Mistral Large 3 as llama.cpp's converter labels it: ``deepseek2``, told from DeepSeek's models by the temperature of its queries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conversions import relabelled, without_source, write_model
from f32_gguf import write_f32
from llamacpp_models import logits
from safetensors.numpy import load_file
from tiny_networks import CONTEXT
from transformers_models import CASES, PROMPTS, Case, expected, log_softmax, save

import qconv
from qconv.formats.base import OpenContext
from qconv.formats.gguf import open_gguf
from qconv.formats.huggingface import open_huggingface
from qconv.runtime.building.network import load_network
from qconv.runtime.forward import forward

pytestmark = [pytest.mark.usefixtures("no_tokenizer"), pytest.mark.filterwarnings("ignore")]

# llama.cpp reads yarn's multiplier otherwise under the other name, unless it is that of equal scales of 1
MISTRAL4 = [it for it in CASES if it.class_name == "Mistral4ForCausalLM" and "attention" not in it.name]
ROUNDING = 1e-4  # of log-probabilities, in two orders of summation


@pytest.mark.oracles
@pytest.mark.parametrize("model_case", MISTRAL4, ids=lambda item: item.name)
def test_a_file_labelled_deepseek2_is_the_same_model(model_case: Case, tmp_path: Path, context: OpenContext) -> None:
    reference = save(tmp_path / "model", model_case)
    with open_huggingface(tmp_path / "model", context) as model:
        path = write_f32(tmp_path / "model.gguf", relabelled(without_source(model), "deepseek2"))
    with open_gguf(path, CONTEXT) as model:
        network = load_network(model)
        assert network.configuration.architecture == "mistral4"
        ours = [log_softmax(block.logits) for prompt in PROMPTS for block in forward(network, [prompt])]
    for prompt, found in zip(PROMPTS, ours, strict=True):
        wanted = expected(reference, prompt)
        assert wanted.std() > 0.5, "the reference must not be flat, or the comparison says nothing"
        theirs = log_softmax(logits(path, prompt))
        print(f"{model_case.name}: {np.abs(found - wanted).max():.1e}, llama.cpp {np.abs(theirs - wanted).max():.1e}")
        assert np.abs(found - wanted).max() < ROUNDING
        assert np.abs(theirs - wanted).max() < ROUNDING


@pytest.mark.oracles
@pytest.mark.parametrize("model_case", MISTRAL4, ids=lambda item: item.name)
def test_it_goes_back_to_hugging_face(model_case: Case, tmp_path: Path, context: OpenContext) -> None:
    import transformers

    reference = save(tmp_path / "model", model_case)
    with open_huggingface(tmp_path / "model", context) as model:
        path = write_f32(tmp_path / "model.gguf", relabelled(without_source(model), "deepseek2"))
    with qconv.open(path) as model:
        write_model(model, tmp_path / "back", "hf")
    source, back = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "back"))
    assert source.keys() == back.keys()
    for name, weights in source.items():
        assert np.array_equal(back[name], weights), name
    again = transformers.Mistral4ForCausalLM.from_pretrained(tmp_path / "back").eval()
    for prompt in PROMPTS:
        assert np.abs(expected(again, prompt) - expected(reference, prompt)).max() < ROUNDING


@pytest.mark.oracles
def test_without_the_mark_it_is_no_mistral(tmp_path: Path, context: OpenContext) -> None:
    """DeepSeek's own models must not be taken for Mistral's: what lacks the key is DeepSeek V2."""
    save(tmp_path / "model", MISTRAL4[0])
    with open_huggingface(tmp_path / "model", context) as model:
        labelled = relabelled(without_source(model), "deepseek2")
        key = "deepseek2.attention.temperature_length"
        unmarked = {name: field for name, field in labelled.metadata.items() if name != key}
        path = write_f32(tmp_path / "model.gguf", labelled)
        other = write_f32(tmp_path / "other.gguf", replace(labelled, metadata=unmarked))
    with open_gguf(path, CONTEXT) as one, open_gguf(other, CONTEXT) as two:
        assert [load_network(it).configuration.architecture for it in (one, two)] == ["mistral4", "deepseek2"]
