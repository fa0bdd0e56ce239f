"""Importance matrix files: both forms against the gguf package and a hand-written packer, and damaged files."""

from __future__ import annotations

import struct
from pathlib import Path
from types import MappingProxyType

import gguf
import numpy as np
import pytest
from gguf_files import CONTEXT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qconv.errors import FormatError, MissingFileError, TruncatedError
from qconv.formats.imatrix import gguf_imatrix, legacy_imatrix, read_imatrix
from qconv.formats.metadata import string
from qconv.quantizers.importance import ImportanceEntry, ImportanceMatrix

DENSE, EXPERTS = "blk.0.attn_q.weight", "blk.0.ffn_down_exps.weight"
SUMS = np.arange(24, dtype=np.float32).reshape(3, 8)


def sample() -> ImportanceMatrix:
    """A dense entry, and one of three experts of which the last saw nothing."""
    experts = SUMS.copy()
    experts[2] = 0
    return ImportanceMatrix(
        MappingProxyType(
            {
                DENSE: ImportanceEntry(SUMS[1:2], np.array([2048.0])),
                EXPERTS: ImportanceEntry(experts, np.array([1500.0, 100, 0])),
            }
        ),
        ("wiki.txt", "code.txt"),
        chunk_count=4,
        chunk_size=512,
        compat=True,
    )


