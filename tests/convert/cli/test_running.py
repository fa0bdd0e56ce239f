"""What long commands show on the way, and how they end at Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_cli import Cli

from qconv.convert import api
from qconv.convert.cli import running
from qconv.convert.cli.running import running_bar

PROSE = Path(__file__).parents[2] / "helpers" / "prose.txt"
SHORT = ("--text", PROSE, "-c", "64", "--chunks", "6")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The time, which stands still until a test changes it."""
    now = [100.0]
    monkeypatch.setattr("qconv.convert.cli.running.time.monotonic", lambda: now[0])
    yield now


def test_lines_come_within_a_thing_too(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with running_bar("perplexity", 4) as tell:
        clock[0] += 3
        tell.move(0.25)
        assert capsys.readouterr().err == ""
        clock[0] += 3
        tell.move(0.25)
        assert capsys.readouterr().err == "perplexity: 0 of 4 (12 %), 42 s left\n"
        tell.move(0.5)
        tell("PPL 57.2")
        assert capsys.readouterr().err == ""
        clock[0] += 6
        tell.move(0.5)
        assert capsys.readouterr().err == "perplexity: 1 of 4 (38 %), 20 s left, PPL 57.2\n"
        for _ in range(3):
            tell("PPL 57.1")
        assert capsys.readouterr().err == "perplexity: 4 of 4, 0 s left, PPL 57.1\n"


def test_things_that_tell_nothing_of_their_parts(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with running_bar("measuring types", 2) as tell:
        clock[0] += 10
        tell("")
        tell("")
    assert capsys.readouterr().err.splitlines() == [
        "measuring types: 1 of 2 (50 %), 10 s left",
        "measuring types: 2 of 2, 0 s left",
    ]


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with running_bar("perplexity", 1, quiet=True) as tell:
        tell.move(1)
        tell("x")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("command", ["perplexity", "imatrix", "validate"])
def test_long_windows_are_seen_to_move(
    cli: Cli, example_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(running, "_LINE_EVERY", 0.0)
    models: tuple[Path, ...] = (example_model,)
    words: tuple[object, ...] = ("--text", PROSE, "-c", "256", "--chunks", "1")
    if command == "imatrix":
        words += ("-o", tmp_path / "out.gguf")
    elif command == "validate":
        api.convert_model(example_model, tmp_path / "m.gguf", "q8_0")
        models += (tmp_path / "m.gguf",)
        words += ("--receipt", tmp_path / "receipt.json")
    done = cli(command, *models, *words)
    assert done.code == 0
    lines = [line for line in done.err.splitlines() if line.startswith(f"{command}: 0 of ")]
    shares = [int(line.split("(")[1].split(" %")[0]) for line in lines]
    assert len(lines) >= 11  # two for each of six blocks
    assert shares == sorted(shares)
    assert shares[0] < 15
    assert shares[-1] > 80


INTERRUPTED = {
    "perplexity": "qconv.runtime.measuring.perplexity.forward",
    "validate": "qconv.runtime.measuring.perplexity.forward",
    "verify": "qconv.formats.gguf.verify.verify_gguf",
    "diff": "qconv.convert.diff.diff_tensors",
    "split": "qconv.convert.editing.transfer._Work._move",
    "merge": "qconv.convert.editing.split.check_bytes",
    "quantize": "qconv.convert.budget.sensitivity._sample",
    "warmup": "qconv.convert.warmup.compile_codec",
    "generate": "qconv.runtime.generating.generate.Reader.__init__",
    "inspect": "qconv.convert.opening.open_model",
}


@pytest.mark.parametrize("command", INTERRUPTED)
def test_interrupts_end_with_one_sentence(
    cli: Cli, example_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    model = tmp_path / "m.gguf"
    api.convert_model(example_model, model, "q8_0")
    if command == "merge":
        assert cli("split", model, tmp_path / "part", "--max-tensors", "40").code == 0
    words: dict[str, tuple[object, ...]] = {
        "perplexity": (model, *SHORT, "--save-logits", tmp_path / "base"),
        "validate": (model, model, *SHORT),
        "verify": (model,),
        "diff": (model, example_model),
        "split": (model, tmp_path / "part", "--max-tensors", "40"),
        "merge": (tmp_path / "part-00001-of-00002.gguf", tmp_path / "whole.gguf"),
        "quantize": (model, tmp_path / "q.gguf", "--bpw", "4", "--allow-requantize"),
        "warmup": ("q8_0",),
        "generate": (model, "-p", "Once"),
        "inspect": (model,),
    }
    before = {path.name: path.stat().st_size for path in tmp_path.iterdir()}

    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(INTERRUPTED[command], interrupt)
    done = cli(command, *words[command])
    assert done.code == 1
    assert done.err.splitlines()[-1] == "interrupted; nothing unfinished is left behind"
    assert done.out == ""
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == before


def test_an_interrupted_measurement_of_types_says_that_it_goes_on(
    cli: Cli, example_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(INTERRUPTED["quantize"], interrupt)
    text = tmp_path / "long.txt"
    text.write_text(PROSE.read_text(encoding="utf-8") * 2, encoding="utf-8")
    words = ("--bpw", "4", "--measure-on", text, "--measure-chunks", "1")
    done = cli("quantize", example_model, tmp_path / "q.gguf", *words)
    assert done.code == 1
    assert done.err.splitlines()[-1] == "note: interrupted; run the same command again to continue"
