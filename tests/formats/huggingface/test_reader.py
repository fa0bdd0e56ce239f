"""Folders as a whole: what a Model holds, and one clear sentence for each thing that can be wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_folder import (
    CONFIGS,
    Stored,
    architecture_named,
    hf_shapes,
    model_folder,
    random_weights,
    safetensors_bytes,
    stored,
    write_folder,
)

from qconv.errors import (
    EncodingError,
    FormatError,
    MissingFileError,
    MissingTensorError,
    ModelError,
    QconvError,
    ShapeError,
    UnknownArchitectureError,
    UnknownFormatError,
    UnmappedTensorError,
)
from qconv.formats.architectures import TRANSFORMS, at_layer, built_in_architectures, map_names
from qconv.formats.base import OpenContext
from qconv.formats.huggingface import FORMAT, open_huggingface
from qconv.formats.huggingface.configuration import read_hyper_parameters

pytestmark = pytest.mark.usefixtures("no_tokenizer")
NAMES = sorted(CONFIGS)


def tensors_of(name: str, **config: Any) -> dict[str, Stored]:
    return stored(random_weights(hf_shapes(architecture_named(name), CONFIGS[name] | config)))


@pytest.mark.parametrize("name", NAMES)
def test_every_family_opens(name: str, tmp_path: Path, context: OpenContext) -> None:
    folder = model_folder(tmp_path / "m", name)
    assert FORMAT.detect(folder)
    computed = {
        output.replace("{layer}", str(layer))
        for entry in architecture_named(name).tensors
        if entry.transform in ("add_one", "tile_decay", "fold_decay", "decay_column")
        for output in entry.gguf
        for layer in range(8)
    }
    with open_huggingface(folder, context) as model:
        assert model.architecture == architecture_named(name).gguf
        assert model.format == "huggingface"
        assert {tensor.name for tensor in model.tensors.values()} == set(model.tensors)
        assert set(model.files) == {folder / "config.json", folder / "model.safetensors"}
        assert dict(model.side_files) == {"config.json": folder / "config.json"}
        for tensor in model.tensors.values():
            assert tensor.read(0, tensor.row_count).nbytes == tensor.nbytes
            if tensor.name == "rope_freqs.weight" and name == "gemma4":
                assert (tensor.origin, tensor.encoding.name) == ("config.json: rotary scaling", "F32")
                continue
            assert tensor.origin.startswith("model.safetensors: ")
            assert tensor.encoding.name == ("F32" if tensor.name in computed else "BF16")


@pytest.mark.parametrize("name", NAMES)
def test_the_way_back_restores_every_bit(name: str, tmp_path: Path, context: OpenContext) -> None:
    architecture, config, tensors = architecture_named(name), CONFIGS[name], tensors_of(name)
    values = read_hyper_parameters(architecture, config, Path("config.json"))
    restored: dict[str, bytes] = {}
    with open_huggingface(write_folder(tmp_path / "m", config, tensors), context) as model:
        for item in map_names(architecture, tensors, values).mapped:
            scope = at_layer(values, item.layer)
            arguments = {key: size.evaluate(scope) for key, size in item.entry.arguments.items()}
            outputs = [model.tensors[output] for output in item.gguf]
            for source, tensor in zip(
                item.sources, TRANSFORMS[item.entry.transform].inverse(outputs, arguments), strict=True
            ):
                assert tensor.shape == tensors[source][1]
                rows = tensor.rows(0, tensor.row_count).view(np.uint32)
                restored[source] = ((rows + 0x8000) >> 16).astype("<u2").tobytes()  # to the nearest BF16
    assert restored == {source: data for source, (_, _, data) in tensors.items()}


def test_shards_give_the_same_tensors(tmp_path: Path, context: OpenContext) -> None:
    one = open_huggingface(model_folder(tmp_path / "one", "llama"), context)
    shards = [f"model-0000{part}-of-00003.safetensors" for part in (1, 2, 3)]
    three = open_huggingface(model_folder(tmp_path / "three", "llama", shards), context)
    assert list(one.tensors) == list(three.tensors)
    for name, tensor in one.tensors.items():
        other = three.tensors[name]
        assert np.array_equal(tensor.read(0, tensor.row_count), other.read(0, other.row_count))
    one.close()
    three.close()


def test_a_closed_model_reads_no_more(tmp_path: Path, context: OpenContext) -> None:
    model = open_huggingface(model_folder(tmp_path / "m", "llama"), context)
    model.close()
    model.close()
    with pytest.raises(ValueError, match="closed"):
        model.tensors["token_embd.weight"].read(0, 1)


def test_stacked_experts_are_the_separate_ones(tmp_path: Path, context: OpenContext) -> None:
    config = CONFIGS["qwen3moe"]
    weights = random_weights(hf_shapes(architecture_named("qwen3moe"), config))
    stacked = {name: array for name, array in weights.items() if ".experts." not in name}
    for layer in range(2):
        base = f"model.layers.{layer}.mlp.experts."
        parts = {
            part: np.stack([weights[f"{base}{expert}.{part}_proj.weight"] for expert in range(3)])
            for part in ("gate", "up", "down")
        }
        stacked[f"{base}gate_up_proj"] = np.concatenate([parts["gate"], parts["up"]], 1)
        stacked[f"{base}down_proj"] = parts["down"]
    separate = open_huggingface(write_folder(tmp_path / "a", config, stored(weights)), context)
    together = open_huggingface(write_folder(tmp_path / "b", config, stored(stacked)), context)
    assert set(separate.tensors) == set(together.tensors)
    for name, tensor in separate.tensors.items():
        assert together.tensors[name].shape == tensor.shape
        assert np.array_equal(together.tensors[name].rows(0, tensor.row_count), tensor.rows(0, tensor.row_count))
    separate.close()
    together.close()


def test_embedding_rows_count_more_than_the_configuration(tmp_path: Path, context: OpenContext) -> None:
    folder = write_folder(tmp_path / "m", CONFIGS["llama"] | {"vocab_size": 23}, tensors_of("llama"))
    with open_huggingface(folder, context) as model:
        assert model.metadata["llama.vocab_size"].value == 24
        assert "vocab_size is 23" in model.notes[0]


def test_a_bare_model_serves_its_embedding_as_output(tmp_path: Path, context: OpenContext) -> None:
    tensors = {
        name.removeprefix("model."): value for name, value in tensors_of("llama").items() if name != "lm_head.weight"
    }
    folder = write_folder(tmp_path / "m", CONFIGS["llama"] | {"architectures": ["LlamaModel"]}, tensors)
    with open_huggingface(folder, context) as model:
        assert "output.weight" not in model.tensors
        assert "bare model" in model.notes[0]


def test_the_text_model_of_a_multimodal_one(tmp_path: Path, context: OpenContext) -> None:
    text = {key: value for key, value in CONFIGS["gemma3"].items() if key != "architectures"}
    tensors = {f"language_model.{name}": value for name, value in tensors_of("gemma3").items()}
    tensors["vision_tower.weight"] = ("F8_E4M3", (2,), bytes(2))
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    with open_huggingface(write_folder(tmp_path / "m", config, tensors), context) as model:
        assert model.architecture == "gemma3"
        assert "vision tower is left out" in model.notes[0]


def test_tables_of_frequencies_come_first(tmp_path: Path, context: OpenContext) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    with open_huggingface(model_folder(tmp_path / "m", "llama", rope_scaling=scaling), context) as model:
        assert next(iter(model.tensors)) == "rope_freqs.weight"
        assert model.tensors["rope_freqs.weight"].shape == (2,)


def test_the_vocabulary_alone_needs_no_weights(tmp_path: Path, context: OpenContext) -> None:
    folder = model_folder(tmp_path / "m", "llama")
    (folder / "model.safetensors").unlink()
    assert not FORMAT.detect(folder)
    with open_huggingface(folder, replace(context, vocabulary_only=True)) as model:
        assert not model.tensors
        assert model.metadata["llama.block_count"].value == 2


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_detection_wants_both(tmp_path: Path, name: str) -> None:
    folder = model_folder(tmp_path / "m", "llama")
    assert not FORMAT.detect(folder / name)
    (folder / name).unlink()
    assert not FORMAT.detect(folder)
    assert not FORMAT.detect(tmp_path / "absent")


# --- what can be wrong ---------------------------------------------------------------------------------------------------------


def failure(folder: Path, context: OpenContext, kind: type[QconvError]) -> str:
    with pytest.raises(kind) as caught:
        open_huggingface(folder, context)
    assert caught.value.remedy
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_paths_that_are_no_model(tmp_path: Path, context: OpenContext) -> None:
    assert "no such folder" in failure(tmp_path / "absent", context, MissingFileError)
    (tmp_path / "file").touch()
    assert "is a folder" in failure(tmp_path / "file", context, UnknownFormatError)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "config.json" in failure(empty, context, MissingFileError)
    (empty / "adapter_config.json").write_text("{}")
    assert "LoRA adapter" in failure(empty, context, FormatError)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "no valid JSON"),
        (b"{", "no valid JSON"),
        (b"[]", "must hold a JSON object"),
        (b'"x"', "must hold a JSON object"),
        (b"\xff{}", "no UTF-8"),
        (b"[" * 100_000, "no valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "no valid JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_broken_json_is_named(tmp_path: Path, context: OpenContext, text: bytes, sentence: str, name: str) -> None:
    folder = model_folder(tmp_path / "m", "llama")
    (folder / name).write_bytes(text)
    message = failure(folder, context, FormatError)
    assert name in message
    assert sentence in message


def test_half_a_character_in_a_side_file(tmp_path: Path, context: OpenContext) -> None:
    """JSON can hold a lone surrogate, and UTF-8, which GGUF's strings are, cannot: what is kept of the file spells it as JSON does."""
    folder = model_folder(tmp_path / "m", "llama")
    (folder / "tokenizer_config.json").write_text(r'{"tokenizer_class": "LlamaTokenizer", "x": "\ud800"}')
    with open_huggingface(folder, context) as model:
        kept = [field.value for key, field in model.metadata.items() if key.endswith("tokenizer_config")]
        assert all(r"\ud800" in str(value) for value in kept)
        assert all(isinstance(value, str) and value.encode() for value in kept)


