"""Every family: logits of random models beside transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_networks import open_folder
from transformers_models import BEYOND_LLAMACPP, CASES, DEEP, PROMPTS, Case, save

from qconv.runtime.building.network import load_network
from qconv.runtime.forward import forward

TOLERANCE = 2e-5  # of the largest logit; measured: 3e-6


def reference(model: Any, prompt: list[int]) -> np.ndarray[Any, Any]:
    import torch

    with torch.no_grad():
        return np.asarray(model(torch.tensor([prompt])).logits[0].float().numpy())


@pytest.mark.oracles
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_case", CASES + BEYOND_LLAMACPP + DEEP, ids=lambda item: item.name)
def test_logits_are_those_of_transformers(model_case: Case, tmp_path: Path) -> None:
    source = save(tmp_path / "model", model_case)
    with open_folder(tmp_path / "model") as model:
        network = load_network(model)
        found = [block.logits for prompt in PROMPTS for block in forward(network, [prompt])]
    assert network.notes == ()
    for logits, prompt in zip(found, PROMPTS, strict=True):
        wanted = reference(source, prompt)
        assert wanted.std() > 0.3, "the reference must not be flat, or the comparison says nothing"
        difference = np.abs(logits - wanted).max() / np.abs(wanted).max()
        print(f"{model_case.name}: {difference:.1e}")
        assert difference < TOLERANCE
