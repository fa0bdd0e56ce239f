"""``qconv chat``: pipes and terminals, history, commands and refusals, on the example model with a template of ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from run_cli import Cli
from standard_input import pipe, terminal

import qconv.runtime.generating.generate as generation
from qconv.runtime.cache import FloatCache
from qconv.runtime.forward import forward

TEMPLATE = """{{ bos_token }}{% for message in messages %}
{{ message.role }}:{{ '' if message.role == 'assistant' else ' ' }}{{ message.content }}
{% endfor %}
assistant:"""
LINES = b"The old man walked\nIt was not until\n"


@pytest.fixture
def words(example_model: Path, tmp_path: Path) -> list[object]:
    file = tmp_path / "template.jinja"
    file.write_text(TEMPLATE, encoding="utf-8")
    return ["chat", example_model, "--chat-template", file, "--temperature", 0, "-n", 8]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of each pass."""
    found: list[int] = []

    def counted(network: Any, sequences: Any, **options: Any) -> Any:
        found.append(len(sequences[0]))
        return forward(network, sequences, **options)

    monkeypatch.setattr(generation, "forward", counted)
    return found


def interrupted(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Let Ctrl-C be pressed in the pass of that number."""
    count = 0

    def counted(network: Any, sequences: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == at:
            raise KeyboardInterrupt
        return forward(network, sequences, **options)

    monkeypatch.setattr(generation, "forward", counted)


def test_a_pipe_gets_an_answer_per_line(
    cli: Cli, words: list[object], monkeypatch: pytest.MonkeyPatch, passes: list[int]
) -> None:
    pipe(monkeypatch, LINES)
    done = cli(*words, "--json", "--system", "Walk")
    found = json.loads(done.out)
    first, second = found["answers"]
    assert [it["role"] for it in found["messages"]] == ["system", *["user", "assistant"] * 2]
    assert found["messages"][1]["content"] == "The old man walked"
    assert found["messages"][2]["content"] == first["text"]
    assert (first["stop"], len(first["tokens"])) == ("limit", 8)
    # the first question, seven of its answer's eight tokens one by one; then what is new
    assert passes[:8] == [first["prompt_tokens"], *[1] * 7]
    assert passes[8] == second["prompt_tokens"] - first["prompt_tokens"] - 7
    assert passes[9:] == [1] * 7
    pipe(monkeypatch, LINES)
    shown = cli(*words, "--system", "Walk")
    assert (shown.code, shown.out) == (0, f"{first['text']}\n{second['text']}\n")


def test_history_in_the_cache_changes_nothing(cli: Cli, words: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers are those of a model that reads the whole conversation for every token."""
    pipe(monkeypatch, LINES)
    remembered = json.loads(cli(*words, "--json").out)["answers"]
    read, lengths = generation.Reader.read, []

    def read_anew(reader: generation.Reader, text: Sequence[int]) -> NDArray[np.float32]:
        with generation.Reader(reader.network, FloatCache(reader.network.configuration, (len(text),))) as fresh:
            lengths.append(len(text))
            return read(fresh, text)

    monkeypatch.setattr(generation.Reader, "read", read_anew)
    pipe(monkeypatch, LINES)
    anew = json.loads(cli(*words, "--json").out)["answers"]
    assert [it["tokens"] for it in anew] == [it["tokens"] for it in remembered]
    assert lengths[8:] == list(range(anew[1]["prompt_tokens"], anew[1]["prompt_tokens"] + 8))


def test_clear_and_exit(cli: Cli, words: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, b"The old man walked\n\n/clear\nThe old man walked\n/exit\nno more\n")
    found = json.loads(cli(*words, "--json").out)
    one, other = found["answers"]
    assert one["tokens"] == other["tokens"]
    assert [it["role"] for it in found["messages"]] == ["user", "assistant"]


def test_a_terminal(cli: Cli, words: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch, ["The old man walked", "It was not until"])
    done = cli(*words)
    pipe(monkeypatch, LINES)
    one, other = cli(*words).out.splitlines()
    assert (done.code, done.out) == (0, f"> {one}\n> {other}\n> \n")


def test_ctrl_c_ends_an_answer_on_a_terminal(cli: Cli, words: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(monkeypatch, at=4)
    terminal(monkeypatch, ["The old man walked", "It was not until", KeyboardInterrupt])
    done = cli(*words)
    one, other, last = done.out.splitlines()
    assert done.code == 0
    assert last == "> "
    monkeypatch.undo()
    pipe(monkeypatch, LINES)
    whole = cli(*words).out.splitlines()
    assert len(one) > 2
    assert ("> " + whole[0]).startswith(one)
    assert len(one) < len("> " + whole[0])
    assert len(other) > len(one)


def test_ctrl_c_ends_a_pipe(cli: Cli, words: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(monkeypatch, at=4)
    pipe(monkeypatch, LINES)
    done = cli(*words)
    assert done.code == 1
    assert done.out.count("\n") == 1


def test_a_full_context(cli: Cli, words: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch, ["The old man walked", "word " * 40, "/clear", "The old man walked"])
    done = cli(*words, "-c", 30)
    assert done.code == 0
    assert "but the context holds 30" in done.err
    assert "/clear begins anew" in done.err
    first, second, *_ = [line for line in done.out.splitlines() if len(line) > 2]
    assert first.removeprefix("> ") == second.removeprefix("> > > ")
    pipe(monkeypatch, b"word " * 40)
    refused = cli(*words, "-c", 30)
    assert (refused.code, refused.out) == (2, "")


def test_refusals(cli: Cli, example_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, LINES)
    done = cli("chat", example_model)
    assert (done.code, done.out) == (1, "")
    assert "no chat template" in done.err
    bad = tmp_path / "bad.jinja"
    bad.write_text("{{ ''.__class__.mro() }}")
    done = cli("chat", example_model, "--chat-template", bad)
    assert (done.code, done.out) == (1, "")
    assert f"{bad}: the chat template cannot be rendered: the sandbox refuses it" in done.err
    assert cli("chat", example_model, "--chat-template", tmp_path / "absent").code == 1


def test_the_models_own_template(
    cli: Cli, example_model: Path, words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(example_model, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    pipe(monkeypatch, LINES)
    wanted = cli(*words).out
    pipe(monkeypatch, LINES)
    assert cli("chat", folder, *words[4:]).out == wanted
    gguf = tmp_path / "m.gguf"
    assert cli("hf-to-gguf", folder, "-o", gguf).code == 0
    pipe(monkeypatch, LINES)
    assert cli("chat", gguf, *words[4:]).out == wanted