def test_several_that_fit_are_all_named(tmp_path: Path, context: OpenContext) -> None:
    folder = model_folder(tmp_path / "m", "llama", architectures=["MyForCausalLM"], model_type="mine")
    message = failure(folder, context, UnknownArchitectureError)
    assert "'granite' and 'llama'" in message.split("Its tensors fit ")[1]


def test_a_layer_too_many_points_to_the_configuration(tmp_path: Path, context: OpenContext) -> None:
    folder = model_folder(tmp_path / "m", "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": config["num_hidden_layers"] - 1}))
    message = failure(folder, context, UnmappedTensorError)
    assert "They are those of further layers: restore the number of layers in config.json." in message


def test_an_unknown_class_names_the_nearest(tmp_path: Path, context: OpenContext) -> None:
    folder = model_folder(tmp_path / "m", "qwen3", architectures=["MyForCausalLM"], model_type="mine")
    message = failure(folder, context, UnknownArchitectureError)
    assert all(architecture.name in message for architecture in built_in_architectures())
    assert "Its tensors fit 'qwen3' in names and shapes" in message
    assert "docs/plugins.md" in message
    assert "--as-arch" in message


def test_an_unknown_class_with_more_tensors(tmp_path: Path, context: OpenContext) -> None:
    config = CONFIGS["phi3"] | {"architectures": ["MyForCausalLM"], "model_type": "mine"}
    tensors = tensors_of("phi3") | {"model.layers.0.extra.weight": ("F32", (1,), bytes(4))}
    message = failure(write_folder(tmp_path / "m", config, tensors), context, UnknownArchitectureError)
    assert "Nearest by its tensors is 'phi3', but 1 tensors have no place in it" in message


