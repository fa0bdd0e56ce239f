"""Keys that a description does not know are told, and none of those that converters write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversions import without_source
from huggingface_folder import architecture_named, model_folder
from tiny_networks import CONTEXT, FAMILIES, in_memory, open_folder

from qconv.formats.architectures import built_in_architectures
from qconv.formats.huggingface.out.prepare import prepare_for_huggingface
from qconv.formats.metadata import Field, ValueType, boolean, float32, numbers, string, uint32
from qconv.formats.strange_keys import strange_keys
from qconv.runtime.building.network import load_network

PATH = Path("tiny")
WORDS = "does not know"


@pytest.mark.parametrize("name", [it.name for it in built_in_architectures()])
def test_what_is_converted_is_known(name: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", name)
    with open_folder(folder) as model:
        found = prepare_for_huggingface(without_source(model), CONTEXT)
    assert not [note for note in found.notes if WORDS in note]


@pytest.mark.parametrize("name", FAMILIES)
def test_no_network_has_notes(name: str) -> None:
    assert load_network(in_memory(name, PATH)).notes == ()


@pytest.mark.parametrize(
    ("family", "key", "field"),
    [
        ("llama", "attention.temperature_scale", float32(0.1)),
        ("llama", "attention.sliding_window", uint32(64)),
        ("llama", "attention.causal", boolean(False)),
        ("llama", "attention.key_length_swa", uint32(64)),
        ("llama", "attention.sliding_window_pattern", numbers([True, False], ValueType.BOOL)),
        ("llama", "unheard.of", string("x")),
        ("qwen3", "expert_count", uint32(4)),
        ("qwen3", "logit_scale", float32(0.5)),
        ("qwen3moe", "expert_weights_norm", boolean(False)),
        ("qwen3moe", "expert_gating_func", uint32(2)),
        ("deepseek2", "expert_weights_norm", boolean(True)),
        ("glm4moe", "expert_gating_func", uint32(1)),
        ("gemma2", "rope.freq_base_swa", float32(77.0)),
        ("gpt2", "attention.value_length", uint32(3)),
    ],
)
def test_what_may_change_results_is_told(family: str, key: str, field: Field) -> None:
    model = in_memory(family, PATH)
    named = f"{model.architecture}.{key}"
    (note,) = load_network(replace(model, metadata={**model.metadata, named: field})).notes
    assert WORDS in note
    assert named in note
    assert "llama.cpp" in note


@pytest.mark.parametrize(
    ("family", "key", "field"),
    [
        ("llama", "attention.temperature_scale", float32(0.0)),
        ("llama", "attention.causal", boolean(True)),
        ("llama", "expert_count", uint32(0)),
        ("llama", "rope.scaling.finetuned", boolean(True)),
        ("llama", "vision.block_count", uint32(4)),
        ("llama", "attention.sliding_window_pattern", numbers([False, False], ValueType.BOOL)),
        ("qwen3", "expert_weights_norm", boolean(True)),
        ("qwen3moe", "expert_weights_norm", boolean(True)),
        ("qwen3moe", "expert_gating_func", uint32(1)),
        ("glm4moe", "nextn_predict_layers", uint32(0)),
        ("granite", "attention.head_count_kv", numbers([2, 2], ValueType.INT32)),
        ("llama", "rope.scaling.yarn_log_multiplier", float32(0.1)),
        ("mistral3", "rope.scaling.yarn_log_multiplier", float32(0.5)),
        ("gemma2", "rope.freq_base_swa", float32(10000.0)),
        ("gpt2", "rope.freq_base", float32(10000.0)),
        ("gpt2", "attention.value_length", uint32(4)),
    ],
)
def test_what_changes_nothing_is_not_told(family: str, key: str, field: Field) -> None:
    model = in_memory(family, PATH)
    assert load_network(replace(model, metadata={**model.metadata, f"{model.architecture}.{key}": field})).notes == ()


def test_keys_of_other_architectures_are_nobodys() -> None:
    llama = architecture_named("llama")
    metadata: dict[str, Any] = {"qwen2.unheard.of": uint32(1), "general.unheard": uint32(1)}
    assert strange_keys(llama, metadata, {}) == ()
    assert strange_keys(llama, {"llama.unheard.of": uint32(1)}, {}) == ("llama.unheard.of",)
    assert strange_keys(llama, {"llama.unheard": Field(ValueType.ARRAY, ("a", "b"), ValueType.STRING)}, {}) != ()
    assert strange_keys(llama, {"llama.unheard": numbers(np.arange(3), ValueType.INT32)}, {}) != ()


def test_many_keys_make_one_note() -> None:
    model = in_memory("llama", PATH)
    strange = {f"llama.unheard.{number}": uint32(number) for number in range(9)}
    (note,) = load_network(replace(model, metadata={**model.metadata, **strange})).notes
    assert "llama.unheard.5 (5) and 3 more" in note
    assert "unheard.6" not in note


def test_the_way_to_hugging_face_tells_them_once(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", "llama")
    with open_folder(folder) as model:
        strange = replace(model, metadata={**model.metadata, "llama.logit_scale": float32(0.5)})
        found = prepare_for_huggingface(strange, CONTEXT)
    assert [note for note in found.notes if WORDS in note] == [
        note for note in found.notes if "llama.logit_scale" in note
    ]
    assert len([note for note in found.notes if WORDS in note]) == 1
