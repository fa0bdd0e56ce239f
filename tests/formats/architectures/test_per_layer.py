"""Numbers per layer: lists of a configuration, arrays of GGUF, and what tensors are because of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qconv.errors import ModelError, PluginError
from qconv.formats.architectures import Architecture, at_layer, load_architecture, map_names
from qconv.formats.base import Model
from qconv.formats.huggingface.configuration import hyper_parameter_metadata, read_hyper_parameters
from qconv.formats.huggingface.out.values import recover_values
from qconv.formats.huggingface.per_layer import layer_configuration
from qconv.formats.metadata import Field, ValueType, boolean, numbers, uint32

CONFIG = Path("config.json")


def description(**more: Any) -> dict[str, Any]:
    return {
        "name": "layered",
        "description": "layers of two kinds",
        "gguf": "layered",
        "classes": ["LayeredForCausalLM"],
        "model_types": ["layered"],
        "hyper_parameters": {
            "layers": {"config": "num_layers", "type": "uint32", "keys": "block_count"},
            "hidden": {"config": "hidden", "type": "uint32", "keys": "embedding_length"},
            "kv_heads": {"config": "kv_heads", "type": "uint32", "default": 1, "from_layers": {"name": "layer_kv_heads", "where": "kind == 1"}},
            "wide": {"config": "wide", "type": "bool", "default": False, "recovered": "not kv_heads == 1"},
        },
        "per_layer": {
            "kind": {"config": "pattern", "words": {"M": 0, "*": 1}, "type": "uint32", "default": "layer % 2", "recovered": "1 if layer_kv_heads else 0"},
            "layer_kv_heads": {"type": "uint32", "keys": "attention.head_count_kv", "default": "kv_heads if kind == 1 else 0"},
            "feed_forward": {"config": "intermediate", "type": "uint32", "keys": "feed_forward_length", "default": "4 * hidden"},
            "sliding": {"config": "layer_types", "words": {"full": 0, "sliding": 1}, "type": "bool", "keys": "sliding", "default": "0 if layer + 1 == layers else 1"},
            "sparsity": {"config": "sparsity", "type": "float32", "keys": "sparsity", "default": 0, "quantile": True},
        },
        "tensors": [
            {"gguf": "blk.{layer}.k.weight", "hf": "l.{layer}.k", "shape": ["layer_kv_heads * 2", "hidden"], "when": "kind == 1"},
            {"gguf": "blk.{layer}.v.weight", "hf": "l.{layer}.v", "shape": ["layer_kv_heads * 2", "hidden"], "when": "kind == 1", "omitted_when": "wide"},
            {"gguf": "blk.{layer}.u.weight", "hf": "l.{layer}.u", "shape": ["feed_forward", "hidden"]},
        ],
        "runtime": "none",
    } | more  # fmt: skip


FAMILY: Architecture = load_architecture(json.dumps(description()))
CONFIGURATION = {"num_layers": 4, "hidden": 3, "kv_heads": 2, "pattern": "M*M*", "intermediate": [5, 6, 5, 5], "sparsity": [0.95, 0.5, 0.0, 0.25]}  # fmt: skip


def in_gguf(config: dict[str, Any]) -> Model:
    values = read_hyper_parameters(FAMILY, config, CONFIG)
    return Model(CONFIG, "memory", hyper_parameter_metadata(FAMILY, values), {})


def test_a_configuration_becomes_arrays_and_comes_back() -> None:
    model = in_gguf(CONFIGURATION)
    found = {key: field.value for key, field in model.metadata.items()}
    assert np.array_equal(found["layered.attention.head_count_kv"], [0, 2, 0, 2])
    assert np.array_equal(found["layered.feed_forward_length"], [5, 6, 5, 5])
    assert np.asarray(found["layered.sliding"]).dtype == np.bool_
    assert np.allclose(found["layered.sparsity"], [1.6448536, 0, -np.inf, -0.6744898])
    values = recover_values(FAMILY, model)
    assert values["kv_heads"] == 2
    assert values["wide"] is True
    lists = {key: CONFIGURATION[key] for key in ("pattern", "intermediate", "sparsity")}
    assert layer_configuration(FAMILY, values) == lists | {"layer_types": ["sliding", "sliding", "sliding", "full"]}
    assert values == read_hyper_parameters(FAMILY, CONFIGURATION | {"wide": True}, CONFIG)


def test_one_number_stands_for_layers_that_are_alike() -> None:
    field = in_gguf(CONFIGURATION | {"intermediate": 7}).metadata["layered.feed_forward_length"]
    assert field == uint32(7)
    assert in_gguf(CONFIGURATION | {"layer_types": "full"}).metadata["layered.sliding"].is_array
    model = replace(
        in_gguf(CONFIGURATION), metadata={**in_gguf(CONFIGURATION).metadata, "layered.feed_forward_length": uint32(9)}
    )
    assert recover_values(FAMILY, model)["feed_forward"] == (9, 9, 9, 9)


def test_shapes_and_presence_go_by_the_layer() -> None:
    values = read_hyper_parameters(FAMILY, CONFIGURATION, CONFIG)
    names = [f"l.{layer}.{part}" for layer in range(4) for part in ("k", "v", "u") if part == "u" or layer % 2]
    found = map_names(FAMILY, names, values)
    assert (found.unmapped, found.missing) == ((), ())
    assert len(found.mapped) == 8
    upper = next(item for item in found.mapped if item.gguf == ("blk.1.u.weight",))
    assert upper.entry.shapes[0][0].evaluate(at_layer(values, 1)) == 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"intermediate": [5, 6]}, "2 entries in intermediate for 4 layers"),
        ({"intermediate": [5, 6, 7.5, 5]}, "a whole number"),
        ({"pattern": "M*X*"}, "one of M, *"),
        ({"layer_types": ["full", 3, "full", "full"]}, "one of full, sliding"),
        ({"sparsity": ["much"] * 4}, "a number"),
    ],
)
def test_lists_that_are_none_of_the_model_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words.replace("*", r"\*")):
        read_hyper_parameters(FAMILY, CONFIGURATION | change, CONFIG)


@pytest.mark.parametrize(
    "field", [boolean(True), numbers([1.5] * 4, ValueType.FLOAT32), numbers([3] * 5, ValueType.INT32)]
)
def test_arrays_that_are_none_of_the_model_are_refused(field: Field) -> None:
    model = in_gguf(CONFIGURATION)
    model = replace(model, metadata={**model.metadata, "layered.feed_forward_length": field})
    with pytest.raises(ModelError, match="one for each of 4 layers"):
        recover_values(FAMILY, model)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("hidden", {"type": "uint32", "default": 1}, "defined twice"),
        ("new", {"type": "uint32", "default": "later"}, "mentions 'later'"),
        ("new", {"type": "uint32", "default": 1, "words": {"a": "b"}}, "whole numbers"),
        ("new", {"type": "uint32", "default": 1, "numbered": {"lists.odd": "1"}}, "whole numbers"),
        ("new", {"type": "uint32"}, "lacks the key 'default'"),
    ],
)
def test_mistakes_in_a_description_are_named(name: str, value: dict[str, Any], words: str) -> None:
    with pytest.raises(PluginError, match=words):
        load_architecture(json.dumps(description(per_layer=description()["per_layer"] | {name: value})))