def test_an_unknown_class_like_nothing_known(tmp_path: Path, context: OpenContext) -> None:
    folder = write_folder(tmp_path / "m", {"architectures": ["X"]}, {"a": ("F32", (1,), bytes(4))})
    assert "resemble none" in failure(folder, context, UnknownArchitectureError)


def test_a_classifier_is_not_taken_for_its_family(tmp_path: Path, context: OpenContext) -> None:
    folder = model_folder(tmp_path / "m", "llama", architectures=["LlamaForSequenceClassification"])
    failure(folder, context, UnknownArchitectureError)


def test_the_model_type_answers_where_the_class_is_silent(tmp_path: Path, context: OpenContext) -> None:
    for index, classes in enumerate((None, [], ["RenamedForCausalLM"])):
        folder = model_folder(tmp_path / f"m{index}", "qwen2", architectures=classes)
        with open_huggingface(folder, context) as model:
            assert model.architecture == "qwen2"


def test_the_user_chooses_the_architecture(tmp_path: Path, context: OpenContext) -> None:
    folder = model_folder(tmp_path / "m", "llama", architectures=["MyForCausalLM"], model_type="mine")
    with open_huggingface(folder, replace(context, architecture="llama")) as model:
        assert model.architecture == "llama"
    with pytest.raises(UnknownArchitectureError, match=r"'lama'.*Did you mean 'llama'\?"):
        open_huggingface(folder, replace(context, architecture="lama"))


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "LoRA adapter"),
        ("model.layers.0.self_attn.q_proj.qweight", "quantized checkpoint"),
        ("model.layers.0.self_attn.q_proj.weight_scale_inv", "quantized checkpoint"),
        ("model.layers.0.self_attn.q_proj.SCB", "quantized checkpoint"),
        ("model.vision_tower.patch.weight", "vision or audio tower"),
        ("model.layers.0.mlp.experts.0.gate_proj.weight", "mixture of experts"),
        ("score.weight", "classifier"),
        ("model.layers.0.self_attn.q_norm.weight", "docs/plugins.md"),
    ],
)
def test_names_without_a_place_are_listed_with_a_cause(
    tmp_path: Path, context: OpenContext, extra: str, sentence: str
) -> None:
    tensors = tensors_of("llama") | {extra: ("F32", (1,), bytes(4)), "zzz": ("F32", (1,), bytes(4))}
    folder = write_folder(tmp_path / "m", CONFIGS["llama"], tensors)
    message = failure(folder, context, UnmappedTensorError)
    assert extra in message
    assert "zzz" in message
    assert sentence in message


