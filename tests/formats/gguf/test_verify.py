"""A single flipped bit, wherever it lies, is found."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from gguf_files import Craft, write_layout
from qconv_encodings import ENCODINGS

from qconv.errors import FormatError, MissingFileError, VerificationError
from qconv.formats.base import OutputTensor, WriteOptions
from qconv.formats.gguf import lay_out_gguf, verify_gguf
from qconv.formats.gguf.verify import VerifyReport
from qconv.formats.metadata import ValueType, numbers, string, strings, uint32

DEFAULT = WriteOptions()
METADATA = {
    "general.architecture": string("llama"),
    "llama.block_count": uint32(1),
    "tokenizer.ggml.tokens": strings(["a", "b", ""]),
    "tokenizer.ggml.scores": numbers([0, -1, -2], ValueType.FLOAT32),
}
TENSORS = [
    OutputTensor("token_embd.weight", (3, 5), ENCODINGS["F32"]),
    OutputTensor("blk.0.attn_q.weight", (2, 32), ENCODINGS["Q8_0"]),
    OutputTensor("blk.0.attn_norm.weight", (3,), ENCODINGS["F16"]),
]


def write(path: Path, options: WriteOptions = DEFAULT) -> list[Path]:
    generator = np.random.default_rng(5)
    data = {tensor.name: generator.bytes(tensor.nbytes) for tensor in TENSORS}
    return write_layout(lay_out_gguf(path, METADATA, TENSORS, options), data)


def found(path: Path) -> str:
    """How verification ends: ``ok``, ``report`` (it says what is wrong) or ``refused`` (no header to go by)."""
    try:
        report = verify_gguf(path, threads=1)
    except (FormatError, VerificationError) as error:
        assert error.path is not None
        return "refused"
    assert report.ok == (not report.problems())
    return "ok" if report.ok else "report"


def flip(path: Path, at: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def test_a_sound_file(tmp_path: Path) -> None:
    (path,) = write(tmp_path / "m.gguf")
    report = verify_gguf(path)
    assert report.ok
    assert report.problems() == ()
    (part,) = report.parts
    assert [(tensor.name, tensor.nbytes) for tensor in part.tensors] == [
        ("token_embd.weight", 60),
        ("blk.0.attn_q.weight", 68),
        ("blk.0.attn_norm.weight", 6),
    ]
    assert report.to_dict()["ok"] is True


@pytest.mark.parametrize("bit", [0, 5, 7])
def test_a_flipped_bit_at_every_byte(tmp_path: Path, bit: int) -> None:
    (path,) = write(tmp_path / "m.gguf", WriteOptions(alignment=64))
    size = path.stat().st_size
    outcomes = []
    for at in range(size):
        flip(path, at, bit)
        outcomes.append(found(path))
        flip(path, at, bit)
    assert [at for at in range(size) if outcomes[at] == "ok"] == []
    assert outcomes.count("report") > size // 2
    assert found(path) == "ok"


def test_a_flipped_bit_in_any_part(tmp_path: Path) -> None:
    paths = write(tmp_path / "m.gguf", WriteOptions(split_max_tensors=1))
    assert found(paths[0]) == "ok"
    for path in paths:
        for at in range(0, path.stat().st_size, 7):
            flip(path, at, at % 8)
            assert found(paths[0]) != "ok", (path, at)
            flip(path, at, at % 8)
    assert found(paths[0]) == "ok"
    with pytest.raises(FormatError, match="Open m-00001-of-00003"):
        verify_gguf(paths[1])
    paths[2].unlink()
    with pytest.raises(MissingFileError, match="part 3 of 3 is missing"):
        verify_gguf(paths[0])


def damage(path: Path, at: int) -> VerifyReport:
    flip(path, at, 3)
    return verify_gguf(path)


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    (part,) = lay_out_gguf(tmp_path / "m.gguf", METADATA, TENSORS, WriteOptions()).parts
    first, second, third = (placement.offset for placement in part.placements)

    (path,) = write(tmp_path / "m.gguf")
    report = damage(path, second + 67)
    assert report.problems() == (f"{path}: tensor blk.0.attn_q.weight differs from its digest",)
    (path,) = write(tmp_path / "m.gguf")
    assert damage(path, first + 60).problems() == (f"{path}: padding between tensors is not zero",)
    (path,) = write(tmp_path / "m.gguf")
    assert damage(path, third + 6).problems() == (f"{path}: padding between tensors is not zero",)
    (path,) = write(tmp_path / "m.gguf")
    at = path.read_bytes().index(b"llama.block_count") + 17 + 4
    assert damage(path, at).problems() == (f"{path}: the header differs from its digest",)
    for size in (path.stat().st_size - 1, path.stat().st_size + 1):
        (path,) = write(tmp_path / "m.gguf")
        os.truncate(path, size)
        assert verify_gguf(path).problems() == (f"{path}: the file does not end where its last tensor does",)


def test_a_file_without_digests(tmp_path: Path) -> None:
    (path,) = write(tmp_path / "m.gguf", WriteOptions(digests=False))
    with pytest.raises(VerificationError, match=r"carries no digests.*Files that qconv writes carry them"):
        verify_gguf(path)
    with pytest.raises(VerificationError, match="carries no digests"):
        verify_gguf(Craft().write(tmp_path / "other.gguf"))


def test_progress_and_threads(tmp_path: Path) -> None:
    """Slabs of tensors larger than one slab are reported, by one thread at a time."""
    tensors = [OutputTensor(f"t.{n}", (1024, 1536), ENCODINGS["F32"]) for n in range(3)]
    data = {tensor.name: np.full(tensor.nbytes, n, np.uint8).tobytes() for n, tensor in enumerate(tensors)}
    (path,) = write_layout(lay_out_gguf(tmp_path / "m.gguf", {}, tensors, WriteOptions()), data)
    done: list[int] = []
    lock = threading.Lock()

    def progress(count: int) -> None:
        assert lock.acquire(blocking=False)
        done.append(count)
        lock.release()

    reports = [verify_gguf(path, progress, threads) for threads in (1, 2, 4)]
    assert sum(done) == 3 * sum(map(len, data.values()))
    assert len(done) == 18
    assert reports[0] == reports[1] == reports[2]
    assert reports[0].ok
