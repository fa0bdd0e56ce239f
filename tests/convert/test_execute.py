"""Plan, execute, journal, seal: whole or absent, the same bytes whatever happens on the way."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import memory_model
import numpy as np
import pytest
from gguf import GGUFReader
from qconv_encodings import ENCODINGS

import qconv
from qconv.convert import execute as execute_module
from qconv.convert import flush, output
from qconv.convert.jobs import Result, run_plan
from qconv.convert.journal import Journal
from qconv.convert.output import journal_path, temporary_path
from qconv.convert.plan import Plan, make_plan
from qconv.convert.settings import Settings
from qconv.errors import (
    BusyError,
    DiskFullError,
    EncodingError,
    NonFiniteError,
    OutputError,
    OutputExistsError,
    UnknownTypeError,
)
from qconv.formats.base import Model, WriteOptions
from qconv.formats.gguf import FORMAT
from qconv.formats.gguf.verify import verify_gguf


def silent(count: int) -> None:
    """Take progress and show nothing."""


def plan_of(model: Model, output: Path, settings: Settings) -> Plan:
    return make_plan(model, output, FORMAT, settings, ENCODINGS)


def convert(
    tmp_path: Path,
    name: str,
    type_name: str = "q8_0",
    progress: Callable[[int], None] = silent,
    model: Model | None = None,
    **settings: object,
) -> tuple[Path, Result]:
    source = model or memory_model.llama(tmp_path / "source")
    chosen = replace(Settings(type_name=type_name, threads=2), **settings)  # type: ignore[arg-type]  # keywords of Settings
    plan = plan_of(source, tmp_path / name, chosen)
    return tmp_path / name, run_plan(plan, chosen.force, progress)


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut tensors into many slabs, so that small models show what large ones would."""
    monkeypatch.setattr(execute_module, "SLAB_WEIGHTS", 4096)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"source"}


def test_the_bytes_are_those_that_the_encodings_give(tmp_path: Path) -> None:
    model = memory_model.llama(tmp_path / "source")
    path, result = convert(tmp_path, "out.gguf", model=model)
    reader = GGUFReader(path)
    assert {it.name for it in reader.tensors} == set(model.tensors)
    for found in reader.tensors:
        source = model.tensors[found.name]
        target = ENCODINGS[found.tensor_type.name]
        rows = source.rows(0, source.row_count)
        expected = target.encode(rows).tobytes()
        assert found.data.tobytes() == expected
        assert result.digests[found.name] == hashlib.sha256(expected).hexdigest()
    assert verify_gguf(path).ok
    assert files(tmp_path) == {"out.gguf"}


@pytest.mark.parametrize("type_name", ["auto", "f16", "q8_0", "q4_k_m", "q5_k_m"])
def test_the_number_of_threads_does_not_change_a_byte(tmp_path: Path, type_name: str) -> None:
    outputs = [convert(tmp_path, f"{n}.gguf", type_name, threads=n)[0].read_bytes() for n in (1, 2, 4)]
    assert outputs[0] == outputs[1] == outputs[2]


def test_slabs_do_not_change_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = convert(tmp_path, "small.gguf", "q4_k_m")[0].read_bytes()
    monkeypatch.setattr(execute_module, "SLAB_WEIGHTS", 1 << 20)
    assert convert(tmp_path, "large.gguf", "q4_k_m")[0].read_bytes() == small


def test_an_existing_output_is_kept_unless_forced(tmp_path: Path) -> None:
    (tmp_path / "out.gguf").write_text("mine")
    with pytest.raises(OutputExistsError, match="--force"):
        convert(tmp_path, "out.gguf")
    assert (tmp_path / "out.gguf").read_text() == "mine"
    assert files(tmp_path) == {"out.gguf"}
    path, _ = convert(tmp_path, "out.gguf", force=True)
    assert path.read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize("link", [os.symlink, os.link, None])
def test_the_input_is_never_the_output(tmp_path: Path, link: Callable[[Path, Path], None] | None) -> None:
    source = tmp_path / "source"
    model = memory_model.llama(source)
    source.write_text("weights")
    if link is not None:
        link(source, tmp_path / "alias")
    with pytest.raises(OutputExistsError, match="input itself"):
        convert(tmp_path, "source" if link is None else "alias", model=model, force=True)
    assert source.read_text() == "weights"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no such folder"):
        convert(tmp_path, "absent/out.gguf")


def test_too_little_disk_is_told_before_work_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("qconv.convert.output.shutil.disk_usage", lambda path: usage)
    with pytest.raises(DiskFullError, match="1,000 are free"):
        convert(tmp_path, "out.gguf")
    assert files(tmp_path) == set()


class Stopped(BaseException):
    """Stands for Ctrl-C: no Exception, so nothing handles it."""