def test_all_names_at_fault_come_in_one_message(tmp_path: Path, context: OpenContext) -> None:
    tensors = {f"model.odd{index}": ("F32", (1,), bytes(4)) for index in range(30)}
    folder = write_folder(tmp_path / "m", CONFIGS["llama"], tensors_of("llama") | tensors)
    assert "30 tensors" in failure(folder, context, UnmappedTensorError)


def test_a_wrong_prefix_is_guessed(tmp_path: Path, context: OpenContext) -> None:
    tensors = {f"wrapped.{name}": value for name, value in tensors_of("llama").items()}
    message = failure(write_folder(tmp_path / "m", CONFIGS["llama"], tensors), context, UnmappedTensorError)
    assert "prefix" in message
    assert "model.embed_tokens.weight is expected" in message


def test_an_unknown_quantizer_is_refused_by_name(tmp_path: Path, context: OpenContext) -> None:
    config = CONFIGS["llama"] | {"quantization_config": {"quant_method": "Aqlm"}}
    message = failure(write_folder(tmp_path / "m", config, tensors_of("llama")), context, FormatError)
    assert "quant_method: 'aqlm'" in message
    assert "gptq" in message


def test_missing_tensors_are_listed(tmp_path: Path, context: OpenContext) -> None:
    gone = ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"]
    tensors = {name: value for name, value in tensors_of("llama").items() if name not in gone}
    message = failure(write_folder(tmp_path / "m", CONFIGS["llama"], tensors), context, MissingTensorError)
    assert all(name in message for name in gone)


