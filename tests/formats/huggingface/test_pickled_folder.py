"""Folders with ``pytorch_model*.bin`` open as those with safetensors do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch_files as made
from huggingface_folder import CONFIGS, architecture_named, hf_shapes, model_folder, random_weights

from qconv.errors import FormatError, MissingFileError
from qconv.formats.base import Model, OpenContext
from qconv.formats.huggingface import FORMAT
from qconv.formats.huggingface.checkpoint import checkpoint_files, open_checkpoint
from qconv.formats.huggingface.reader import open_huggingface

SHARDS = tuple(f"pytorch_model-{part:05d}-of-00003.bin" for part in range(1, 4))


def write(
    folder: Path, name: str, shards: tuple[str, ...] = ("pytorch_model.bin",), form: Any = made.zip_checkpoint
) -> Path:
    """Write the model that ``model_folder`` writes, in torch's form."""
    folder.mkdir(exist_ok=True)
    weights = random_weights(hf_shapes(architecture_named(name), CONFIGS[name]))
    arrays = {label: (array.view(np.uint32) >> 16).astype("<u2") for label, array in weights.items()}
    (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
    weight_map = {label: shards[index % len(shards)] for index, label in enumerate(arrays)}
    for shard in shards:
        (folder / shard).write_bytes(form({label: arrays[label] for label in arrays if weight_map[label] == shard}))
    if len(shards) > 1:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def plain(model: Model) -> dict[str, object]:
    """Return the metadata with arrays as lists, which can be compared."""
    return {key: np.asarray(field.value).tolist() for key, field in model.metadata.items()}


@pytest.mark.usefixtures("no_tokenizer")
@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize(
    ("shards", "form"), [(("pytorch_model.bin",), made.zip_checkpoint), (SHARDS, made.legacy_checkpoint)]
)
def test_same_model_as_safetensors(
    tmp_path: Path, context: OpenContext, name: str, shards: tuple[str, ...], form: Any
) -> None:
    folder = write(tmp_path / "m", name, shards, form)
    assert FORMAT.detect(folder)
    (tmp_path / "other").mkdir()
    other = model_folder(tmp_path / "other" / "m", name)  # of the same name, which becomes the model's
    with open_huggingface(folder, context) as found, open_huggingface(other, context) as expected:
        assert plain(found) == plain(expected)
        assert list(found.tensors) == list(expected.tensors)
        for label, tensor in found.tensors.items():
            wanted = expected.tensors[label]
            assert (tensor.shape, tensor.encoding) == (wanted.shape, wanted.encoding)
            assert tensor.read(0, tensor.row_count).tobytes() == wanted.read(0, wanted.row_count).tobytes()
        index = {folder / "pytorch_model.bin.index.json"} if len(shards) > 1 else set()
        assert {path for path in found.files if path.name != "config.json"} == {
            folder / shard for shard in shards
        } | index


def test_safetensors_come_first(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", "llama")
    (folder / "pytorch_model.bin").write_bytes(b"not looked at")
    assert checkpoint_files(folder) == (folder / "model.safetensors",)
    open_checkpoint(folder).close()


def test_what_autogptq_calls_its_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "llama")
    usual = open_checkpoint(folder)
    (folder / "pytorch_model.bin").rename(folder / "gptq_model-4bit-128g.bin")
    assert FORMAT.detect(folder)
    found = open_checkpoint(folder)
    assert found.tensors.keys() == usual.tensors.keys()
    assert [path.name for path in found.files] == ["gptq_model-4bit-128g.bin"]
    usual.close()
    found.close()


def test_missing_shards_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "llama", SHARDS)
    (folder / SHARDS[1]).unlink()
    for _ in range(2):
        with pytest.raises(MissingFileError, match=SHARDS[1]):
            open_checkpoint(folder)
        (folder / "pytorch_model.bin.index.json").unlink(missing_ok=True)


def test_other_programs_files_are_left_alone(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "llama")
    for name in ("training_args.bin", "optimizer.bin", "scheduler.bin"):
        (folder / name).write_bytes(b"not looked at")
    assert checkpoint_files(folder) == (folder / "pytorch_model.bin",)
    open_checkpoint(folder).close()


@pytest.mark.parametrize("name", ["../pytorch_model.bin", "a/b.bin", "model.safetensors", ".bin", "x.bin\0"])
def test_index_names_never_leave_the_folder(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "m", "llama", SHARDS)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(FormatError, match="no name of a bin file"):
        open_checkpoint(folder)


def test_a_hostile_file_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "llama")
    value = made.dictionary({"a": made.name("os", "system") + made.text("true") + b"\x85R"})
    (folder / "pytorch_model.bin").write_bytes(made.archive(made.members(made.pickled(value), {})))
    with pytest.raises(FormatError, match=r"asks for os\.system"):
        open_checkpoint(folder)


@pytest.mark.oracles
def test_a_folder_that_torch_wrote(tmp_path: Path, context: OpenContext, no_tokenizer: None) -> None:
    """With a tied output matrix, which torch stores once under two names."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    for name in ("safe", "pickled"):
        (tmp_path / name / "m").mkdir(parents=True)
    model.save_pretrained(tmp_path / "safe" / "m")
    model.config.save_pretrained(tmp_path / "pickled" / "m")
    model.generation_config.save_pretrained(tmp_path / "pickled" / "m")
    torch.save(model.state_dict(), tmp_path / "pickled" / "m" / "pytorch_model.bin")
    with (
        open_huggingface(tmp_path / "pickled" / "m", context) as found,
        open_huggingface(tmp_path / "safe" / "m", context) as expected,
    ):
        assert plain(found) == plain(expected)
        assert list(found.tensors) == list(expected.tensors)
        for label, tensor in found.tensors.items():
            wanted = expected.tensors[label]
            assert tensor.read(0, tensor.row_count).tobytes() == wanted.read(0, wanted.row_count).tobytes()