def stop_after(slabs: int) -> Callable[[int], None]:
    seen = 0

    def progress(count: int) -> None:
        nonlocal seen
        seen += 1
        if seen >= slabs:
            raise Stopped

    return progress


@pytest.mark.parametrize("slabs", [1, 20, 30, 60])
def test_an_interrupted_run_is_continued(tmp_path: Path, slabs: int) -> None:
    undisturbed = convert(tmp_path, "whole.gguf", "q4_k_m")[0].read_bytes()
    with pytest.raises(Stopped):
        convert(tmp_path, "out.gguf", "q4_k_m", stop_after(slabs))
    assert not (tmp_path / "out.gguf").exists()
    path, result = convert(tmp_path, "out.gguf", "q4_k_m")
    assert path.read_bytes() == undisturbed
    assert (result.resumed > 0) == (slabs > 10)
    assert files(tmp_path) == {"whole.gguf", "out.gguf"}


def test_another_job_does_not_take_over(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        convert(tmp_path, "out.gguf", "q4_k_m", stop_after(40))
    _, result = convert(tmp_path, "out.gguf", "q5_k_m")
    assert result.resumed == 0


def test_damage_between_two_runs_is_mended(tmp_path: Path) -> None:
    undisturbed = convert(tmp_path, "whole.gguf")[0].read_bytes()
    with pytest.raises(Stopped):
        convert(tmp_path, "out.gguf", progress=stop_after(60))
    part = temporary_path(tmp_path / "out.gguf")
    data = bytearray(part.read_bytes())
    data[2000:] = bytes(len(data) - 2000)  # as after a power cut: the journal reached the disk, the data did not
    part.write_bytes(data)
    assert convert(tmp_path, "out.gguf")[0].read_bytes() == undisturbed


def test_a_run_killed_between_seal_and_rename_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = WriteOptions(split_max_tensors=4)
    with monkeypatch.context() as patch:
        patch.setattr("qconv.convert.output.finish_renames", lambda *_: (_ for _ in ()).throw(Stopped()))
        with pytest.raises(Stopped):
            convert(tmp_path, "out.gguf", write=write)
    assert not any(name.endswith(".gguf") for name in files(tmp_path))
    first = next(tmp_path.glob("*-00005.gguf.qconv-part"))
    first.rename(first.with_suffix(""))  # one rename had been done
    _, result = convert(tmp_path, "out.gguf", write=write)
    assert result.resumed > 0
    assert all(name.endswith(".gguf") for name in files(tmp_path))
    assert verify_gguf(result.paths[0]).ok


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    model = memory_model.llama(tmp_path / "source")
    plan = plan_of(model, tmp_path / "out.gguf", Settings(type_name="q8_0"))
    journal = Journal(journal_path(plan.layout), plan.fingerprint(), [])
    with pytest.raises(BusyError, match="another process"):
        run_plan(plan, force=False, progress=silent)
    journal.close()
    run_plan(plan, force=False, progress=silent)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("source", "type_name"), [("BF16", "auto"), ("F32", "auto"), ("BF16", "q8_0"), ("F32", "q4_k_m")]
)
def test_what_is_not_finite_is_named_and_stops_the_job(
    tmp_path: Path, value: float, source: str, type_name: str
) -> None:
    values = np.ones((40, 256), np.float32)
    values[33, 7] = value
    model = memory_model.model(tmp_path / "source", [memory_model.tensor("blk.0.ffn_up.weight", values, source)])
    with pytest.raises(NonFiniteError, match=r"blk\.0\.ffn_up\.weight.*row 33, column 7") as caught:
        convert(tmp_path, "out.gguf", type_name, model=model)
    assert caught.value.tensor == "blk.0.ffn_up.weight"
    assert files(tmp_path) == set()
    path, result = convert(tmp_path, "out.gguf", type_name, model=model, allow_nonfinite=True)
    assert result.replaced == {"blk.0.ffn_up.weight": 1}
    found = GGUFReader(path).tensors[0]
    rows = ENCODINGS[found.tensor_type.name].decode(found.data.view(np.uint8).reshape(40, -1))
    assert np.isfinite(rows).all()
    assert abs(rows[33, 7]) < 1e-3


def test_a_number_too_large_for_f16_is_named(tmp_path: Path) -> None:
    values = np.ones((4, 256), np.float32)
    values[2, 3] = 1e5
    model = memory_model.model(tmp_path / "source", [memory_model.tensor("blk.0.ffn_up.weight", values)])
    with pytest.raises(EncodingError, match=r"blk\.0\.ffn_up\.weight"):
        convert(tmp_path, "out.gguf", "f16", model=model)
    assert files(tmp_path) == set()


def test_an_unknown_type_names_near_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownTypeError, match="Q4_K_M"):
        convert(tmp_path, "out.gguf", "q4_km")


