"""Kills and full disks: nothing under the final name that is not whole, and a rerun gives the undisturbed bytes."""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import memory_model
import pytest
from qconv_encodings import ENCODINGS

from qconv.convert.jobs import run_plan
from qconv.convert.plan import make_plan
from qconv.convert.settings import Settings
from qconv.formats.gguf import FORMAT
from qconv.formats.gguf.verify import verify_gguf

KILLS = 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BF16 GGUF of 30 million weights: about half a second of work at the highest effort on one thread."""
    folder = tmp_path_factory.mktemp("source")
    with memory_model.llama(folder / "made", rows=2048, columns=1024) as model:
        plan = make_plan(model, folder / "source.gguf", FORMAT, Settings(), ENCODINGS)
        run_plan(plan, force=False, progress=lambda count: None)
    return folder / "source.gguf"


def command(source: Path, output: Path) -> list[str]:
    options = ["--type", "q4_k_m", "--effort", "best", "--threads", "1"]
    return [sys.executable, "-m", "qconv", "quantize", str(source), str(output), *options]


def test_kill_9_at_random_moments(source: Path, tmp_path: Path) -> None:
    whole, output = tmp_path / "whole.gguf", tmp_path / "out.gguf"
    subprocess.run(command(source, whole), check=True, capture_output=True)
    started = time.monotonic()
    subprocess.run([*command(source, whole), "--force"], check=True, capture_output=True)
    duration = time.monotonic() - started
    part = output.with_name(output.name + ".qconv-part")
    moments = random.Random(7)
    interrupted = 0
    for _ in range(KILLS):
        process = subprocess.Popen(command(source, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (part.exists() or output.exists() or process.poll() is not None or time.monotonic() > deadline):
            time.sleep(0.001)
        time.sleep(moments.random() * duration / 2)
        process.kill()
        process.wait()
        if output.exists():
            assert verify_gguf(output).ok
            assert output.read_bytes() == whole.read_bytes()
            output.unlink()
        else:
            interrupted += 1
            if moments.random() < 0.5:  # some runs continue, some begin anew
                for path in tmp_path.glob("out.gguf.*"):
                    path.unlink()
    assert interrupted >= KILLS // 4
    subprocess.run(command(source, output), check=True, capture_output=True)
    assert output.read_bytes() == whole.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"whole.gguf", "out.gguf"}


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command(source, tmp_path / "out.gguf"), capture_output=True, text=True, preexec_fn=limit_file_size, check=False
    )
    assert done.returncode == 1
    assert "no room for the output" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
