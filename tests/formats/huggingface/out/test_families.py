"""Every family there and back: transformers' folder, GGUF, and a folder again, with and without what qconv keeps of its source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversions import convert_without_source
from numpy.typing import NDArray
from safetensors import safe_open
from transformers_models import CASES, PROMPTS, Case, expected, save

import qconv

TOLERANCE = 2e-4  # of the spread of the log-probabilities

THERE_AND_BACK = [("f32", item) for item in CASES] + [
    ("bf16", next(item for item in CASES if item.class_name == name))
    for name in dict.fromkeys(item.class_name for item in CASES)
]


def stored(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Every tensor of a folder: dtype, shape and bytes."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - this is no mapping
                tensor = file.get_tensor(name)
                found[name] = (
                    str(tensor.dtype),
                    list(tensor.shape),
                    bytes(tensor.contiguous().view(-1).untyped_storage()),
                )
    return found


def loaded(folder: Path) -> Any:
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def assert_close(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> None:
    assert wanted.std() > 0.5, "the reference must not be flat, or the comparison says nothing"
    assert np.abs(found - wanted).max() < TOLERANCE * np.ptp(wanted)


@pytest.mark.oracles
@pytest.mark.usefixtures("no_tokenizer")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("dtype", "model_case"), THERE_AND_BACK, ids=lambda item: getattr(item, "name", item))
def test_there_and_back(dtype: str, model_case: Case, tmp_path: Path) -> None:
    import torch

    reference = save(tmp_path / "source", model_case)
    if dtype == "bf16":
        reference.to(torch.bfloat16).save_pretrained(tmp_path / "source")
        reference = loaded(tmp_path / "source")  # with rotary tables that were never rounded
    qconv.convert_model(tmp_path / "source", tmp_path / "model.gguf", dtype)
    qconv.convert_model(tmp_path / "model.gguf", tmp_path / "back")
    assert stored(tmp_path / "back") == stored(tmp_path / "source")
    for name in ("config.json", "generation_config.json"):
        texts = [(tmp_path / folder / name).read_text() for folder in ("source", "back")]
        assert json.loads(texts[0]) == json.loads(texts[1])
    again = loaded(tmp_path / "back")
    for prompt in PROMPTS:
        assert_close(expected(again, prompt), expected(reference, prompt))


@pytest.mark.oracles
@pytest.mark.usefixtures("no_tokenizer")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_case", CASES, ids=lambda item: item.name)
def test_a_file_that_keeps_nothing_of_its_source(model_case: Case, tmp_path: Path) -> None:
    reference = save(tmp_path / "source", model_case)
    qconv.convert_model(tmp_path / "source", tmp_path / "model.gguf", "f32")
    convert_without_source(tmp_path / "model.gguf", tmp_path / "back", "hf")
    again = loaded(tmp_path / "back")
    for prompt in PROMPTS:
        assert_close(expected(again, prompt), expected(reference, prompt))
