"""``--size``, ``--bpw``, ``--recipe``: what a user types, and what a user reads."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
from measuring import PROSE
from run_cli import Cli

EXAMPLE = Path(__file__).parents[3] / "examples" / "prose-llama-7m"


def test_a_size_and_its_recipe(cli: Cli, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.txt"
    done = cli("hf-to-gguf", EXAMPLE, "-o", tmp_path / "a.gguf", "--size", "3.4MiB", "--recipe-out", recipe)
    assert done.code == 0, done.err
    assert "types chosen: 3,56" in done.err
    (line,) = [line for line in done.out.splitlines() if "ffn_down.weight" in line]
    assert line.split()[-1] == "%"
    assert "--measure-on" in done.err
    assert (tmp_path / "a.gguf").stat().st_size <= int(3.4 * (1 << 20))
    assert recipe.read_text().startswith("# types for prose-llama-7m: 3,56")
    again = cli("hf-to-gguf", EXAMPLE, "-o", tmp_path / "b.gguf", "--recipe", recipe)
    assert again.code == 0, again.err
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "1MiB"], "cannot be met: this model takes between"),
        (["--size", "1TiB"], "cannot be met: this model takes between"),
        (["--bpw", "0.5"], "cannot be met: this model takes between"),
        (["--size", "3MiB", "--bpw", "4"], "--size and --bpw exclude each other"),
        (["--size", "3MiB", "--type", "q4_k_m"], "exclude each other"),
        (["--size", "much"], "'much' is no size"),
        (["--recipe-out", "x.txt"], "go with --size or --bpw"),
        (["--figure", "x.png"], "go with --size or --bpw"),
        (["--size", "3MiB", "--figure", "x.bmp"], "a figure cannot be a .bmp file"),
        (["--bpw", "4", "--pure"], "--compat and --pure"),
    ],
)
def test_what_makes_no_sense(cli: Cli, tmp_path: Path, words: list[str], message: str) -> None:
    done = cli("hf-to-gguf", EXAMPLE, "-o", tmp_path / "a.gguf", *words)
    assert done.code == 2
    assert message in done.err
    assert "measuring" not in done.err  # what cannot be is told before anything is measured
    assert not list(tmp_path.iterdir())


@pytest.mark.oracles
def test_a_figure_of_the_choice(cli: Cli, tmp_path: Path) -> None:
    """Without a text: what is predicted."""
    for name, magic in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
        words = ("--size", "4.3M", "--figure", tmp_path / name, "--dry-run", "--json", "--effort", "fast")
        done = cli("hf-to-gguf", EXAMPLE, "-o", tmp_path / "a.gguf", *words)
        assert done.code == 0, done.err
        assert (tmp_path / name).read_bytes().startswith(magic)
    text = (tmp_path / "a.svg").read_text()
    assert "<!-- Q4_K_M -->" in text and "<!-- this choice -->" in text
    choice = json.loads(done.out)["choice"]
    assert choice["bytes"] <= 4_300_000 and choice["measured"] is False
    assert sum(group["types"].get("BF16", 0) for group in choice["groups"]) == 0
    assert sum(sum(group["types"].values()) for group in choice["groups"]) == 44
    assert sum(group["predicted"] for group in choice["groups"]) == pytest.approx(choice["predicted"])
    again = cli("hf-to-gguf", EXAMPLE, "-o", tmp_path / "a.gguf", "--size", "4.3M", "--figure", tmp_path / "a.svg")
    assert again.code == 1 and "exists" in again.err


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The first block of the example, and a text."""
    folder = tmp_path_factory.mktemp("small")
    command = [sys.executable, "-m", "qconv", "convert", str(EXAMPLE), str(folder / "model"), "--to", "hf"]
    subprocess.run([*command, "--prune-layers", "1-5"], check=True, capture_output=True)
    (folder / "text.txt").write_text(2 * PROSE.read_text())
    return folder / "model", folder / "text.txt"


def test_kill_9_at_random_moments(small: tuple[Path, Path], tmp_path: Path) -> None:
    """While sensitivities are measured, and later: what was measured is not measured again, and the bytes are the same."""
    model, text = small

    def command(output: Path) -> list[str]:
        words = [sys.executable, "-m", "qconv", "hf-to-gguf", str(model), "-o", str(output), "--bpw", "4.5"]
        return [
            *words,
            "--measure-on",
            str(text),
            "--effort",
            "fast",
            "--threads",
            "1",
            "--recipe-out",
            f"{output}.txt",
        ]

    whole, output, moments, killed = tmp_path / "whole.gguf", tmp_path / "out.gguf", random.Random(2), 0
    subprocess.run(command(whole), check=True, capture_output=True)
    costs = tmp_path / "out.gguf.qconv-costs"
    measured = 0
    for _ in range(4):
        process = subprocess.Popen(command(output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (costs.exists() and len(costs.read_text().splitlines()) > measured + 1):
            time.sleep(0.001)
        time.sleep(moments.random() / 4)
        process.kill()
        process.wait()
        if output.exists():
            break
        killed += 1
        assert len(costs.read_text().splitlines()) - 1 > measured
        measured = len(costs.read_text().splitlines()) - 1
    assert killed
    if not output.exists():
        subprocess.run(command(output), check=True, capture_output=True)
    assert output.read_bytes() == whole.read_bytes()
    assert Path(f"{output}.txt").read_bytes() == Path(f"{whole}.txt").read_bytes()
    assert len(list(tmp_path.iterdir())) == 4


def test_a_goal_out_of_reach_is_refused_before_the_text_is_run(
    cli: Cli, small: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("qconv.convert.budget.fit"), "probe", None)
    for bits in ("1.0", "17"):
        words = ("--bpw", bits, "--measure-on", small[1], "--effort", "fast")
        done = cli("hf-to-gguf", small[0], "-o", tmp_path / "a.gguf", *words)
        assert done.code == 2
        assert "cannot be met: this model takes between" in done.err
    assert not list(tmp_path.iterdir())
