"""What is said of paths that are no models: what they are, and what to do, in one sentence each."""

from __future__ import annotations

import gzip
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

import qconv
from qconv.errors import MissingFileError, QconvError, UnknownFormatError
from qconv.runtime.building.network import load_network

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
EXAMPLE = Path(__file__).parents[2] / "examples" / "prose-llama-7m"


def said(path: Path) -> str:
    with pytest.raises(UnknownFormatError) as caught:
        qconv.open(path)
    assert caught.value.path == path
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    return str(caught.value)


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", "{}")


def written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("m.gguf", written(b""), ("empty", "again")),
        ("m.gguf", written(POINTER), ("Git LFS pointer", "git lfs pull")),
        ("m.gguf", written(b"<!DOCTYPE html><html>"), ("web page", "download link")),
        ("m.gguf.gz", lambda path: path.write_bytes(gzip.compress(b"GGUF")), ("gzip", "Unpack")),
        ("m.zip", zipped, ("zip archive", "Unpack")),
        ("m.tar", written(bytes(257) + b"ustar" + bytes(250)), ("tar archive", "Unpack")),
        ("m.h5", written(b"\x89HDF\r\n\x1a\n"), ("HDF5", "safetensors")),
        ("m.tflite", written(b"\x1c\0\0\0TFL3"), ("TensorFlow Lite", "Hugging Face")),
        ("m.onnx", written(b"\x08\x07\x12\x07pytorch"), ("ONNX", "Hugging Face")),
        ("m.pkl", lambda path: path.write_bytes(pickle.dumps({"a": 1})), ("pickle", "not run", "state_dict")),
        ("model.safetensors", written(b"\x08\0\0\0\0\0\0\0{}"), ("weights", "folder", "config.json")),
        ("m.gguf", written(b"\xb7\xcf\x16\x33 nonsense"), ("b7 cf 16 33", "encrypted", "gguf, huggingface")),
    ],
)
def test_files(tmp_path: Path, name: str, write: Callable[[Path], object], words: tuple[str, ...]) -> None:
    path = tmp_path / name
    write(path)
    text = said(path)
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((), ("empty", "Download")),
        (("a.txt",), ("a.txt", "Readable formats")),
        (("adapter_config.json", "adapter_model.safetensors"), ("LoRA adapter", "Merge")),
        (("model_index.json", "unet"), ("diffusers", "language models")),
        (("model.safetensors", "tokenizer.json"), ("model.safetensors", "no config.json", "Copy config.json")),
        (("consolidated.safetensors",), ("no params.json",)),
        (("config.json", "model.onnx"), ("no weights", "model.onnx", "safetensors form")),
        (("config.json", "tf_model.h5"), ("no weights", "tf_model.h5")),
        (("config.json", "model.pt"), ("no weights", "model.pt", "pytorch_model.bin")),
        (("config.json",), ("no weights", "Download")),
    ],
)
def test_folders(tmp_path: Path, names: tuple[str, ...], words: tuple[str, ...]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"{}")
    text = said(folder)
    assert all(word in text for word in words), text


def test_models_inside(tmp_path: Path) -> None:
    """The folder around a model, the cache of a hub, and a folder with files that are models by themselves."""
    (tmp_path / "models--a--b" / "snapshots").mkdir(parents=True)
    inner = tmp_path / "models--a--b" / "snapshots" / "0123"
    shutil.copytree(EXAMPLE, inner)
    assert f"Name it: {inner}" in said(tmp_path / "models--a--b")
    assert str(inner) in said(inner.parent)
    files = tmp_path / "files"
    files.mkdir()
    for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf"):
        writer = gguf.GGUFWriter(files / name, "llama")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
    assert "Name it: " + str(files / "m-00001-of-00002.gguf") in said(files)
    shutil.copy(files / "m-00001-of-00002.gguf", files / "other.gguf")
    assert "one of them" in said(files)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("modle.gguf", "There is model.gguf."),
        ("https://huggingface.co/a/b", "qconv downloads nothing"),
        ("organisation/name", "name on the Hugging Face Hub"),
        ("entirely-different", "Check the spelling"),
    ],
)
def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, words: str) -> None:
    (tmp_path / "model.gguf").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError) as caught:
        qconv.open(path)
    assert words in str(caught.value)


def test_links_and_pipes(tmp_path: Path) -> None:
    """A pipe is not opened, which would wait for a writer."""
    (tmp_path / "link").symlink_to("gone.gguf")
    with pytest.raises(MissingFileError, match=r"link leads nowhere.*gone\.gguf"):
        qconv.open(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in said(tmp_path / "pipe")


def test_weights_beside_the_usual_file_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EXAMPLE, folder)
    shutil.copy(folder / "model.safetensors", folder / "model.fp16.safetensors")
    with qconv.open(folder) as model:
        assert any(note.startswith("model.fp16.safetensors is ignored") for note in model.notes)


def test_parts_of_models_are_named(tmp_path: Path) -> None:
    """A vision projector, and a vocabulary alone: they open, and what cannot be done with them is said."""
    for architecture, words in (("clip", "mmproj"), ("llama", "vocabulary and no weights")):
        path = tmp_path / f"{architecture}.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        if architecture == "llama":
            writer.add_embedding_length(64)
            writer.add_block_count(1)
            writer.add_head_count(4)
            writer.add_context_length(64)
            writer.add_layer_norm_rms_eps(1e-5)
            writer.add_vocab_size(32)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        with qconv.open(path) as model, pytest.raises(QconvError) as caught:
            load_network(model)
        assert words in str(caught.value)
    with pytest.raises(QconvError, match="mmproj"):
        qconv.convert_model(tmp_path / "clip.gguf", tmp_path / "out", to="huggingface")
    assert not (tmp_path / "out").exists()
