"""``qconv calibrate``: what the file holds, kills, rounds, experts without tokens, and what is refused."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import CONTEXT
from measuring import PROSE, subject
from run_cli import Cli
from tiny_networks import in_memory

from qconv.convert.calibration import second_moments
from qconv.convert.calibration.second_moments import MomentJob, measure_moments
from qconv.convert.measure import Cut, Subject, cut_text
from qconv.errors import FormatError, MissingFileError
from qconv.formats.calibration import CalibrationFile, open_calibration, pack_triangle, unpack_triangle
from qconv.runtime.building.network import load_network
from qconv.runtime.forward import forward
from qconv.runtime.hooks import ProductInput
from qconv.runtime.measuring.identity import ModelIdentity, read_text, weights_digest
from qconv.runtime.measuring.windows import cut_standard
from qconv.runtime.stages import run_stage

CUT = ("-c", 64, "--chunks", 6)
GIB = 1 << 30
DOWN = "blk.3.ffn_down.weight"


def make(cli: Cli, model: Path, output: Path, *words: object) -> dict[str, Any]:
    done = cli("calibrate", model, "--text", PROSE, *CUT, "-o", output, "--json", *words)
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


@pytest.fixture(scope="module")
def whole(example_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed result."""
    output = tmp_path_factory.mktemp("whole") / "cal.gguf"
    with subject(example_model) as it:
        measure_moments(job_of(it), output, memory=GIB)
    return output


def job_of(it: Subject) -> MomentJob:
    text = read_text(PROSE)
    return MomentJob(it, [text], cut_text(it, text, Cut(64, None, 6)))


@pytest.fixture(scope="module")
def inputs(example_model: Path) -> dict[str, np.ndarray]:
    """What every matrix is multiplied by, from the pass in one go, first positions left out."""
    seen: dict[str, list[np.ndarray]] = {}

    def take(found: ProductInput) -> None:
        for name in found.names:
            seen.setdefault(name, []).append(found.values[found.positions > 0].astype(np.float64))

    with subject(example_model) as it:
        list(forward(it.network, list(job_of(it).windows.evaluated), collector=take))
    return {name: np.concatenate(rows) for name, rows in seen.items()}


@pytest.mark.parametrize("columns", [1, 2, 255, 600])
def test_triangles(columns: int) -> None:
    rows = np.random.default_rng(columns).normal(size=(columns, columns)).astype(np.float32)
    matrix = rows + rows.T
    packed = pack_triangle(matrix)
    np.testing.assert_array_equal(packed, matrix[np.triu_indices(columns)])
    np.testing.assert_array_equal(unpack_triangle(packed), matrix)


def test_every_matrix_has_its_moments(whole: Path, inputs: dict[str, np.ndarray]) -> None:
    with open_calibration(whole, CONTEXT) as found:
        assert set(found.entries) == set(inputs)
        assert found.entries["blk.0.attn_v.weight"].names[0] == "blk.0.attn_q.weight"
        assert found.entries["blk.0.ffn_up.weight"] is found.entries["blk.0.ffn_gate.weight"]
        for name, rows in inputs.items():
            assert found.counts(name).tolist() == [6 * 63] == [len(rows)]
            exact = rows.T @ rows / len(rows)
            np.testing.assert_allclose(found.hessian(name), exact, rtol=1e-4, atol=1e-4 * exact.diagonal().max())
            sums = found.importance.entries[name].sums
            np.testing.assert_allclose(sums[0], np.square(rows).sum(axis=0), rtol=1e-4)


def test_facts(cli: Cli, example_model: Path, tmp_path: Path, whole: Path) -> None:
    found = make(cli, example_model, tmp_path / "c.gguf")
    assert (tmp_path / "c.gguf").read_bytes() == whole.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["c.gguf"]
    facts = found["facts"]
    assert (facts["chunks"], facts["context"], facts["bos"]) == (6, 64, "left out")
    assert facts["datasets"] == ["prose.txt"]
    assert found["unseen_experts"] == {}
    with open_calibration(whole, CONTEXT) as file, subject(example_model) as it:
        assert file.facts.weights == weights_digest(it.model)
        assert file.facts.model == it.identity.digest
    assert cli("verify", whole).code == 0
    assert cli("calibrate", example_model, "--text", PROSE, "-o", whole).code == 1
    chosen = make(cli, example_model, tmp_path / "d.gguf", "--include-weights", "blk.1.attn")
    assert [it["tensors"][-1] for it in chosen["entries"]] == ["blk.1.attn_v.weight", "blk.1.attn_output.weight"]


