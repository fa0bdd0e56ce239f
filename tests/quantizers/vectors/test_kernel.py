"""The cache of compiled kernels, and the adapter from rows to flat arrays."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numba
import numpy as np
import platformdirs
import pytest
from qconv_encodings import ENCODINGS
from weight_samples import weight_samples

from qconv.quantizers.vectors import compiler, kernel, machine_code

# what another process prints of one encoding: its bytes, and what they decode to
SCRIPT = """
import sys
import numpy as np
import platformdirs
from qconv.quantizers.catalog import BUILT_IN
encoding = {it.name: it for it in BUILT_IN}["Q6_K"]
data = np.random.default_rng(0).integers(0, 256, (8, encoding.block_bytes), np.uint8)
sys.stdout.buffer.write(encoding.decode(data).tobytes())
"""

# what another process compiles and does not run
LOOKUP = """
import numpy as np
from qconv.quantizers.vectors import compiler, machine_code, simd as v
def look(table, index, out):
    v.store(out, 0, v.lookup(table, v.load_int(index, 0)))
kinds = machine_code.types_of([np.empty(16, kind) for kind in "fif"])
print(len(compiler.compile_kernel(look, kinds).data))
"""


def _decode_elsewhere(folder: Path, **environment: str) -> bytes:
    """Run ``SCRIPT`` in a process of its own, with a cache of its own."""
    variables = os.environ | {"NUMBA_CACHE_DIR": str(folder)} | environment
    return subprocess.run([sys.executable, "-c", SCRIPT], env=variables, check=True, capture_output=True).stdout


def test_the_folder_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert machine_code.cache_folder.__wrapped__().parent == tmp_path
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda *_, **__: str(tmp_path / "own"))
    assert machine_code.cache_folder.__wrapped__().parent == tmp_path / "own"


def test_a_folder_that_cannot_be_made_is_replaced_by_a_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    folder = machine_code.cache_folder.__wrapped__()
    assert folder.parent == tmp_path / "temporary"
    assert folder.stat().st_mode & 0o077 == 0
    assert machine_code.cache_folder.__wrapped__() != folder  # nobody can prepare it for us


def test_what_old_versions_left_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    for name, age in (("kernels-old", 100), ("kernels-recent", 10), ("other", 100)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "code").touch()
        os.utime(tmp_path / name / "code", (time.time() - age * 86400,) * 2)
    own = machine_code.cache_folder.__wrapped__()
    assert {path.name for path in tmp_path.iterdir()} == {"kernels-recent", "other", own.name}


def test_a_changed_source_gets_another_folder(tmp_path: Path) -> None:
    seen = {machine_code.fingerprint(tmp_path)}
    for content in ("a = 1", "a = 2"):
        (tmp_path / "helper.py").write_text(content)
        seen.add(machine_code.fingerprint(tmp_path))
    assert len(seen) == 3
    assert machine_code.fingerprint(tmp_path) in seen


@kernel.kernel
def _describe(
    floats: np.ndarray, matrix: np.ndarray, numbers: tuple[int, float, bool], last: np.float32, out: np.ndarray
) -> None:
    out[0], out[1], out[2] = numbers[0], numbers[1], numbers[2]
    out[3], out[4] = floats.size, floats[-1]
    out[5], out[6], out[7] = matrix.shape[0], matrix.shape[1], matrix[1, 2]
    out[8] = last


def test_arguments_of_every_kind_arrive() -> None:
    out = np.empty(9, np.float64)
    matrix = np.arange(12, dtype=np.uint8).reshape(3, 4)
    _describe(np.arange(5, dtype=np.float32), matrix, (-7, 0.25, True), np.float32(1.5), out)
    assert out.tolist() == [-7, 0.25, 1, 5, 4, 3, 4, 6, 1.5]


@kernel.merged
def _grown(value: float, times: int) -> float:
    total = 0.0
    for step in range(times):
        total += value * step
    return total


@kernel.merged
def _grown_both_ways(value: float, times: int) -> float:
    if value < 0:
        return -_grown(-value, times)
    return _grown(value, times) + _grown(value, 1)


@kernel.inlined
def _doubled(value: float) -> float:
    return value + value


@kernel.subroutine
def _doubled_and_grown(value: float, times: int) -> float:
    return _grown_both_ways(_doubled(value), times)


@kernel.kernel
def _call_parts(values: np.ndarray, out: np.ndarray) -> None:
    for place in range(values.size):
        out[place, 0] = _grown_both_ways(values[place], 4)
        out[place, 1] = _grown_both_ways(values[place], 2 + place)
        out[place, 2] = _doubled_and_grown(values[place], 3)


def test_parts_of_every_kind_may_call_each_other_more_than_once() -> None:
    out = np.empty((3, 3), np.float64)
    _call_parts(np.array([1.0, -2.0, 0.5], np.float64), out)
    assert out.tolist() == [[6, 1, 6], [-12, -6, -12], [3, 3, 3]]


@pytest.mark.parametrize(
    ("arguments", "problem"), [((np.zeros((4, 4))[:, 1],), "C-contiguous"), (("text",), "str"), (([1],), "list")]
)
def test_other_arguments_are_refused(arguments: tuple[object, ...], problem: str) -> None:
    with pytest.raises((TypeError, ValueError), match=problem):
        machine_code.types_of(arguments)


def test_a_kernel_returns_nothing_and_takes_nothing_from_the_heap() -> None:
    def gives(a: int) -> int:
        return a

    def takes(a: np.ndarray) -> None:
        a[0] = np.empty(4, np.float32)[0]

    with pytest.raises(TypeError, match="returns int64"):
        compiler.compile_kernel(gives, ("q0",))  # type: ignore[arg-type]
    with pytest.raises(numba.core.errors.NumbaError):
        compiler.compile_kernel(takes, ("f1",))


def test_damaged_machine_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_code, "cache_folder", lambda: tmp_path)
    code = machine_code.MachineCode("name", b"code")
    machine_code.keep(test_arguments_of_every_kind_arrive, (), code)
    assert machine_code.fetch(test_arguments_of_every_kind_arrive, ()) == code
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert machine_code.fetch(test_arguments_of_every_kind_arrive, ()) is None
    assert machine_code.fetch(test_arguments_of_every_kind_arrive, ("q0",)) is None


def test_what_was_compiled_once_runs_without_numba(tmp_path: Path) -> None:
    _decode_elsewhere(tmp_path)
    forbid = "import sys; sys.modules['numba'] = None\n"
    variables = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", forbid + SCRIPT], env=variables, check=True, capture_output=True)


def test_machine_code_is_kept_and_used_again(tmp_path: Path) -> None:
    first = _decode_elsewhere(tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.code")}
    assert kept
    assert _decode_elsewhere(tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.code")} == kept


def test_a_cpu_without_float16_instructions_decodes_alike(tmp_path: Path) -> None:
    if sys.platform == "linux" and os.uname().machine == "x86_64":
        poor = _decode_elsewhere(tmp_path, NUMBA_CPU_NAME="x86-64-v2", NUMBA_CPU_FEATURES="")
    else:
        poor = _decode_elsewhere(tmp_path, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
    ours = np.frombuffer(_decode_elsewhere(tmp_path / "own"), np.float32)
    assert np.array_equal(np.frombuffer(poor, np.float32), ours, equal_nan=True)


@pytest.mark.parametrize("feature", ["", "+avx2", "+avx512f"])
def test_a_lookup_compiles_for_every_kind_of_cpu(feature: str) -> None:
    x86 = os.uname().machine == "x86_64"
    chosen = {"NUMBA_CPU_NAME": "x86-64-v2" if x86 else "generic", "NUMBA_CPU_FEATURES": feature if x86 else ""}
    done = subprocess.run([sys.executable, "-c", LOOKUP], env=os.environ | chosen, check=True, capture_output=True)
    assert int(done.stdout) > 0


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K"])
def test_only_the_proportions_of_an_importance_vector_count(name: str) -> None:
    encoding, rows = ENCODINGS[name], weight_samples(3, 512)["gauss"]
    importance = np.exp(np.random.default_rng(0).standard_normal(512)).astype(np.float32)
    expected = encoding.encode(rows, importance)
    np.testing.assert_array_equal(encoding.encode(rows, importance * np.float32(2.0**40)), expected)
    np.testing.assert_array_equal(encoding.encode(rows, np.zeros(512, np.float32)), encoding.encode(rows))
