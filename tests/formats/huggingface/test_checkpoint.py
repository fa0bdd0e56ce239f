from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_folder import Stored, safetensors_bytes, write_folder

from qconv.errors import FormatError, MissingFileError
from qconv.formats.huggingface.checkpoint import open_checkpoint

TENSORS: dict[str, Stored] = {f"t{index}": ("F32", (index, 2), bytes(8 * index)) for index in range(1, 7)}
SHARDS = tuple(f"model-{part:05d}-of-00003.safetensors" for part in range(1, 4))


def names(folder: Path) -> set[str]:
    checkpoint = open_checkpoint(folder)
    checkpoint.close()
    return set(checkpoint.tensors)


@pytest.mark.parametrize("shards", [("model.safetensors",), SHARDS, ("a.safetensors", "b.safetensors")])
def test_single_and_sharded_files_hold_the_same(tmp_path: Path, shards: tuple[str, ...]) -> None:
    assert names(write_folder(tmp_path / "m", {}, TENSORS, shards)) == set(TENSORS)


@pytest.mark.parametrize("shards", [SHARDS, ("one.safetensors", "two.safetensors")])
def test_an_index_is_not_needed(tmp_path: Path, shards: tuple[str, ...]) -> None:
    folder = write_folder(tmp_path / "m", {}, TENSORS, shards)
    (folder / "model.safetensors.index.json").unlink()
    assert names(folder) == set(TENSORS)


def test_other_forms_of_the_weights_are_left_alone(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", {}, TENSORS, ("one.safetensors", "two.safetensors"))
    (folder / "model.safetensors.index.json").unlink()
    (folder / "consolidated.safetensors").write_bytes(b"not looked at")
    (folder / "adapter_model.safetensors").write_bytes(b"not looked at")
    assert names(folder) == set(TENSORS)


def test_the_single_file_comes_before_an_index(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", {}, TENSORS, SHARDS)
    (folder / "model.safetensors").write_bytes(safetensors_bytes({"only": ("F32", (1,), bytes(4))}))
    checkpoint = open_checkpoint(folder)
    checkpoint.close()
    assert set(checkpoint.tensors) == {"only"}
    assert "ignored" in checkpoint.notes[0]


@pytest.mark.parametrize("with_index", [True, False])
def test_missing_shards_are_named(tmp_path: Path, with_index: bool) -> None:
    folder = write_folder(tmp_path / "m", {}, TENSORS, SHARDS)
    (folder / SHARDS[1]).unlink()
    if not with_index:
        (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(MissingFileError, match=SHARDS[1]) as caught:
        open_checkpoint(folder)
    assert caught.value.path == folder / SHARDS[1]


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no \.safetensors file"):
        open_checkpoint(tmp_path)


def with_index(folder: Path, weight_map: Any) -> Path:
    write_folder(folder, {}, TENSORS, SHARDS)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x.safetensors", "C:x.safetensors", ".safetensors",
     "x.bin", "", 7, None, ["x.safetensors"], "x\0.safetensors"],
)  # fmt: skip
def test_index_names_never_leave_the_folder(tmp_path: Path, name: Any) -> None:
    with pytest.raises(FormatError, match="no name of a safetensors file in this folder") as caught:
        open_checkpoint(with_index(tmp_path / "m", {"t1": name}))
    assert caught.value.tensor == "t1"


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_an_index_without_a_map(tmp_path: Path, weight_map: Any) -> None:
    with pytest.raises(FormatError, match="no weight_map"):
        open_checkpoint(with_index(tmp_path / "m", weight_map))


def test_an_index_that_disagrees_with_its_files(tmp_path: Path) -> None:
    sound = {name: SHARDS[index % 3] for index, name in enumerate(TENSORS)}
    for change, sentence in (
        (sound | {"ghost": SHARDS[0]}, "names tensors that its files lack: ghost"),
        (sound | {"t1": SHARDS[1]}, "other files than those which hold the tensors: t1"),
        ({name: file for name, file in sound.items() if name != "t4"}, "tensors that it does not name: t4"),
    ):
        with pytest.raises(FormatError, match=sentence):
            open_checkpoint(with_index(tmp_path / "m", change))


def test_one_tensor_in_two_files(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", {}, TENSORS, ("a.safetensors",))
    (folder / "b.safetensors").write_bytes(safetensors_bytes({"t2": TENSORS["t2"]}))
    with pytest.raises(FormatError, match=r"is in a\.safetensors and again in b\.safetensors"):
        open_checkpoint(folder)


def test_a_cache_of_links_is_followed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", {}, TENSORS)
    (tmp_path / "blob").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    assert names(folder) == set(TENSORS)
