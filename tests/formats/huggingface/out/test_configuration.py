"""Configurations on the way back: equal where nothing changed, corrected where the metadata say otherwise, written anew where nothing is known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversions import convert_without_source, without_source, write_model
from huggingface_folder import (
    CONFIGS,
    architecture_named,
    hf_shapes,
    model_folder,
    random_weights,
    stored,
    write_folder,
)

import qconv
from qconv.convert.prune import prune_layers
from qconv.convert.settings import Settings
from qconv.errors import (
    MissingTensorError,
    ModelError,
    ShapeError,
    UnknownArchitectureError,
    UnknownTypeError,
    UnmappedTensorError,
)
from qconv.formats.architectures import Architecture, built_in_architectures
from qconv.formats.architectures.transforms import constant
from qconv.formats.base import Model, OpenContext
from qconv.formats.huggingface.configuration import read_hyper_parameters
from qconv.formats.huggingface.out.rope import rebuild_rope
from qconv.formats.huggingface.rope import read_rope
from qconv.formats.metadata import Field, ValueType, float32, numbers, string, uint32

pytestmark = pytest.mark.usefixtures("no_tokenizer")

FAMILIES = pytest.mark.parametrize("name", [it.name for it in built_in_architectures()])


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def rows(path: Path) -> dict[str, tuple[str, bytes]]:
    with qconv.open(path) as model:
        return {name: (it.encoding.name, it.read(0, it.row_count).tobytes()) for name, it in model.tensors.items()}


@FAMILIES
@pytest.mark.parametrize("type_name", ["f32", "bf16"])
def test_every_family_there_and_back(name: str, type_name: str, tmp_path: Path) -> None:
    source = model_folder(tmp_path / "source", name)
    qconv.convert_model(source, tmp_path / "model.gguf", type_name)
    qconv.convert_model(tmp_path / "model.gguf", tmp_path / "back")
    assert (tmp_path / "back" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert rows(tmp_path / "back") == rows(source)
    qconv.convert_model(source, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "back" / "model.safetensors"
    ).read_bytes()


@FAMILIES
def test_every_family_without_its_source(name: str, tmp_path: Path) -> None:
    """What is rebuilt is read as the same model."""
    source = model_folder(tmp_path / "source", name)
    qconv.convert_model(source, tmp_path / "model.gguf", "f32")
    back = convert_without_source(tmp_path / "model.gguf", tmp_path / "back", "hf")
    with qconv.open(source) as one, qconv.open(back) as other:
        keys = [
            {key: comparable(it) for key, it in m.metadata.items() if key.startswith(m.architecture)}
            for m in (one, other)
        ]
        assert keys[0] == keys[1]
        assert {key: it.shape for key, it in one.tensors.items()} == {
            key: it.shape for key, it in other.tensors.items()
        }
    assert config_of(back)["torch_dtype"] == "float32"


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_what_the_user_changes_is_in_the_configuration(name: str, tmp_path: Path) -> None:
    source = model_folder(tmp_path / "source", name, odd={"kept": [1, 2]})
    qconv.convert_model(source, tmp_path / "model.gguf", "f32")
    architecture = architecture_named(name)
    changes = {f"{architecture.gguf}.context_length": uint32(4096)}
    if architecture.rope is not None:
        changes[f"{architecture.gguf}.rope.freq_base"] = float32(5e5)
    context_key = next(it.config[0] for it in architecture.hyper_parameters if it.name == "context")
    for origin in (source, tmp_path / "model.gguf"):
        back = tmp_path / f"back-{origin.stem}"
        if name == "gpt2":
            with qconv.open(origin) as model, pytest.raises(ShapeError, match="the metadata give"):
                write_model(model, back, "hf", settings=Settings(threads=1, overrides=changes))
            continue
        with qconv.open(origin) as model:
            write_model(model, back, "hf", settings=Settings(threads=1, overrides=changes))
        config = config_of(back)
        assert config[context_key] == 4096
        assert config["odd"] == {"kept": [1, 2]}
        assert config["rope_theta"] == 5e5
        assert list(config)[: len(CONFIGS[name])] == list(config_of(source))[: len(CONFIGS[name])]


def test_pruned_layers(tmp_path: Path) -> None:
    source = model_folder(
        tmp_path / "source", "llama", num_hidden_layers=4, layer_types=["full_attention"] * 4, four=[1, 2, 3, 4]
    )
    with qconv.open(source) as model:
        write_model(prune_layers(model, frozenset({1, 2})), tmp_path / "back", "hf")
        config = config_of(tmp_path / "back")
        assert config["num_hidden_layers"] == 2
        assert "layer_types" not in config
        with qconv.open(tmp_path / "back") as pruned:
            for before, after in ((0, 0), (3, 1)):
                one, other = model.tensors[f"blk.{before}.attn_q.weight"], pruned.tensors[f"blk.{after}.attn_q.weight"]
                assert one.read(0, one.row_count).tobytes() == other.read(0, one.row_count).tobytes()


def test_the_text_model_of_a_multimodal_one(tmp_path: Path) -> None:
    text = CONFIGS["gemma3"] | {"tie_word_embeddings": True}
    weights = random_weights(hf_shapes(architecture_named("gemma3"), text))
    names = {f"language_model.{name}": array for name, array in weights.items()}
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": {key: value for key, value in text.items() if key != "architectures"},
        "vision_config": {"hidden_size": 3},
        "torch_dtype": "bfloat16",
        "eos_token_id": [1, 106],
    }
    source = write_folder(tmp_path / "source", config, stored(names))
    qconv.convert_model(source, tmp_path / "back")
    found = config_of(tmp_path / "back")
    assert found["architectures"] == ["Gemma3ForCausalLM"]
    assert found["model_type"] == "gemma3_text"
    assert found["torch_dtype"] == "bfloat16"
    assert found["eos_token_id"] == [1, 106]
    assert "vision_config" not in found
    assert "text_config" not in found
    assert rows(tmp_path / "back") == rows(source)


def test_a_bare_model_keeps_its_names(tmp_path: Path) -> None:
    settings = CONFIGS["llama"] | {"architectures": ["LlamaModel"], "tie_word_embeddings": True}
    weights = random_weights(hf_shapes(architecture_named("llama"), settings))
    bare = {name.removeprefix("model."): array for name, array in weights.items()}
    source = write_folder(tmp_path / "source", settings, stored(bare))
    qconv.convert_model(source, tmp_path / "model.gguf", "bf16")
    qconv.convert_model(tmp_path / "model.gguf", tmp_path / "back")
    assert config_of(tmp_path / "back") == config_of(source)
    from safetensors import safe_open

    with safe_open(tmp_path / "back" / "model.safetensors", "np") as file:
        assert set(file.keys()) == set(bare)


def test_mixed_dtypes_come_back(tmp_path: Path) -> None:
    settings = CONFIGS["qwen3moe"]
    weights = random_weights(hf_shapes(architecture_named("qwen3moe"), settings))
    mixed = stored(weights) | stored({name: it for name, it in weights.items() if "mlp.gate" in name}, "F32")
    source = write_folder(tmp_path / "source", settings, mixed)
    qconv.convert_model(source, tmp_path / "model.gguf", "bf16")
    qconv.convert_model(tmp_path / "model.gguf", tmp_path / "back")
    qconv.convert_model(source, tmp_path / "again")
    for folder in ("back", "again"):
        assert rows(tmp_path / folder) == rows(source)


def test_rounded_weights_are_not_given_the_dtype_of_the_source(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "source", "llama", torch_dtype="bfloat16", hidden_size=32, intermediate_size=32)
    qconv.convert_model(source, tmp_path / "q.gguf", "q8_0")
    qconv.convert_model(tmp_path / "q.gguf", tmp_path / "wide.gguf", "f32", settings=Settings(allow_requantize=True))
    for name in ("q.gguf", "wide.gguf"):
        back = tmp_path / f"back-{Path(name).stem}"
        qconv.convert_model(tmp_path / name, back)
        with qconv.open(tmp_path / name) as one, qconv.open(back) as other:
            for key, tensor in one.tensors.items():
                again = other.tensors[key]
                assert again.rows(0, again.row_count).tobytes() == tensor.rows(0, tensor.row_count).tobytes()
        assert config_of(back)["torch_dtype"] == "float32"


def test_norms_of_gemma_come_back_to_the_bit(tmp_path: Path) -> None:
    settings = CONFIGS["gemma2"]
    weights = random_weights(hf_shapes(architecture_named("gemma2"), settings))
    for name, array in weights.items():
        if "norm" in name:
            array[:] = np.resize(np.array([1e-30, -3e-9, 0.3, 0.0, -1.0], np.float32), array.shape)
    for dtype in ("F32", "BF16"):
        cut = weights if dtype == "F32" else {name: _cut(array) for name, array in weights.items()}
        source = write_folder(tmp_path / f"source-{dtype}", settings, stored(cut, dtype))
        qconv.convert_model(source, tmp_path / f"{dtype}.gguf", "f32")
        with qconv.open(tmp_path / f"{dtype}.gguf") as model:
            kept = model.metadata["qconv.source.exact_names"].value
            assert "output_norm.weight" in set(kept)  # type: ignore[arg-type] # an array of texts
            # values that are of another model by now are not believed
            other = {**model.metadata, "qconv.source.exact_values": numbers(np.zeros(9), ValueType.FLOAT32)}
            write_model(replace(model, metadata=other), tmp_path / f"without-{dtype}", "hf")
        qconv.convert_model(tmp_path / f"{dtype}.gguf", tmp_path / f"back-{dtype}")
        written = (tmp_path / f"back-{dtype}" / "model.safetensors").read_bytes()
        qconv.convert_model(source, tmp_path / f"again-{dtype}")
        assert written == (tmp_path / f"again-{dtype}" / "model.safetensors").read_bytes()
        assert written != (tmp_path / f"without-{dtype}" / "model.safetensors").read_bytes()


def _cut(array: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (array.view(np.uint32) & 0xFFFF0000).view(np.float32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"architecture": "mamba"}, UnknownArchitectureError, "mamba"),
        ({"drop": "blk.1.ffn_up.weight"}, MissingTensorError, "ffn_up"),
        ({"rename": "blk.1.ffn_odd.weight"}, UnmappedTensorError, "ffn_odd"),
        ({"set": ("llama.attention.head_count", uint32(2))}, ModelError, "shape"),
        ({"set": ("llama.feed_forward_length", numbers([20, 24], ValueType.UINT32))}, ModelError, "layer to layer"),
        ({"remove": "llama.embedding_length"}, ModelError, "lack llama.embedding_length"),
        ({"type": "q8_0"}, UnknownTypeError, "F32, F16, BF16"),
    ],
    ids=lambda item: next(iter(item)) if isinstance(item, dict) else "",
)
def test_what_cannot_be_expressed(
    change: Mapping[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    source = model_folder(tmp_path / "source", "llama")
    with qconv.open(source) as opened:
        model = without_source(opened)
        metadata, tensors = dict(model.metadata), dict(model.tensors)
        match change:
            case {"architecture": name}:
                metadata["general.architecture"] = string(name)
            case {"drop": name}:
                del tensors[name]
            case {"rename": name}:
                tensors[name] = replace(tensors["blk.1.ffn_up.weight"], name=name)
            case {"set": (key, value)}:
                metadata[key] = value
            case {"remove": key}:
                del metadata[key]
        changed = replace(model, metadata=metadata, tensors=tensors)
        with pytest.raises(error, match=message):
            write_model(changed, tmp_path / "back", "hf", change.get("type", "auto"))
    assert not (tmp_path / "back").exists()


def comparable(field: Field) -> object:
    """A value that can be compared: arrays as lists, floating-point numbers as GGUF has them."""
    if isinstance(field.value, np.ndarray):
        return field.value.tolist()
    return float(np.float32(field.value)) if isinstance(field.value, float) else field.value


SCALINGS: dict[str, list[dict[str, Any]]] = {
    "default": [{}, {"rope_theta": 12345.0}, {"partial_rotary_factor": 0.5}],
    "linear": [{"factor": 4.0}, {"factor": 2.5, "rope_theta": 5e5}],
    "dynamic": [{"factor": 2.0}],
    "yarn": [
        {"factor": 4.0, "original_max_position_embeddings": 16},
        {"factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 1.0},
        {"factor": 4.0, "original_max_position_embeddings": 16, "attention_factor": 0.7},
        {"factor": 8.0, "original_max_position_embeddings": 4096, "beta_fast": 8.0, "beta_slow": 2.0},
        {
            "factor": 8.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 8.0,
            "beta_slow": 2.0,
            "truncate": False,
        },
    ],
    "llama3": [
        {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        for factor in (8.0, 32.0)
    ]
    + [{"factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0, "original_max_position_embeddings": 8192}],
    "longrope": [{"short_factor": [1.0, 1.5], "long_factor": [2.0, 6.5]}],
    "proportional": [{"partial_rotary_factor": 0.5}, {"partial_rotary_factor": 0.0}, {"factor": 4.0}],
}


@FAMILIES
def test_rotary_positions_are_read_as_they_were(name: str) -> None:
    architecture = architecture_named(name)
    rope = architecture.rope
    if rope is None:
        assert rebuild_rope(architecture, {}, {}, {}) == {}
        return
    tried = 0
    for kind in ("default", *rope.scalings):
        for parameters in SCALINGS[kind]:
            tried += _there_and_back(architecture, kind, parameters)
    assert tried > 1


def _there_and_back(architecture: Architecture, kind: str, parameters: Mapping[str, Any]) -> bool:
    config = {**CONFIGS[architecture.name], "rope_scaling": {"rope_type": kind, **parameters}}
    path = Path("config.json")
    values = read_hyper_parameters(architecture, config, path)
    assert architecture.rope is not None
    rotated = architecture.rope.dimensions.evaluate(values)
    if kind == "longrope":
        factors = {key: (value * rotated)[: rotated // 2] for key, value in parameters.items()}
        config["rope_scaling"] = {"rope_type": kind, **factors}
        config["original_max_position_embeddings"] = 32
    try:
        first = read_rope(architecture, config, values, path)
    except ModelError:
        return False  # none that this family can have
    tensors = {key: constant(key, table, "") for key, table in first.tables.items()}
    rebuilt = rebuild_rope(architecture, values, first.metadata, tensors)
    plain = {key: value for key, value in config.items() if "rope" not in key and key != "partial_rotary_factor"}
    again = read_rope(architecture, {**plain, **rebuilt}, values, path)
    assert {key: comparable(it) for key, it in again.metadata.items()} == {
        key: comparable(it) for key, it in first.metadata.items()
    }
    assert again.tables.keys() == first.tables.keys()
    for key, table in first.tables.items():
        assert np.allclose(again.tables[key], table, rtol=1e-5)
    return True


def test_an_odd_table_of_frequencies_is_kept_as_it_is() -> None:
    architecture = architecture_named("llama")
    values = read_hyper_parameters(architecture, CONFIGS["llama"] | {"head_dim": 8}, Path("config.json"))
    table = np.array([[1.0, 7.0, 3.0, 2.0]], np.float32)
    found = rebuild_rope(architecture, values, {}, {"rope_freqs.weight": constant("x", table, "")})["rope_scaling"]
    assert found["rope_type"] == "longrope"
    assert found["long_factor"] == found["short_factor"] == [1.0, 7.0, 3.0, 2.0]


def test_an_odd_table_that_no_proportion_gives_is_refused() -> None:
    architecture = architecture_named("gemma4")
    values = read_hyper_parameters(architecture, CONFIGS["gemma4"], Path("config.json"))
    for row in ([1.0, 1e30, 1.0, 1e30], [1.0, 2.0, 1e30, 1e30], [1.0, 1.0, 1.0, 5.0]):
        table = {"rope_freqs.weight": constant("x", np.array([row], np.float32), "")}
        with pytest.raises(ModelError, match="frequencies"):
            rebuild_rope(architecture, values, {}, table)


def test_hostile_keys_are_not_believed(tmp_path: Path, context: OpenContext) -> None:
    source = model_folder(tmp_path / "source", "llama")
    for text in (
        "",
        "[",
        "[]",
        '{"architectures": 5}',
        '{"hidden_size": "x"}',
        '{"model_type": ["llama"]}',
        "null",
        "[" * 99999,
    ):
        with qconv.open(source) as opened:
            model: Model = without_source(opened)
            said = {f"qconv.source.{key}": string(text) for key in ("config", "names", "dtypes", "generation_config")}
            back = tmp_path / f"back-{abs(hash(text))}"
            write_model(replace(model, metadata={**model.metadata, **said}), back, "hf")
        assert config_of(back)["hidden_size"] == 16
        assert rows(back) == rows(source)
