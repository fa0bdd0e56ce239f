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
from transformers_models import CASES, PROMPTS, Case, expected, save, text_alone

import qconv

TOLERANCE = 2e-4  # of the spread of the log-probabilities

ONE_OF_EACH_CLASS = [
    next(item for item in CASES if item.class_name == name) for name in dict.fromkeys(item.class_name for item in CASES)
]


def stored(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Every tensor of a folder: dtype, shape and bytes."""
    import torch

    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - this is no mapping
                tensor = file.get_tensor(name)
                found[name] = (
                    str(tensor.dtype),
                    list(tensor.shape),
                    tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes(),
                )
    return found


def loaded(folder: Path) -> Any:
    import torch
    import transformers

    kind = transformers.AutoModelForCausalLM
    config = transformers.AutoConfig.from_pretrained(folder)
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:  # a class that is published inside of another only
        kind = getattr(transformers, config.architectures[0])
    return kind.from_pretrained(folder, config=text_alone(config), dtype=torch.float32).eval()


def assert_close(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> None:
    assert wanted.std() > 0.5, "the reference must not be flat, or the comparison says nothing"
    assert np.abs(found - wanted).max() < TOLERANCE * np.ptp(wanted)


def assert_same_folder(found: Path, wanted: Path) -> None:
    assert stored(found) == stored(wanted)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((found / name).read_text()) == json.loads((wanted / name).read_text())


@pytest.mark.oracles
@pytest.mark.usefixtures("no_tokenizer")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_case", CASES, ids=lambda item: item.name)
def test_float32(model_case: Case, tmp_path: Path) -> None:
    """With what the file keeps of its source the folder is the source; without, it is the same model."""
    reference = save(tmp_path / "source", model_case)
    qconv.convert_model(tmp_path / "source", tmp_path / "model.gguf", "f32")
    qconv.convert_model(tmp_path / "model.gguf", tmp_path / "back")
    assert_same_folder(tmp_path / "back", tmp_path / "source")
    convert_without_source(tmp_path / "model.gguf", tmp_path / "rebuilt", "hf")
    again = loaded(tmp_path / "rebuilt")
    for prompt in PROMPTS:
        assert_close(expected(again, prompt), expected(reference, prompt))


@pytest.mark.oracles
@pytest.mark.usefixtures("no_tokenizer")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_case", ONE_OF_EACH_CLASS, ids=lambda item: item.name)
def test_bfloat16(model_case: Case, tmp_path: Path) -> None:
    import torch

    save(tmp_path / "source", model_case).to(torch.bfloat16).save_pretrained(tmp_path / "source")
    qconv.convert_model(tmp_path / "source", tmp_path / "model.gguf", "bf16")
    qconv.convert_model(tmp_path / "model.gguf", tmp_path / "back")
    assert_same_folder(tmp_path / "back", tmp_path / "source")
    reference, again = loaded(tmp_path / "source"), loaded(tmp_path / "back")
    assert_close(expected(again, PROMPTS[1]), expected(reference, PROMPTS[1]))