@pytest.mark.parametrize("name", NAMES)
def test_every_wrong_shape_is_found_before_any_weight(name: str, tmp_path: Path, context: OpenContext) -> None:
    tensors = tensors_of(name)
    parameters = architecture_named(name).hyper_parameters
    measured = {parameter.measured.tensor for parameter in parameters if parameter.measured}
    for index, guilty in enumerate(sorted(set(tensors) - measured)):
        dtype, shape, data = tensors[guilty]
        wrong = (shape[0] + 1, *shape[1:])
        larger = (dtype, wrong, data + bytes(len(data) // shape[0]))
        folder = write_folder(tmp_path / f"m{index}", CONFIGS[name], tensors | {guilty: larger})
        with pytest.raises(ShapeError) as caught:
            open_huggingface(folder, context)
        assert caught.value.tensor == guilty
        assert str(wrong) in str(caught.value)
        assert caught.value.path == folder / "model.safetensors"


def test_a_configuration_of_another_model(tmp_path: Path, context: OpenContext) -> None:
    folder = write_folder(tmp_path / "m", CONFIGS["llama"] | {"hidden_size": 32, "head_dim": 4}, tensors_of("llama"))
    message = failure(folder, context, ShapeError)
    assert "hidden = 32" in message
    assert "more differ" in message


def test_weights_in_a_type_that_is_none(tmp_path: Path, context: OpenContext) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = tensors_of("llama") | {name: ("F8_E4M3FNUZ", (20, 16), bytes(320))}
    message = failure(write_folder(tmp_path / "m", CONFIGS["llama"], tensors), context, EncodingError)
    assert "F8_E4M3FNUZ" in message
    assert name in message


def test_one_tensor_under_two_names(tmp_path: Path, context: OpenContext) -> None:
    tensors = tensors_of("llama")
    folder = write_folder(tmp_path / "m", CONFIGS["llama"], tensors | {"norm.weight": tensors["model.norm.weight"]})
    message = failure(folder, context, ModelError)
    assert (
        "norm.weight and model.norm.weight are the same tensor" in message
        or "model.norm.weight and norm.weight" in message
    )


def test_files_are_closed_when_opening_fails(tmp_path: Path, context: OpenContext) -> None:
    folder = write_folder(tmp_path / "m", CONFIGS["llama"], {"a": ("F32", (1,), bytes(4))})
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    failure(folder, context, UnmappedTensorError)
    after = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    assert after == before


def test_a_truncated_shard_is_named(tmp_path: Path, context: OpenContext) -> None:
    folder = model_folder(tmp_path / "m", "llama", ["a.safetensors", "b.safetensors"])
    content = (folder / "b.safetensors").read_bytes()
    (folder / "b.safetensors").write_bytes(content[:-1])
    assert "b.safetensors" in failure(folder, context, FormatError)


def test_an_index_in_json_that_is_none(tmp_path: Path, context: OpenContext) -> None:
    folder = model_folder(tmp_path / "m", "llama", ["a.safetensors", "b.safetensors"])
    (folder / "model.safetensors.index.json").write_text(json.dumps([1]))
    assert "model.safetensors.index.json" in failure(folder, context, FormatError)


def test_an_adapter_file_alone_is_no_model(tmp_path: Path, context: OpenContext) -> None:
    folder = write_folder(tmp_path / "m", CONFIGS["llama"], {}, ())
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes({}))
    assert not FORMAT.detect(folder)
    assert "no .safetensors file" in failure(folder, context, MissingFileError)