def test_the_plan_is_exact(tmp_path: Path) -> None:
    model = memory_model.llama(tmp_path / "source")
    plan = plan_of(model, tmp_path / "out.gguf", Settings(type_name="q4_k_m"))
    run_plan(plan, force=False, progress=silent)
    assert plan.layout.size == (tmp_path / "out.gguf").stat().st_size
    reader = GGUFReader(tmp_path / "out.gguf")
    found = [(it.name, it.tensor_type.name, it.n_bytes, it.data_offset) for it in reader.tensors]
    offsets = {it.tensor.name: it.offset for it in plan.layout.parts[0].placements}
    assert found == [
        (s.target.name, s.target.encoding.name, s.target.nbytes, offsets[s.target.name]) for s in plan.steps
    ]
    assert plan.fallback_share == 0


def test_fallbacks_are_counted(tmp_path: Path) -> None:
    model = memory_model.llama(tmp_path / "source", columns=288)
    plan = plan_of(model, tmp_path / "out.gguf", Settings(type_name="q4_k_m"))
    assert plan.fallback_share > 0.99
    with pytest.raises(EncodingError, match="288 columns"):
        plan_of(model, tmp_path / "out.gguf", Settings(type_name="q4_k_m", no_fallback=True))


def test_without_positional_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = convert(tmp_path, "expected.gguf")[0].read_bytes()
    monkeypatch.delattr(os, "pwrite")
    assert convert(tmp_path, "found.gguf")[0].read_bytes() == expected


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A BF16 file, whose rows can be copied as they lie."""
    return convert(tmp_path, "stored.gguf", "bf16")[0]


def test_rows_that_stay_as_they_are(tmp_path: Path, stored: Path) -> None:
    with qconv.open(stored) as model:
        path, result = convert(tmp_path, "copy.gguf", "auto", model=model)
    assert path.read_bytes() == stored.read_bytes()
    assert verify_gguf(path).ok
    assert set(result.digests) == set(model.tensors)


@pytest.mark.parametrize("system", ["whole", "short", "unable"])
def test_writes_that_leave_nothing_in_the_cache(
    tmp_path: Path, stored: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    calls: list[int] = []

    def write(descriptor: int, buffers: list[memoryview], offset: int, flags: int) -> int:
        calls.append(flags)
        if system == "unable":
            raise OSError(errno.EOPNOTSUPP, "not on this file system")
        data = buffers[0] if system == "whole" else buffers[0][:5000]
        return os.pwrite(descriptor, data, offset)

    monkeypatch.setattr(output, "_CACHED_BYTES", 0)
    monkeypatch.setattr(output, "_PAGE_BYTES", 4096)
    monkeypatch.setattr(output, "_CAN_WRITE_UNCACHED", True)
    monkeypatch.setattr(os, "pwritev", write, raising=False)
    with qconv.open(stored) as model:
        path, _ = convert(tmp_path, "copy.gguf", "auto", model=model)
    assert calls and set(calls) == {0x80}
    assert path.read_bytes() == stored.read_bytes()
    assert verify_gguf(path).ok


def test_what_is_written_goes_to_disk_as_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(flush, "_START_BYTES", 1)
    monkeypatch.setattr(flush, "_FLUSH_BYTES", 1)
    monkeypatch.setattr(flush, "_sync", calls.append)
    path, _ = convert(tmp_path, "flushed.gguf")
    assert calls
    assert verify_gguf(path).ok


def test_a_write_that_the_disk_refused_later_is_not_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, "the disk failed")

    monkeypatch.setattr(flush, "_START_BYTES", 1)
    monkeypatch.setattr(flush, "_FLUSH_BYTES", 1)
    monkeypatch.setattr(flush, "_sync", refuse)
    with pytest.raises(OutputError, match="the disk failed"):
        convert(tmp_path, "lost.gguf")
    assert not list(tmp_path.glob("lost.gguf*"))


def test_what_is_not_finite_is_found_in_a_copy(tmp_path: Path, stored: Path) -> None:
    where = next(it for it in GGUFReader(stored).tensors if it.name == "blk.1.ffn_up.weight")
    with stored.open("r+b") as file:
        file.seek(int(where.data_offset) + 2 * (5 * 512 + 9))
        file.write(b"\xc0\x7f")
    with qconv.open(stored) as model:
        with pytest.raises(NonFiniteError, match=r"blk\.1\.ffn_up\.weight.*row 5, column 9"):
            convert(tmp_path, "copy.gguf", "auto", model=model)
        path, result = convert(tmp_path, "copy.gguf", "auto", model=model, allow_nonfinite=True)
    assert result.replaced == {"blk.1.ffn_up.weight": 1}
    assert verify_gguf(path).ok
    with qconv.open(path) as model:
        assert model.tensors["blk.1.ffn_up.weight"].rows(5, 6)[0, 9] == 0
