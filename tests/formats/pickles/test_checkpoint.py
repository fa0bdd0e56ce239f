"""Both forms of torch's checkpoints, made without torch."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch_files as made
from numpy.typing import NDArray
from torch_files import Entry, archive, dictionary, integer, items, pickled, storage, tensor, text

from qconv.errors import FormatError, TruncatedError
from qconv.formats.pickles import PickledCheckpoint, is_pickled_checkpoint, read_pickled_checkpoint
from qconv.formats.pickles.allowed import ITEM_BYTES
from qconv.formats.positional import PositionalFile
from qconv.formats.stored import StoredTensor, read_rows

RNG = np.random.default_rng(0)
ARRAYS: dict[str, NDArray[Any]] = {
    "matrix": RNG.standard_normal((5, 7)).astype("<f4"),
    "half": RNG.standard_normal((3, 2, 4)).astype("<f2"),
    "brain": RNG.integers(0, 1 << 16, (4, 3)).astype("<u2"),
    "double": RNG.standard_normal(6),
    "counts": np.arange(-4, 4, dtype="<i8"),
    "bytes": np.arange(9, dtype=np.uint8),
    "scalar": np.array(3.5, "<f4"),
    "empty": np.zeros((0, 4), "<f4"),
}
FORMS = {"zip": made.zip_checkpoint, "legacy": made.legacy_checkpoint}


def opened(path: Path, content: bytes) -> PickledCheckpoint:
    path.write_bytes(content)
    file = PositionalFile(path)
    try:
        return read_pickled_checkpoint(file)
    finally:
        file.close()


def data(stored: StoredTensor) -> bytes:
    file = PositionalFile(stored.file.path)
    try:
        rows = int(np.prod(stored.shape[:-1]))
        return read_rows(replace(stored, file=file), ITEM_BYTES[stored.dtype], 0, rows).tobytes()
    finally:
        file.close()


def check(found: PickledCheckpoint, arrays: Mapping[str, NDArray[Any]]) -> None:
    assert list(found.tensors) == list(arrays)
    for name, stored in found.tensors.items():
        assert stored.name == name
        assert stored.shape == arrays[name].shape
        assert stored.nbytes == arrays[name].nbytes
        assert data(stored) == arrays[name].tobytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.pth"


@pytest.mark.parametrize("form", FORMS)
def test_reads_both_forms(path: Path, form: str) -> None:
    found = opened(path, FORMS[form](ARRAYS))
    check(found, ARRAYS)
    assert found.container == form
    assert is_pickled_checkpoint(path)
    dtypes = [stored.dtype for stored in found.tensors.values()]
    assert dtypes == ["F32", "F16", "BF16", "F64", "I64", "U8", "F32", "F32"]


def test_views_that_share_a_storage(path: Path) -> None:
    whole = np.arange(60, dtype="<f4")
    shared = storage("0", "Float", 60)
    views = {
        "rows": (whole.reshape(6, 10)[2:4], 20, (10, 1)),
        "one row": (whole[None, 10:20], 10, (77, 1)),
        "columns": (whole.reshape(6, 10)[:, 3:7], 3, (10, 1)),
        "transposed": (whole.reshape(6, 10).T, 0, (1, 10)),
        "every other": (whole[::2].reshape(5, 6), 0, (12, 2)),
        "stack": (whole.reshape(3, 4, 5).transpose(1, 0, 2), 0, (5, 20, 1)),
        "vector": (whole[5:60:11], 5, (11,)),
        "repeated": (np.broadcast_to(whole[:5], (100, 5)), 0, (0, 1)),
        "diagonal": (whole[:49].reshape(7, 7).diagonal()[None], 0, (60, 8)),
    }
    entries = {name: tensor(shared, offset, view.shape, strides) for name, (view, offset, strides) in views.items()}
    found = opened(path, archive(made.members(pickled(dictionary(entries)), {"0": whole.tobytes()})))
    check(found, {name: np.ascontiguousarray(view) for name, (view, _, _) in views.items()})
    strided = {name for name, stored in found.tensors.items() if stored.strides is not None}
    assert strided == views.keys() - {"rows", "one row"}


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict", "module"])
def test_weights_inside_of_what_a_training_program_saves(path: Path, wrapper: str) -> None:
    value, stored = made.plain_tensors(ARRAYS)
    outer = dictionary({"epoch": integer(3), wrapper: value, "lr": b"N"})
    check(opened(path, archive(made.members(pickled(outer), stored))), ARRAYS)


def test_what_is_no_tensor_is_left_out_and_told(path: Path) -> None:
    inner = tensor(storage("0", "Float", 1), 0, (), ())
    value = dictionary({"a": inner, "bad\n": b"N", "version": integer(2)})
    found = opened(path, archive(made.members(pickled(value), {"0": bytes(4)})))
    assert list(found.tensors) == ["a"]
    assert found.notes == ("m.pth holds besides tensors: bad?, version; these are left out",)


@pytest.mark.parametrize("value", [b"N", integer(1), b"]", dictionary({"model": b"N", "epoch": b"N"}), text("weights")])
def test_a_file_without_tensors(path: Path, value: bytes) -> None:
    with pytest.raises(FormatError, match="no dictionary of tensors"):
        opened(path, archive(made.members(pickled(value), {})))


@pytest.mark.parametrize("label", ["", "x" * 1025])
def test_names_of_tensors(path: Path, label: str) -> None:
    value = dictionary({label: tensor(storage("0", "Float", 1), 0, (), ())})
    with pytest.raises(FormatError, match=f"{len(label)} characters"):
        opened(path, archive(made.members(pickled(value), {"0": bytes(4)})))


VALUE, DATA = made.plain_tensors({"a": np.ones(4, "<f4"), "b": np.ones(2, "<f4")})
MEMBERS = made.members(pickled(VALUE), DATA)


def without(label: str) -> list[Entry]:
    return [entry for entry in MEMBERS if entry.label != label.encode()]


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        (without("archive/data/1"), "storage 1, which the pickle names, is not in the archive"),
        (without("archive/data.pkl"), "holds 0 files data.pkl"),
        ([*MEMBERS, Entry(b"other/data.pkl", b"N.")], "holds 2 files data.pkl"),
        ([*MEMBERS, Entry(b"other/data/0", b"")], "lies outside of 'archive/'"),
        ([*MEMBERS, Entry(b"archive/constants.pkl", b"")], "TorchScript"),
        ([*without("archive/byteorder"), Entry(b"archive/byteorder", b"big")], "little-endian order"),
        ([*without("archive/data/0"), Entry(b"archive/data/0", bytes(12))], "storage 0 has 12 bytes, the pickle gives 16"),
        ([*without("archive/data/0"), Entry(b"archive/data/0", bytes(20))], "storage 0 has 20 bytes, the pickle gives 16"),
        (made.members(pickled(VALUE) + b"N.", DATA), "bytes follow the pickle"),
    ],
)  # fmt: skip
def test_archives_that_are_no_checkpoint(path: Path, entries: list[Entry], problem: str) -> None:
    with pytest.raises(FormatError, match=problem) as caught:
        opened(path, archive(entries))
    assert caught.value.path == path


FOUR, TWO = (4, bytes(16)), (2, bytes(8))
ABSOLUTE = dictionary({"a": tensor(storage("7", "Float", 4, b"N"), 0, (4,), (1,)), "b": tensor(storage("8", "Float", 2, b"N"), 0, (2,), (1,))})  # fmt: skip


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (made.legacy_file(ABSOLUTE, ["7"], [FOUR]), "does not name those that the tensors view"),
        (made.legacy_file(ABSOLUTE, ["7", "8", "9"], [FOUR, TWO, TWO]), "does not name those that the tensors view"),
        (made.legacy_file(ABSOLUTE, ["7", "8", "8"], [FOUR, TWO, TWO]), "names one twice"),
        (made.legacy_file(ABSOLUTE, ["8", "7"], [FOUR, TWO]), "storage 8 has 4 elements, its tensors give 2"),
        (made.legacy_file(ABSOLUTE, ["7", "8"], [FOUR, TWO]) + b"\0", "1 bytes follow the last storage"),
        (made.legacy_file(ABSOLUTE, ["7", "8"], [FOUR, TWO], b"\x89"), "little-endian order"),
        (made.legacy_file(ABSOLUTE, ["7", "8"], [FOUR, (-1, b"")]), "elements, its tensors give 2"),
        (made.LEGACY_MAGIC + pickled(integer(1002)), "version is not 1001"),
    ],
)
def test_malformed_legacy_files(path: Path, content: bytes, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        opened(path, content)


def test_views_of_legacy_storages(path: Path) -> None:
    view = items(text("5"), integer(1), integer(3))
    value = dictionary({"a": tensor(storage("7", "Float", 4, view), 1, (2,), (1,))})
    found = opened(path, made.legacy_file(value, ["7"], [(4, struct.pack("<4f", 1, 2, 3, 4))]))
    assert data(found.tensors["a"]) == struct.pack("<2f", 3, 4)


@pytest.mark.parametrize("form", FORMS)
def test_every_cut_is_noticed(path: Path, form: str) -> None:
    content = FORMS[form]({"a": ARRAYS["matrix"], "b": ARRAYS["half"]})
    for length in range(0, len(content), 5):
        with pytest.raises(FormatError):
            opened(path, content[:length])
    with pytest.raises(TruncatedError):
        opened(path, content[:-1])


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"sys_info\0" + bytes(600), "zip archive"),
        (b"", ""),
    ],
)
def test_other_files(path: Path, content: bytes, remedy: str) -> None:
    with pytest.raises(FormatError, match="no checkpoint of torch's") as caught:
        opened(path, content)
    assert remedy in str(caught.value.remedy)
    assert not is_pickled_checkpoint(path)


def test_detection(path: Path) -> None:
    """Not every zip archive is a checkpoint, and a checkpoint may have been packed again in another order."""
    path.write_bytes(archive([Entry(b"word/document.xml", bytes(5000))]))
    assert not is_pickled_checkpoint(path)
    path.write_bytes(archive([Entry(b"a/data/0", bytes(5000)), Entry(b"a/data.pkl", b"N.")]))
    assert is_pickled_checkpoint(path)
    assert not is_pickled_checkpoint(path.parent)
    assert not is_pickled_checkpoint(path.with_name("absent"))
