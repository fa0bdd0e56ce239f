"""Mistral's text models inside of a multimodal checkpoint, and what Mistral 4 adds to latent attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_folder import (
    CONFIGS,
    architecture_named,
    hf_shapes,
    model_folder,
    random_weights,
    stored,
    write_folder,
)
from tiny_networks import logits, network, tokens

from qconv.errors import ModelError
from qconv.formats.base import OpenContext
from qconv.formats.huggingface import open_huggingface
from qconv.runtime.building.read_configuration import read_configuration

pytestmark = pytest.mark.usefixtures("no_tokenizer")


@pytest.mark.parametrize("name", ["mistral3", "mistral4"])
@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_the_text_model_of_a_multimodal_checkpoint_is_told_by_its_section(
    tmp_path: Path, context: OpenContext, name: str, prefix: str
) -> None:
    text = CONFIGS[name]
    weights = random_weights(hf_shapes(architecture_named(name), text))
    inside = {key.replace("model.", prefix, 1): value for key, value in weights.items()}
    vision = random_weights({"model.vision_tower.patch_conv.weight": (4, 4)})
    config = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "text_config": text}
    write_folder(tmp_path / "model", config, stored(inside | vision))
    with open_huggingface(tmp_path / "model", context) as model:
        assert model.architecture == name
        assert read_configuration(model).architecture == name
        assert any("vision tower" in note for note in model.notes)
        key = weights["model.norm.weight"]
        assert np.array_equal(model.tensors["output_norm.weight"].rows(0, 1)[0], key)


def test_a_text_model_that_is_neither_is_refused(tmp_path: Path, context: OpenContext) -> None:
    text = CONFIGS["mistral3"] | {"model_type": "mistral"}
    weights = random_weights(hf_shapes(architecture_named("mistral3"), text))
    config = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "text_config": text}
    write_folder(tmp_path / "model", config, stored(weights))
    with pytest.raises(ModelError, match="another than Ministral 3"):
        open_huggingface(tmp_path / "model", context)


def scaling(**more: Any) -> dict[str, Any]:
    return {"rope_parameters": CONFIGS["mistral4"]["rope_parameters"] | more}


def test_the_rotated_share_is_one_of_the_whole_key(tmp_path: Path, context: OpenContext) -> None:
    folder = model_folder(tmp_path / "model", "mistral4", **scaling(partial_rotary_factor=0.4))
    with open_huggingface(folder, context) as model:
        assert model.metadata["mistral4.rope.dimension_count"].value == 4
        assert model.metadata["mistral4.attention.key_length_mla"].value == 10
        assert model.metadata["mistral4.attention.temperature_length"].value == 16
    folder = model_folder(tmp_path / "other", "mistral4", **scaling(partial_rotary_factor=0.6))
    with pytest.raises(ModelError, match=r"0\.6, which is not the 4 rotated dimensions of 10"):
        open_huggingface(folder, context)


def test_queries_grow_beyond_the_original_context() -> None:
    text = tokens(24)
    (found,) = logits(network("mistral4"), text)
    (level,) = logits(network("mistral4", **scaling(llama_4_scaling_beta=None)), text)
    assert np.array_equal(found[:16], level[:16])
    assert np.abs(found[16:] - level[16:]).max() > 1e-3
