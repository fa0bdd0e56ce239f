from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qconv.errors import PluginError
from qconv.formats.architectures import built_in_architectures, load_architecture


def description() -> dict[str, Any]:
    return {
        "name": "toy",
        "description": "a toy",
        "gguf": "llama",
        "classes": ["ToyForCausalLM"],
        "model_types": ["toy"],
        "prefixes": {"": "model."},
        "hyper_parameters": {
            "layers": {"config": "n_layer", "type": "uint32", "keys": "block_count"},
            "hidden": {"config": ["n_embd", "hidden_size"], "type": "uint32", "keys": "embedding_length", "default": "2 * layers"},
        },
        "checks": [{"config": "act", "allowed": ["silu"], "severity": "error", "problem": "no"}],
        "rope": {"order": "neox", "dimensions": "hidden", "theta": 10000, "scalings": ["linear"]},
        "tensors": [
            {"gguf": "a.weight", "hf": "a.weight", "shape": ["hidden", 3]},
            {"gguf": ["blk.{layer}.b.weight", "blk.{layer}.c.weight"], "hf": "l.{layer}.bc", "shape": ["2 * hidden", 3],
             "transform": "split_rows", "arguments": {"first": "hidden"}},
        ],
        "dropped": ["*.inv_freq", {"pattern": "vision.*", "reason": "no eyes"}],
        "tokenizer": {"add_space_prefix": False},
        "runtime": {"norm": "rms", "activation": "silu", "feed_forward": "gated", "positions": "rope", "attention_scale": "hidden"},
    }  # fmt: skip


def test_a_file_and_a_text_give_the_same(tmp_path: Path) -> None:
    text = json.dumps(description())
    (tmp_path / "toy.json").write_text(text)
    found = load_architecture(tmp_path / "toy.json")
    assert found == load_architecture(text)
    assert found.hyper_parameters[1].config == ("n_embd", "hidden_size")
    assert found.tensors[1].gguf == ("blk.{layer}.b.weight", "blk.{layer}.c.weight")
    assert found.dropped[1].reason == "no eyes"
    assert found.tokenizer == {"add_space_prefix": False}


def at(path: str, value: Any) -> dict[str, Any]:
    """Return the description with one value changed, added or (None) removed."""
    changed = description()
    *way, last = path.split("/")
    place: Any = changed
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return changed


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (at("clases", []), "unknown key 'clases'. Did you mean 'classes'?"),
        (at("name", None), "lacks the key 'name'"),
        (at("gguf", ""), "must be a string"),
        (at("aliases", {"gguf": "x"}), "must be a list, not an object"),
        (at("aliases", [{"gguf": "x"}]), "an alias lacks the key 'mark'"),
        (at("aliases", [{"gguf": "x", "mark": {"key": "k", "at_least": 1}, "hf": 1}]), "unknown key 'hf'"),
        (at("prefixes", {"": 1}), "must be strings"),
        (at("classes", [1]), "a string or a list of strings"),
        (at("checks", {}), "must be a list, not an object"),
        (at("hyper_parameters", []), "must be an object, not a list"),
        (at("hyper_parameters/layers/type", "int"), "one of uint32, float32, bool"),
        (at("hyper_parameters/layers/defualt", 1), "Did you mean 'default'?"),
        (at("hyper_parameters/hidden/default", "width"), "'width', which no hyper-parameter before it defines"),
        (at("hyper_parameters/hidden/default", [1]), "a number, a truth value, an expression or null"),
        (at("checks/0/equals", "hidden"), "exactly one of"),
        (at("checks/0/severity", "fatal"), "one of error, note"),
        (at("rope/theta", True), "must be a number"),
        (at("rope/dimensions", "heads"), "rope mentions 'heads'"),
        (at("rope/partial", 1), "must be true or false"),
        (at("tensors/0/shape", []), "needs a 'shape'"),
        (at("tensors/0/shape", ["hidden", "width"]), "tensor a.weight mentions 'width'"),
        (at("tensors/0/transform", "rotate"), "unknown transform 'rotate'. Known: copy"),
        (at("tensors/1/arguments", {}), "the arguments [], not ['first']"),
        (at("tensors/0/hf", "l.{layer}.a"), "'{layer}' in all of its names or in none"),
        (at("tensors/0/gguf", "a.{expert}"), "never in 'gguf'"),
        (at("tensors/0/hf", "a.{expert}"), "mentions 'experts'"),
        (at("tensors/0/omitted_when", "tied"), "mentions 'tied'"),
        (at("tokenizer", {"x": [1]}), "strings, numbers and truth values"),
        (at("runtime/norm", "batch"), "one of rms, layer"),
        (at("runtime/attention_scale", True), "an expression or an integer"),
    ],
)
def test_mistakes_are_named(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PluginError) as caught:
        load_architecture(json.dumps(changed))
    assert sentence in str(caught.value)
    assert "toy" in str(caught.value) or "name" in sentence


@pytest.mark.parametrize("text", ["", "[]", "{", '{"name": "a", "name": "b"}', "[" * 100_000])
def test_text_that_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(PluginError):
        load_architecture(text)


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"absent\.json"):
        load_architecture(tmp_path / "absent.json")


def test_built_in_names_are_unique_and_answer_to_distinct_classes() -> None:
    found = built_in_architectures()
    assert [item.name for item in found] == sorted({item.name for item in found})
    types = [name for item in found if not item.chosen_where for name in item.model_types]
    assert len(set(types)) == len(types)
    for name in {name for item in found for name in item.classes}:
        answering = [item for item in found if name in item.classes]
        # the text model's section, or lists of the configuration, tell those apart that share a class
        left = [item for item in answering if not item.chosen_where]
        assert len(answering) == 1 or len(left) == 1 or all(item.config_section for item in answering)
