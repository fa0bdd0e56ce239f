"""Blocks that predict the tokens after next, which llama.cpp's converter appends: neither the runtime nor the way back takes part of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from conversions import without_source, write_model
from f32_gguf import write_f32
from llamacpp_models import logits
from memory_model import tensor
from safetensors.numpy import load_file
from tiny_networks import CONTEXT
from transformers_models import CASES, PROMPTS, log_softmax, save

from qconv.errors import ModelError
from qconv.formats.base import Model, OpenContext
from qconv.formats.gguf import open_gguf
from qconv.formats.huggingface import open_huggingface
from qconv.formats.huggingface.out.prepare import prepare_for_huggingface
from qconv.formats.metadata import ValueType, numbers, string, uint32
from qconv.formats.predictions import without_predictions
from qconv.runtime.building.network import load_network
from qconv.runtime.forward import forward

pytestmark = [pytest.mark.usefixtures("no_tokenizer"), pytest.mark.filterwarnings("ignore")]

HIDDEN = 64
# the block that the one for the token after next is built like
CASES_AND_BLOCKS = {
    "glm4moe": 2,
    "deepseek3": 2,
    "deepseek32": 2,
    "glm-dsa": 2,
    "qwen35": 3,
    "qwen35moe": 3,
    "qwen3next": 3,
}
PARTS = {
    gguf.MODEL_TENSOR.NEXTN_EH_PROJ: (HIDDEN, 2 * HIDDEN),
    gguf.MODEL_TENSOR.NEXTN_ENORM: (HIDDEN,),
    gguf.MODEL_TENSOR.NEXTN_HNORM: (HIDDEN,),
    gguf.MODEL_TENSOR.NEXTN_SHARED_HEAD_NORM: (HIDDEN,),
}


def predicting(model: Model, like: int) -> Model:
    """Return the model with one more block, which is like another, and what predicts by it."""
    count = f"{model.architecture}.block_count"
    layers = model.metadata[count].value
    assert isinstance(layers, int)
    random = np.random.default_rng(5)
    added = {
        name.replace(f"blk.{like}.", f"blk.{layers}."): replace(it, name=name.replace(f"blk.{like}.", f"blk.{layers}."))
        for name, it in model.tensors.items()
        if name.startswith(f"blk.{like}.")
    }
    for part, shape in PARTS.items():
        name = gguf.TENSOR_NAMES[part].format(bid=layers) + ".weight"
        added[name] = tensor(name, random.standard_normal(shape, np.float32))
    counted = {count: uint32(layers + 1), f"{model.architecture}.nextn_predict_layers": uint32(1)}
    return replace(model, tensors={**model.tensors, **added}, metadata={**model.metadata, **counted})


def run(path: Path) -> tuple[list[np.ndarray], tuple[str, ...]]:
    with open_gguf(path, CONTEXT) as model:
        network = load_network(model)
        return [block.logits for prompt in PROMPTS for block in forward(network, [prompt])], network.notes


@pytest.mark.oracles
@pytest.mark.parametrize("name", CASES_AND_BLOCKS)
def test_the_model_is_the_same(name: str, tmp_path: Path, context: OpenContext) -> None:
    save(tmp_path / "model", next(item for item in CASES if item.name == name))
    with open_huggingface(tmp_path / "model", context) as opened:
        model = without_source(opened)
        plain = write_f32(tmp_path / "plain.gguf", model)
        path = write_f32(tmp_path / "model.gguf", predicting(model, CASES_AND_BLOCKS[name]))
    (wanted, none), (found, notes) = run(plain), run(path)
    assert none == ()
    assert len(notes) == 1
    assert "predicts tokens after next, is left out" in notes[0]
    for one, other in zip(found, wanted, strict=True):
        assert np.array_equal(one, other)
    theirs = [log_softmax(logits(path, prompt)) for prompt in PROMPTS]
    worst = max(float(np.abs(one - log_softmax(other)).max()) for one, other in zip(theirs, wanted, strict=True))
    print(f"{name}: {worst:.1e}")
    assert worst < 1e-3
    with open_gguf(path, CONTEXT) as opened:
        assert notes[0] in prepare_for_huggingface(opened, CONTEXT).notes
        write_model(opened, tmp_path / "back", "hf")
    with open_gguf(plain, CONTEXT) as opened:
        write_model(opened, tmp_path / "wanted", "hf")
    one, other = (load_file(tmp_path / folder / "model.safetensors") for folder in ("back", "wanted"))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[key], other[key]) for key in one)
    assert (tmp_path / "back" / "config.json").read_text() == (tmp_path / "wanted" / "config.json").read_text()


def test_arrays_with_an_entry_per_block_become_shorter() -> None:
    model = Model(
        Path("m"),
        "gguf",
        {
            "x.block_count": uint32(3),
            "x.nextn_predict_layers": uint32(1),
            "x.attention.head_count_kv": numbers([4, 5, 6], ValueType.UINT32),
            "x.rope.dimension_sections": numbers([1, 2, 3], ValueType.UINT32),
            "general.architecture": string("x"),
            "general.numbers": numbers([1, 2, 3], ValueType.UINT32),
        },
        {},
    )
    found, notes = without_predictions(model)
    assert notes == ("block 2, which predicts tokens after next, is left out",)
    assert found.metadata["x.block_count"] == uint32(2)
    assert "x.nextn_predict_layers" not in found.metadata
    lengths = {key: len(field.value) for key, field in found.metadata.items() if isinstance(field.value, np.ndarray)}
    assert lengths == {"x.attention.head_count_kv": 2, "x.rope.dimension_sections": 3, "general.numbers": 3}
    assert without_predictions(found) == (found, ())


def test_nothing_but_predictions_is_no_model() -> None:
    metadata = {
        "general.architecture": string("x"),
        "x.block_count": uint32(2),
        "x.nextn_predict_layers": uint32(2),
    }
    with pytest.raises(ModelError, match="nextn_predict_layers is 2, but there are 2 blocks"):
        without_predictions(Model(Path("m"), "gguf", metadata, {}))