def test_weights_digest_knows_weights_not_files(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    def digest(path: Path) -> str:
        with subject(path) as it:
            return weights_digest(it.model)

    for kind in ("f32", "q8_0"):
        assert cli("hf-to-gguf", example_model, "-o", tmp_path / f"{kind}.gguf", "--type", kind).code == 0
    assert digest(tmp_path / "f32.gguf") == digest(example_model)
    assert digest(tmp_path / "q8_0.gguf") != digest(example_model)


def test_an_interrupted_run_continues(example_model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Interrupted at every stage, in its middle and at its end."""
    monkeypatch.setattr(second_moments, "batches", lambda windows: (range(4), range(4, 6)))
    output, calls = tmp_path / "c.gguf", 0

    def interrupted(*words: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise KeyboardInterrupt
        run_stage(*words)

    resumed = []
    with subject(example_model) as it:
        measure_moments(job_of(it), tmp_path / "whole", memory=GIB)
        monkeypatch.setattr(second_moments, "run_stage", interrupted)
        for _ in range(40):
            steps: list[int] = []
            try:
                done = measure_moments(job_of(it), output, memory=GIB, advance=steps.append)
            except KeyboardInterrupt:
                resumed.append(steps[0])
                assert not output.exists()
            else:
                break
    assert done.resumed > 0
    assert len(resumed) > 10
    assert resumed == sorted(resumed)
    assert output.read_bytes() == (tmp_path / "whole").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"c.gguf", "whole"}


def test_kill_9_at_random_moments(example_model: Path, tmp_path: Path) -> None:
    def command(output: Path) -> list[str]:
        words = [sys.executable, "-m", "qconv", "calibrate", str(example_model), "--text", str(PROSE)]
        return [*words, "-c", "256", "-o", str(output), "--threads", "1"]

    whole, output, moments, killed = tmp_path / "whole", tmp_path / "out", random.Random(3), 0
    started = time.monotonic()
    subprocess.run(command(whole), check=True, capture_output=True)
    duration = time.monotonic() - started
    journal = tmp_path / "out.qconv-journal"
    for _ in range(6):
        process = subprocess.Popen(command(output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not journal.exists():
            time.sleep(0.001)
        time.sleep(moments.random() * duration / 4)
        process.kill()
        process.wait()
        if output.exists():
            break
        killed += 1
    assert killed
    if not output.exists():
        subprocess.run(command(output), check=True, capture_output=True)
    assert output.read_bytes() == whole.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "out"}


def test_a_damaged_part_is_measured_again(example_model: Path, tmp_path: Path, whole: Path, monkeypatch: Any) -> None:
    output, calls = tmp_path / "c.gguf", 0

    def interrupted(*words: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        run_stage(*words)

    with subject(example_model) as it:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(second_moments, "run_stage", interrupted)
            measure_moments(job_of(it), output, memory=GIB)
        part = tmp_path / "c.gguf.qconv-part"
        data = bytearray(part.read_bytes())
        data[-400000:] = bytes(400000)
        data[20000:21000] = bytes(1000)
        part.write_bytes(data)
        done = measure_moments(job_of(it), output, memory=GIB)
    assert done.resumed == 0
    assert output.read_bytes() == whole.read_bytes()


def mixture(folder: Path) -> Subject:
    """A subject with experts; of its tokenizer nothing but the digest is asked for."""
    model = in_memory("qwen3moe", folder / "moe")
    tokenizer: Any = type("Tokenizer", (), {"digest": staticmethod(lambda: "t"), "adds_bos": False, "bos": None})
    return Subject(model, load_network(model), tokenizer, ModelIdentity("moe", "qwen3moe", "d", ()))


def test_little_memory_takes_more_rounds_and_gives_the_same(tmp_path: Path) -> None:
    it = mixture(tmp_path)
    ids = np.random.default_rng(1).integers(0, 24, 96).tolist()
    job = MomentJob(it, [], cut_standard(ids, 12, None))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    one = measure_moments(job, whole, memory=GIB, threads=1)
    other = measure_moments(job, parts, memory=1, threads=2)
    assert whole.read_bytes() == parts.read_bytes()
    assert {names: counts.tolist() for names, counts in one.counts.items()} == {
        names: counts.tolist() for names, counts in other.counts.items()
    }
    with open_calibration(whole, CONTEXT) as found:
        stack = found.entries["blk.0.ffn_gate_exps.weight"]
        assert stack.experts is not None
        counts = found.counts("blk.0.ffn_down_exps.weight")
        assert counts.sum() == 96 * 2
        assert found.counts("blk.0.ffn_gate_inp.weight").tolist() == [96]
        seen: dict[int, list[np.ndarray]] = {}

        def take(found: ProductInput) -> None:
            if found.names[0] == "blk.0.ffn_down_exps.weight" and found.expert is not None:
                seen.setdefault(found.expert, []).append(found.values.copy())

        list(forward(it.network, list(job.windows.evaluated), collector=take))
        for expert in range(stack.experts):
            rows = np.concatenate(seen.get(expert, [np.zeros((0, stack.columns))]))
            columns = found.entries["blk.0.ffn_down_exps.weight"].columns
            assert len(rows) == counts[expert]
            wanted = rows.T @ rows / max(1, len(rows)) if len(rows) else np.zeros((columns, columns))
            np.testing.assert_allclose(found.hessian("blk.0.ffn_down_exps.weight", expert), wanted, atol=1e-6)


def test_experts_without_tokens_are_named(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it = mixture(tmp_path)
    job = MomentJob(it, [], cut_standard([3] * 32, 8, None))
    done = measure_moments(job, tmp_path / "c", memory=GIB)
    counts = done.counts[("blk.0.ffn_down_exps.weight",)]
    assert (counts == 0).any()
    with open_calibration(tmp_path / "c", CONTEXT) as found:
        assert not found.hessian("blk.0.ffn_down_exps.weight", int((counts == 0).nonzero()[0][0])).any()


def test_what_is_no_calibration_file_is_refused(cli: Cli, example_model: Path, tmp_path: Path, whole: Path) -> None:
    def opened(path: Path) -> CalibrationFile:
        with open_calibration(path, CONTEXT) as found:
            return found

    with pytest.raises(MissingFileError, match="no such file"):
        opened(tmp_path / "none")
    with pytest.raises(FormatError, match="nor any GGUF"):
        opened(PROSE)
    assert cli("hf-to-gguf", example_model, "-o", tmp_path / "m.gguf", "--type", "q8_0").code == 0
    with pytest.raises(FormatError, match="but no calibration file"):
        opened(tmp_path / "m.gguf")
    data = whole.read_bytes()
    broken = tmp_path / "broken"
    broken.write_bytes(data.replace(b"blk.0.attn_q.weight.counts", b"blk.0.attn_q.weight.countz"))
    with pytest.raises(FormatError, match=r"attn_q\.weight\.counts: it is not there"):
        opened(broken)
    broken.write_bytes(data.replace(b"qconv.calibration.weights", b"qconv.calibration.weightz"))
    with pytest.raises(FormatError, match=r"no key qconv\.calibration\.weights"):
        opened(broken)


def test_usage(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    output = ("-o", tmp_path / "c")
    for words, wanted in (
        (output, "--text is missing"),
        (("--text", PROSE), "--output is missing"),
        (("--text", PROSE, *output, "--include-weights", "a", "--exclude-weights", "b"), "exclude each other"),
        (("--text", PROSE, *output, "-c", 64, "--include-weights", "nothing"), "no tensor is left"),
    ):
        done = cli("calibrate", example_model, *words)
        assert done.code == 2
        assert wanted in done.err