def legacy(entries: dict[str, tuple[int, list[float]]], trailer: bytes = b"") -> bytes:
    """The .dat form, by hand."""
    out = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        out += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values))
        out += struct.pack(f"<{len(values)}f", *values)
    return out + trailer


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def with_gguf(path: Path, tensors: dict[str, np.ndarray], kind: str = "imatrix") -> Path:
    """A file by the gguf package, as llama-imatrix lays it out."""
    writer = gguf.GGUFWriter(path, arch="")
    writer.kv_data[0].pop("general.architecture", None)
    writer.add_type(kind)
    writer.add_array("imatrix.datasets", ["a.txt", "b.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 256)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_read_gguf_form(tmp_path: Path) -> None:
    counts = np.array([[2], [4], [8]], np.float32)
    path = with_gguf(tmp_path / "i.gguf", {f"{EXPERTS}.in_sum2": SUMS, f"{EXPERTS}.counts": counts})
    found = read_imatrix(path, CONTEXT, compat=True)
    assert (found.datasets, found.chunk_count, found.chunk_size) == (("a.txt", "b.txt"), 7, 256)
    for expert in range(3):
        assert found.vector(EXPERTS, 8, expert, 3).tolist() == (SUMS[expert] / counts[expert]).tolist()


def test_one_count_for_all_experts(tmp_path: Path) -> None:
    one = np.array([[4]], np.float32)
    path = with_gguf(tmp_path / "i.gguf", {f"{EXPERTS}.in_sum2": SUMS, f"{EXPERTS}.counts": one})
    assert read_imatrix(path, CONTEXT, compat=True).vector(EXPERTS, 8, 2, 3).tolist() == (SUMS[2] / 4).tolist()


def test_write_gguf_form(tmp_path: Path) -> None:
    path = write(tmp_path / "i.gguf", gguf_imatrix(sample(), {"qconv.note": string("ours")}))
    reader = gguf.GGUFReader(path)
    assert [t.name for t in reader.tensors] == [
        f"{name}.{part}" for name in sorted((DENSE, EXPERTS)) for part in ("in_sum2", "counts")
    ]
    tensors = {t.name: t for t in reader.tensors}
    assert tensors[f"{EXPERTS}.in_sum2"].shape.tolist() == [8, 3]
    assert tensors[f"{EXPERTS}.counts"].shape.tolist() == [1, 3]
    assert tensors[f"{EXPERTS}.counts"].data.ravel().tolist() == [1500, 100, 0]
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["wiki.txt", "code.txt"]
    assert "general.architecture" not in reader.fields
    found = read_imatrix(path, CONTEXT)
    assert found.entries[EXPERTS].sums.tolist() == sample().entries[EXPERTS].sums.tolist()
    assert (found.datasets, found.chunk_count, found.chunk_size) == (("wiki.txt", "code.txt"), 4, 512)


@pytest.mark.parametrize("trailer", [b"", struct.pack("<ii", 4, 5) + b"t.txt"])
def test_read_legacy_form(tmp_path: Path, trailer: bytes) -> None:
    data = legacy({DENSE: (4, [4.0, 8.0, 12.0]), EXPERTS: (3, [3.0, 6.0, 9.0, 12.0])}, trailer)
    found = read_imatrix(write(tmp_path / "i.dat", data), CONTEXT, compat=True)
    assert found.vector(DENSE, 3).tolist() == [1, 2, 3]
    assert found.vector(EXPERTS, 2, 1, 2).tolist() == [3, 4]
    assert (found.datasets, found.chunk_count) == ((("t.txt",), 4) if trailer else ((), 0))


def test_write_legacy_form(tmp_path: Path) -> None:
    data = legacy_imatrix(sample())
    means = SUMS[:2] / np.array([[1500], [100]])
    expected = legacy(
        {
            DENSE: (4, (SUMS[1] / 2048 * 4).tolist()),
            EXPERTS: (3, [*(means * 3).ravel().tolist(), *[3.0] * 8]),
        },
        struct.pack("<ii", 4, 8) + b"wiki.txt",
    )
    assert data == expected
    found = read_imatrix(write(tmp_path / "i.dat", data), CONTEXT, compat=True)
    for expert in range(3):
        assert found.vector(EXPERTS, 8, expert, 3) == pytest.approx(sample().vector(EXPERTS, 8, expert, 3), rel=1e-6)


def test_entries_without_data_are_left_out_of_the_legacy_form() -> None:
    empty = ImportanceMatrix({"a": ImportanceEntry(np.zeros((1, 2), np.float32), np.zeros(1))})
    assert legacy_imatrix(empty) == struct.pack("<iii", 0, 0, 0)


GOOD = legacy({DENSE: (4, [4.0, 8.0])}, struct.pack("<ii", 4, 5) + b"t.txt")


@pytest.mark.parametrize("length", range(len(GOOD)))
def test_truncated_legacy_files(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "i.dat", GOOD[:length])
    if length == len(legacy({DENSE: (4, [4.0, 8.0])})):  # older files end here
        assert read_imatrix(path, CONTEXT).datasets == ()
        return
    with pytest.raises(FormatError) as caught:
        read_imatrix(path, CONTEXT)
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (struct.pack("<i", 2**31 - 1) + bytes(64), "number of entries cannot be 2147483647"),
        (struct.pack("<i", -1) + bytes(64), "number of entries cannot be -1"),
        (struct.pack("<ii", 1, 2**30) + bytes(64), "length of a tensor's name cannot be"),
        (struct.pack("<ii", 1, 5000) + bytes(6000), "cannot have 5000 bytes"),
        (struct.pack("<ii", 1, 2) + b"\xff\xfe" + bytes(64), "is no text"),
        (legacy({"a": (0, [1.0, 1, 1])}), "number of calls cannot be 0"),
        (legacy({"a": (1, [])}) + bytes(8), "number of values cannot be 0"),
        (GOOD + b"x", "1 bytes are left over"),
        (struct.pack("<i", 2) + GOOD[4:60] * 2, "second entry|cannot be"),
        (legacy({"a": (1, [1.0, float("nan"), 1])}), "tensor a: importance has sums that are not finite"),
        (legacy({"a": (1, [1.0, 3e38, 1])}), "tensor a: importance has sums that are not finite"),
        (legacy({"a": (1, [1.0, -1.0, 1])}), "tensor a: importance has negative sums"),
    ],
)
def test_lying_legacy_files(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        read_imatrix(write(tmp_path / "i.dat", data), CONTEXT)


def test_a_short_file_is_truncated(tmp_path: Path) -> None:
    with pytest.raises(TruncatedError, match="at byte 0"):
        read_imatrix(write(tmp_path / "i.dat", b"ab"), CONTEXT)


def test_foreign_and_damaged_gguf_files(tmp_path: Path) -> None:
    sums, counts = f"{DENSE}.in_sum2", f"{DENSE}.counts"
    one = np.ones((1, 1), np.float32)
    bad = SUMS.copy()
    bad[1, 1] = np.inf
    cases = {
        "not an importance matrix": with_gguf(tmp_path / "a", {"x": SUMS}),
        "of type 'model'": with_gguf(tmp_path / "b", {sums: SUMS, counts: one}, kind="model"),
        "there is no tensor": with_gguf(tmp_path / "c", {sums: SUMS}),
        "not F32": with_gguf(tmp_path / "d", {sums: SUMS.astype(np.float16), counts: one}),
        "attn_q.weight: importance has sums that are not finite": with_gguf(tmp_path / "e", {sums: bad, counts: one}),
        "counts of shape": with_gguf(tmp_path / "f", {sums: SUMS, counts: np.ones((2, 1), np.float32)}),
    }
    for words, path in cases.items():
        with pytest.raises(FormatError, match=words):
            read_imatrix(path, CONTEXT)
    with pytest.raises(MissingFileError):
        read_imatrix(tmp_path / "none", CONTEXT)


@settings(max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_mutated_legacy_files_never_crash(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = write(tmp_path / "m.dat", bytes(content))
    try:
        found = read_imatrix(path, CONTEXT)
    except FormatError as error:
        assert error.path == path
    else:
        assert all(np.isfinite(entry.sums).all() for entry in found.entries.values())
