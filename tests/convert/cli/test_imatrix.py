"""``qconv imatrix``: files of both forms, provenance, resume, merging, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_files import CONTEXT
from measuring import PROSE, subject
from run_cli import Cli

from qconv.convert.calibration import calibrate
from qconv.convert.calibration.calibrate import checkpoint_path
from qconv.convert.locking import lock_path, sole_writer
from qconv.errors import BusyError
from qconv.formats.imatrix import read_imatrix
from qconv.runtime.forward import forward

CUT = ("-c", 64, "--chunks", 4)
DOWN = "blk.3.ffn_down.weight"


def make(cli: Cli, model: Path, output: Path, *words: object) -> dict[str, Any]:
    done = cli("imatrix", model, "--text", PROSE, *CUT, "-o", output, "--json", *words)
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_both_forms_hold_the_same(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    new, old = tmp_path / "i.gguf", tmp_path / "i.dat"
    found = make(cli, example_model, new)
    make(cli, example_model, old, "--format", "dat")
    one, other = read_imatrix(new, CONTEXT, compat=True), read_imatrix(old, CONTEXT, compat=True)
    assert len(one.entries) == 42
    assert list(one.entries) == list(other.entries)
    for name, entry in one.entries.items():
        columns = entry.sums.shape[1]
        np.testing.assert_allclose(one.vector(name, columns), other.vector(name, columns), rtol=1e-5)
    tensors = {it.name: it.data for it in gguf.GGUFReader(new).tensors}
    assert (tensors[f"{DOWN}.in_sum2"] == one.entries[DOWN].sums).all()
    assert tensors[f"{DOWN}.counts"].tolist() == [[4 * 63]]
    assert found["provenance"]["bos"] == "left out"
    assert (found["chunk_count"], found["chunk_size"], found["datasets"]) == (4, 64, ["prose.txt"])
    for path in (new, old):
        result = tmp_path / f"{path.suffix}.gguf"
        done = cli("hf-to-gguf", example_model, "-o", result, "--type", "q4_k", "--imatrix", path, "--json")
        assert done.code == 0
        assert any(it["importance"] for it in json.loads(done.out)["tensors"])


def test_compat_counts_bos(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "a", tmp_path / "b"
    make(cli, example_model, ours)
    found = make(cli, example_model, theirs, "--compat", "llama.cpp", "--process-output")
    assert found["provenance"]["bos"] == "kept"
    kept = read_imatrix(theirs, CONTEXT).entries
    assert kept[DOWN].counts.tolist() == [256]
    assert "output.weight" in kept
    seen: list[np.ndarray] = []
    with subject(example_model) as it:
        tokens = it.tokenizer.encode(PROSE.read_text(encoding="utf-8"))
        run = forward(
            it.network,
            [[it.tokenizer.bos or 0, *tokens[start + 1 : start + 64]] for start in range(0, 256, 64)],
            trace=lambda name, first, values: seen.append(values.copy()) if name == "blk.0.attn_norm.weight" else None,
        )
        list(run)
    (rows,) = seen
    np.testing.assert_allclose(kept["blk.0.attn_q.weight"].sums[0], np.square(rows).sum(axis=0), rtol=1e-4)
    without = np.delete(rows, [0, 64, 128, 192], axis=0)
    left = read_imatrix(ours, CONTEXT).entries["blk.0.attn_q.weight"]
    np.testing.assert_allclose(left.sums[0], np.square(without).sum(axis=0), rtol=1e-4)


def test_an_interrupted_run_continues(
    cli: Cli, example_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "_SAVE_EVERY", -1.0)
    monkeypatch.setattr("qconv.runtime.measuring.perplexity.BATCH_TOKENS", 64)
    monkeypatch.setattr(calibrate, "batches", lambda windows: [range(i, i + 1) for i in range(len(windows.tokens))])
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    make(cli, example_model, whole)
    runs = []

    def stop_at_third(*arguments: Any, **options: Any) -> Iterator[Any]:
        runs.append(1)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return forward(*arguments, **options)

    monkeypatch.setattr(calibrate, "forward", stop_at_third)
    done = cli("imatrix", example_model, "--text", PROSE, *CUT, "-o", resumed)
    assert done.code == 1
    assert "run the same command again" in done.err
    assert checkpoint_path(resumed).exists()
    assert not resumed.exists()
    make(cli, example_model, resumed)
    assert len(runs) == 5  # two, the interrupted one, and the two that were left
    assert resumed.read_bytes() == whole.read_bytes()
    assert not checkpoint_path(resumed).exists()


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive"])
def test_a_checkpoint_of_another_job_or_a_damaged_one_is_not_used(
    cli: Cli, example_model: Path, tmp_path: Path, damage: bytes
) -> None:
    fresh, other = tmp_path / "fresh", tmp_path / "other"
    make(cli, example_model, fresh)
    checkpoint_path(other).write_bytes(damage)
    make(cli, example_model, other)
    assert fresh.read_bytes() == other.read_bytes()


def test_a_second_process_is_kept_out(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "i.gguf"
    words = ("imatrix", example_model, "--text", PROSE, *CUT, "-o", output)
    with sole_writer(output):
        done = cli(*words)
        assert (done.code, output.exists()) == (1, False)
        assert "another process is writing this output" in done.err
        assert "i.gguf.qconv-lock" in done.err
    assert cli(*words).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["i.gguf"]


def test_what_a_killed_process_left_keeps_nobody_out(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "i.gguf"
    held = "import sys; from pathlib import Path; from qconv.convert.locking import open_locked; "
    held += "file = open_locked(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", held, str(lock_path(output))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(BusyError), sole_writer(output):
            pass
        process.kill()
    assert lock_path(output).exists()
    make(cli, example_model, output)
    assert not lock_path(output).exists()


def test_merging_needs_files_alone(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    one, other, both, sum_of_two = (tmp_path / name for name in "abcd")
    text = tmp_path / "other.txt"
    text.write_text(PROSE.read_text(encoding="utf-8")[1500:], encoding="utf-8")
    make(cli, example_model, one)
    words = ("-o", other, *CUT, "--merge", one)
    assert cli("imatrix", example_model, "--text", text, *words).code == 0
    done = cli("imatrix", example_model, "--text", PROSE, "--text", text, *CUT, "-o", both)
    assert done.code == 0, done.err
    a, b = read_imatrix(other, CONTEXT), read_imatrix(both, CONTEXT)
    for name in b.entries:
        assert a.entries[name].counts.tolist() == b.entries[name].counts.tolist()
        np.testing.assert_allclose(a.entries[name].sums, b.entries[name].sums, rtol=1e-5)
    done = cli("imatrix", "--merge", one, "--merge", one, "-o", sum_of_two, "--json")
    found = json.loads(done.out)
    assert found["chunk_count"] == 8
    assert len(found["provenance"]["models"]) == len(found["provenance"]["texts"]) == 1
    assert read_imatrix(sum_of_two, CONTEXT).entries[DOWN].counts.tolist() == [2 * 4 * 63]
    old = tmp_path / "old.dat"
    make(cli, example_model, old, "--format", "dat", "--compat", "llama.cpp")
    done = cli("imatrix", "--merge", old, "--merge", old, "-c", 64, "-o", tmp_path / "doubled", "--json")
    assert json.loads(done.out)["chunk_count"] == 8
    assert json.loads(done.out)["provenance"] is None
    assert read_imatrix(tmp_path / "doubled", CONTEXT).entries[DOWN].counts.tolist() == [2 * 4 * 64]
    shown = cli("imatrix", "--merge", sum_of_two, "--show-statistics")
    assert shown.code == 0
    assert "CosSim" in shown.out
    statistics = json.loads(cli("imatrix", "--merge", one, "--show-statistics", "--json").out)
    assert len(statistics["statistics"]) == 42
    assert len(statistics["layers"]) == 6


def test_refusals(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    one, compatible, short = tmp_path / "a", tmp_path / "b", tmp_path / "short.txt"
    make(cli, example_model, one)
    make(cli, example_model, compatible, "--compat", "llama.cpp")
    short.write_text("Too short.")
    out = ("-o", tmp_path / "c")
    for words, message in (
        (("--merge", one, "--merge", compatible, *out), "different treatments of BOS"),
        ((example_model, *out), "needs a model and --text"),
        (("--text", PROSE, *out), "needs a model and --text"),
        (out, "nothing to do"),
        (("--merge", one), "--output is missing"),
        (("--merge", one, "-o", one), "the output exists"),
        (("--merge", PROSE, *out), "as a legacy importance matrix"),
        ((example_model, "--text", short, *out), "at least two contexts"),
        ((example_model, "--text", PROSE, *out, "--format", "json"), "--format is one of"),
        ((example_model, "--text", PROSE, *out, "--compat", "ollama"), "--compat is one of"),
    ):
        done = cli("imatrix", *words)
        assert done.code in (1, 2)
        assert message in done.err
        assert not (tmp_path / "c").exists()
