"""``qconv generate``: text, JSON, pipes, refusals and Ctrl-C, on the example model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from measuring import subject
from run_cli import Cli
from standard_input import pipe, terminal

PROMPT = "The old man walked"
GREEDY = ("--temperature", 0, "-n", 24)


def generated(cli: Cli, *words: object) -> dict[str, Any]:
    done = cli("generate", *words, "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_text_and_json_say_the_same(cli: Cli, example_model: Path) -> None:
    found = generated(cli, example_model, "-p", PROMPT, *GREEDY)
    with subject(example_model) as it:
        ids = it.tokenizer.encode(PROMPT).tolist()
        assert it.tokenizer.decode([*ids, *found["tokens"]]) == PROMPT + found["text"]
    assert (found["prompt"], found["prompt_tokens"], len(found["tokens"])) == (PROMPT, len(ids), 24)
    assert (found["stop"], found["cache"], found["context"], found["temperature"]) == ("limit", "F32", len(ids) + 24, 0)
    done = cli("generate", example_model, "-p", PROMPT, *GREEDY)
    assert (done.code, done.out) == (0, found["text"] + "\n")
    assert f"{len(ids)} prompt tokens in " in done.err
    assert "24 tokens at " in done.err


def test_a_piped_prompt(cli: Cli, example_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = generated(cli, example_model, "-p", f"{PROMPT}\n in", *GREEDY)
    pipe(monkeypatch, f"{PROMPT}\n in\r\n".encode())
    found = generated(cli, example_model, *GREEDY)
    assert (found["prompt"], found["tokens"]) == (f"{PROMPT}\n in", wanted["tokens"])


def test_seeds(cli: Cli, example_model: Path) -> None:
    words = (example_model, "-p", PROMPT, "-n", 16, "--temperature", 1.5)
    one = generated(cli, *words)
    assert generated(cli, *words, "--seed", one["seed"])["tokens"] == one["tokens"]
    assert generated(cli, *words, "--seed", one["seed"] + 1)["tokens"] != one["tokens"]


def test_memory_and_cache_types(cli: Cli, example_model: Path) -> None:
    words = (example_model, "-p", PROMPT, *GREEDY)
    held, streamed = generated(cli, *words, "--memory", 1), generated(cli, *words, "--memory", 0)
    assert held["tokens"] == streamed["tokens"]
    # every matrix, 6,817,024 weights with the norms; of the embedding only the rows of tokens that came up
    assert 20e6 < held["held_bytes"] < 4 * 6_820_000
    assert streamed["held_bytes"] == 0
    assert generated(cli, *words, "--memory", 0.01)["held_bytes"] <= 0.01 * (1 << 30)
    assert generated(cli, *words, "--cache-type", "Q8_0")["cache"] == "Q8_0"


def test_the_context_ends_it(cli: Cli, example_model: Path) -> None:
    words = ("generate", example_model, "-p", PROMPT, "--temperature", 0, "-c", 12)
    done = cli(*words)
    assert done.code == 0
    assert "the context is full" in done.err
    found = json.loads(cli(*words, "--json").out)
    assert (found["stop"], found["prompt_tokens"] + len(found["tokens"])) == ("context", 13)
    assert "trained for 2,048 tokens" in cli("generate", example_model, "-p", "a", "-n", 1, "-c", 4096).err


def test_refusals(cli: Cli, example_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch)
    assert "--prompt is missing" in cli("generate", example_model).err
    for words, message in (
        (("-p", "a", "--temperature", -1), "temperature of -1"),
        (("-p", "a", "--top-p", 0), "top-p is 0"),
        (("-p", "a", "--seed", -1), "whole number from 0"),
        (("-p", "a", "--cache-type", "q5_0"), "one of F32, Q8_0, Q4_0"),
        (("-p", PROMPT, "-c", 2), "tokens, but the context 2"),
    ):
        done = cli("generate", example_model, *words)
        assert (done.code, done.out) == (2, "")
        assert message in done.err


def test_a_terminal_gets_no_control_characters(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    from qconv.convert.cli.speech import say

    say("a\x1b[31m\x07\tb\r\n\u00a0é")
    assert capsys.readouterr().out == "a\x1b[31m\x07\tb\r\n\u00a0é"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    say("a\x1b[31m\x07\tb\r\n\u00a0é\x9b")
    assert capsys.readouterr().out == "a\ufffd[31m\ufffd\tb\n\u00a0é\ufffd"


def test_ctrl_c_ends_it_cleanly(example_model: Path) -> None:
    # the likeliest text goes on for long; one drawn by chance may be over before the signal comes
    words = ["generate", str(example_model), "-p", PROMPT, "-n", "2000", "--temperature", "0"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # the tests may run in a shell's background, where Ctrl-C is ignored and children inherit that
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heed}; from qconv.convert.cli import main; main()"
    with subprocess.Popen([sys.executable, "-c", code, *words], **pipes) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert (first + rest).endswith(b"\n")
    assert b"Traceback" not in err
    assert b"note: interrupted" in err
