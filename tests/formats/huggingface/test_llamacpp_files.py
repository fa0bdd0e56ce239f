"""Files as llama.cpp's converter writes them where qconv's are otherwise: windows as one truth value per layer, vectors as matrices of one row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conversions import without_source, write_model
from f32_gguf import write_f32
from llamacpp_models import logits
from safetensors.numpy import load_file
from tiny_networks import CONTEXT, in_memory
from transformers_models import CASES, DEEP, PROMPTS, expected, log_softmax, save

from qconv.errors import ModelError
from qconv.formats.base import Model, OpenContext
from qconv.formats.gguf import open_gguf
from qconv.formats.huggingface import open_huggingface
from qconv.formats.metadata import Field, ValueType, float32, numbers, uint32
from qconv.formats.window_patterns import PATTERN_KEY, period_of
from qconv.runtime.building.network import load_network
from qconv.runtime.forward import forward

pytestmark = [pytest.mark.usefixtures("no_tokenizer"), pytest.mark.filterwarnings("ignore")]

ROUNDING = 1e-3  # of log-probabilities, in two orders of summation
ROWS = ("ffn_gate_inp_shexp.weight", "exp_probs_b.bias")
NAMES = ("olmo3", "olmo3-yarn", "exaone4-windows", "qwen2moe", "qwen35moe", "qwen3next", "ernie4_5moe")


def windows(model: Model) -> Field:
    """The family's windows, as an array."""
    layers = model.metadata[f"{model.architecture}.block_count"].value
    assert isinstance(layers, int)
    return numbers([layer % 4 != 3 for layer in range(layers)], ValueType.BOOL)


def as_llamacpp(model: Model, rows: tuple[str, ...] = ROWS) -> Model:
    """Return the model in the form of llama.cpp's converter."""
    key = f"{model.architecture}.{PATTERN_KEY}"
    changed = {key: windows(model)} if key in model.metadata else {}
    tensors = {
        name: replace(it, shape=(1, *it.shape)) if name.endswith(rows) and len(it.shape) == 1 else it
        for name, it in model.tensors.items()
    }
    assert changed or any(it.shape[0] == 1 for it in tensors.values())
    return replace(model, metadata={**model.metadata, **changed}, tensors=tensors)


@pytest.mark.oracles
@pytest.mark.parametrize("name", NAMES)
def test_they_are_the_same_model(name: str, tmp_path: Path, context: OpenContext) -> None:
    reference = save(tmp_path / "model", next(item for item in CASES + DEEP if item.name == name))
    with open_huggingface(tmp_path / "model", context) as opened:
        plain = without_source(opened)
        path = write_f32(tmp_path / "model.gguf", as_llamacpp(plain))
        usual = write_f32(tmp_path / "usual.gguf", plain)
    with open_gguf(usual, CONTEXT) as model:
        write_model(model, tmp_path / "wanted", "hf")
    with open_gguf(path, CONTEXT) as model:
        network = load_network(model)
        assert network.notes == ()
        ours = [log_softmax(block.logits) for prompt in PROMPTS for block in forward(network, [prompt])]
        write_model(model, tmp_path / "back", "hf")
    for prompt, found in zip(PROMPTS, ours, strict=True):
        wanted, theirs = expected(reference, prompt), log_softmax(logits(path, prompt))
        print(f"{name}: {np.abs(found - wanted).max():.1e}, llama.cpp {np.abs(theirs - wanted).max():.1e}")
        assert np.abs(found - wanted).max() < ROUNDING
        assert np.abs(theirs - wanted).max() < 2e-2
    one, other = (load_file(tmp_path / folder / "model.safetensors") for folder in ("back", "wanted"))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[key], other[key]) for key in one)
    assert (tmp_path / "back" / "config.json").read_text() == (tmp_path / "wanted" / "config.json").read_text()


@pytest.mark.oracles
def test_ministral_says_by_another_key_that_yarn_leaves_cosines_alone(tmp_path: Path, context: OpenContext) -> None:
    """llama.cpp's converter writes a multiplier of logits, which takes yarn's factor from cosines and sines in this family."""
    import transformers

    reference = save(tmp_path / "model", next(item for item in CASES if item.name == "mistral3"))
    with open_huggingface(tmp_path / "model", context) as opened:
        plain = without_source(opened)
    scaling = "mistral3.rope.scaling."
    kept = {key: field for key, field in plain.metadata.items() if key != f"{scaling}attn_factor"}
    assert len(kept) < len(plain.metadata)
    with open_huggingface(tmp_path / "model", context) as opened:
        changed = replace(opened, metadata={**kept, f"{scaling}yarn_log_multiplier": float32(1.0)})
        path = write_f32(tmp_path / "model.gguf", changed)
    with open_gguf(path, CONTEXT) as model:
        network = load_network(model)
        ours = [log_softmax(block.logits) for prompt in PROMPTS for block in forward(network, [prompt])]
        write_model(model, tmp_path / "back", "hf")
    assert network.notes == ()
    again = transformers.Ministral3ForCausalLM.from_pretrained(tmp_path / "back").eval()
    for prompt, found in zip(PROMPTS, ours, strict=True):
        wanted = expected(reference, prompt)
        for one in (found, log_softmax(logits(path, prompt)), expected(again, prompt)):
            assert np.abs(one - wanted).max() < ROUNDING


@pytest.mark.parametrize(
    ("pattern", "period"),
    [([1, 1, 0, 1, 1, 0], 3), ([1, 1, 0, 1], 3), ([0, 0], 1), ([1, 1], 3), ([1, 0, 0], None), ([0, 1], None)],
)
def test_periods(pattern: list[int], period: int | None) -> None:
    assert period_of(numbers([bool(it) for it in pattern], ValueType.BOOL)) == period
    assert period_of(uint32(5)) == 5


def test_windows_without_a_period_are_refused() -> None:
    model = in_memory("olmo3", Path("tiny"))
    irregular = numbers([False, True], ValueType.BOOL)
    odd = replace(model, metadata={**model.metadata, f"olmo2.{PATTERN_KEY}": irregular})
    with pytest.raises(ModelError, match="windows in other layers than all but every n-th"):
        load_network(odd)


def test_a_family_with_a_fixed_period_tells_of_another_one() -> None:
    model = in_memory("gemma2", Path("tiny"))
    for pattern, notes in (([True, False], 0), ([False, False], 1)):
        field = numbers(pattern, ValueType.BOOL)
        told = replace(model, metadata={**model.metadata, f"gemma2.{PATTERN_KEY}": field})
        assert len(load_network(told).notes) == notes


def test_large_vocabularies_route_by_sigmoid() -> None:
    """llama.cpp's converter leaves the kind of routing of GLM-4.7-Flash to the size of its vocabulary."""
    model = in_memory("deepseek3", Path("tiny"))
    silent = {key: field for key, field in model.metadata.items() if not key.endswith("expert_gating_func")}
    for size, name in ((154880, "deepseek3"), (102400, "deepseek2")):
        found = load_network(replace(model, metadata={**silent, "deepseek2.vocab_size": uint32(size)}))
        assert found.configuration.architecture == name
        assert bool(found.notes) == (name == "deepseek2")
