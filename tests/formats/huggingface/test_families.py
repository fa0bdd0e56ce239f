"""Every family: random weights by transformers, converted by qconv, run by real llama.cpp, compared in log-probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from f32_gguf import write_f32
from llamacpp_models import logits
from transformers_models import CASES, DEEP, PROMPTS, Case, expected, log_softmax, save

from qconv.formats.base import OpenContext
from qconv.formats.huggingface import open_huggingface

TOLERANCE = 2e-2


@pytest.mark.oracles
@pytest.mark.usefixtures("no_tokenizer")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_case", CASES + DEEP, ids=lambda item: item.name)
def test_llama_cpp_agrees_with_transformers(model_case: Case, tmp_path: Path, context: OpenContext) -> None:
    reference = save(tmp_path / "model", model_case)
    with open_huggingface(tmp_path / "model", context) as model:
        path = write_f32(tmp_path / "model.gguf", model)
    worst = 0.0
    for prompt in PROMPTS:
        if model_case.name in ("phi3-long", "minicpm3-long") and len(prompt) <= 32:
            continue  # transformers uses the short factors there, llama.cpp goes by the size of its context
        wanted = expected(reference, prompt)
        assert wanted.std() > 0.5, "the reference must not be flat, or the comparison says nothing"
        worst = max(worst, float(np.abs(log_softmax(logits(path, prompt)) - wanted).max()))
    print(f"{model_case.name}: {worst:.2e}")
    assert worst < TOLERANCE


@pytest.mark.oracles
@pytest.mark.filterwarnings("ignore")
def test_the_example_speaks_as_its_source(tmp_path: Path, context: OpenContext, example_model: Path) -> None:
    import torch
    import transformers

    reference = transformers.LlamaForCausalLM.from_pretrained(example_model, dtype=torch.float32).eval()
    with open_huggingface(example_model, context) as model:
        assert {tensor.encoding.name for tensor in model.tensors.values()} == {"BF16"}
        path = write_f32(tmp_path / "model.gguf", model)
    prompt = [1, *(int(token) for token in np.random.default_rng(4).integers(3, 4096, 40))]
    assert np.abs(log_softmax(logits(path, prompt)) - expected(reference, prompt)).max() < TOLERANCE
