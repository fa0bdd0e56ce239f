"""Log-probabilities of the example model beside real llama.cpp's, on prose of this project."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from f32_gguf import write_f32
from llamacpp_models import logits as llamacpp_logits
from numpy.typing import NDArray
from run_cli import Cli
from tiny_networks import CONTEXT
from transformers_models import log_softmax

from qconv.formats.gguf import open_gguf
from qconv.formats.huggingface import open_huggingface
from qconv.runtime.building.network import load_network
from qconv.runtime.forward import forward

LENGTH = 512


@pytest.fixture(scope="module")
def ids(example_model: Path, root: Path) -> list[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(example_model / "tokenizer.json"))
    found = [int(token) for token in tokenizer.encode((root / "docs" / "design.md").read_text()).ids[:LENGTH]]
    assert len(found) == LENGTH
    return found


def of_the_text(log_probabilities: NDArray[np.float64], ids: list[int]) -> NDArray[np.float64]:
    """The log-probability of each token after the first."""
    return np.asarray(log_probabilities[np.arange(len(ids) - 1), ids[1:]])


def worst(path: Path, ids: list[int]) -> tuple[float, float]:
    """Largest difference of the log-probabilities of the text's tokens, and how far apart the perplexities are, as a share."""
    with open_gguf(path, CONTEXT) as model:
        found = np.concatenate([block.logits for block in forward(load_network(model), [ids])])
    ours, theirs = (of_the_text(log_softmax(rows), ids) for rows in (found, llamacpp_logits(path, ids)))
    return float(np.abs(ours - theirs).max()), abs(float(np.exp((theirs - ours).mean())) - 1)


@pytest.mark.oracles
def test_f32_is_llama_cpp_to_a_few_digits(tmp_path: Path, example_model: Path, ids: list[int]) -> None:
    with open_huggingface(example_model, CONTEXT) as model:
        difference, share = worst(write_f32(tmp_path / "f32.gguf", model), ids)
    print(f"F32: {difference:.1e}, perplexity {share:.1e}")
    assert difference < 5e-4
    assert share < 1e-5


@pytest.mark.oracles
def test_f16_is_llama_cpp_to_two_digits(tmp_path: Path, example_model: Path, ids: list[int], cli: Cli) -> None:
    """llama.cpp rounds activations to float16 there."""
    path = tmp_path / "f16.gguf"
    assert cli("hf-to-gguf", example_model, "-o", path, "--type", "f16").code == 0
    difference, share = worst(path, ids)
    print(f"F16: {difference:.1e}, perplexity {share:.1e}")
    assert difference < 1e-2
    assert share < 5e-4
