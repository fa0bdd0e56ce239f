"""What the commands print into: pipes, closed streams, encodings that lack characters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from run_cli import Cli

QCONV = (sys.executable, "-m", "qconv")


def run(
    words: list[str], folder: Path, environment: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[bytes]:
    """Run qconv in a process of its own."""
    return subprocess.run([*QCONV, *words], cwd=folder, env=dict(environment), capture_output=True, check=False)


def test_an_encoding_that_lacks_characters(example_model: Path, tmp_path: Path) -> None:
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = run(["metadata", "show", str(example_model), "--json", "--full"], tmp_path, ascii_only)
    assert done.returncode == 0, done.stderr
    assert "▁the" in json.loads(done.stdout.decode("ascii"))["metadata"]["tokenizer.ggml.tokens"]["value"]
    done = run(["metadata", "show", str(example_model)], tmp_path, ascii_only)
    assert done.returncode == 0, done.stderr
    assert rb"\u2026" in done.stdout  # the ellipsis of what is cut


def test_a_name_that_is_no_text(example_model: Path, tmp_path: Path) -> None:
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    name = os.fsdecode(b"\xff.gguf")
    done = run(["hf-to-gguf", str(example_model), "-o", name, "--type", "q8_0"], tmp_path, strict)
    assert done.returncode == 0, done.stderr
    assert b"wrote \xff.gguf" in done.stdout
    done = run(["inspect", name, "--json"], tmp_path, strict)
    assert json.loads(done.stdout.decode())["path"] == name


@pytest.mark.parametrize("words", [["formats"], ["formats", "--json"], ["inspect", "absent"]])
def test_closed_streams(words: list[str], tmp_path: Path) -> None:
    command = 'exec "$@" >&- 2>&-'
    done = subprocess.run(["sh", "-c", command, "sh", *QCONV, *words], cwd=tmp_path, check=False)
    assert done.returncode == int("absent" in words)


def test_a_reader_that_has_seen_enough(example_model: Path, tmp_path: Path) -> None:
    command = '"$@" | head -n 1'
    words = ["metadata", "show", str(example_model), "--full"]
    done = subprocess.run(["sh", "-c", command, "sh", *QCONV, *words], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout == b"general.architecture (str): llama\n"
    assert done.stderr == b""


def test_tables_in_pipes_end_with_their_words(cli: Cli, example_model: Path) -> None:
    lines = cli("inspect", example_model, "--tensors", "--metadata").out.splitlines()
    assert len(lines) > 100
    assert [line for line in lines if line != line.rstrip()] == []


def test_names_are_neither_markup_nor_emoji(example_model: Path, tmp_path: Path) -> None:
    terminal = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": "120", "TERM": "xterm"}
    name = "a[b]:smile:.gguf"
    done = run(["hf-to-gguf", str(example_model), "-o", name, "--type", "q8_0"], tmp_path, terminal)
    assert done.returncode == 0, done.stderr
    assert name.encode() in done.stderr  # the bar's label
    done = run(["metadata", "set", name, "general.name=:smile: [b]"], tmp_path, terminal)
    assert b":smile: [b]" in done.stdout
    assert b"missing[b].gguf: no such file" in run(["inspect", "missing[b].gguf"], tmp_path, terminal).stderr


def test_colours_only_where_they_are_wanted(tmp_path: Path) -> None:
    red = b"\x1b[1;31m"
    terminal = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm"}
    assert red in run(["inspect", "absent"], tmp_path, terminal).stderr
    assert b"31m" not in run(["inspect", "absent"], tmp_path, {**terminal, "NO_COLOR": "1"}).stderr
    assert run(["inspect", "absent"], tmp_path).stderr.startswith(b"error: absent: no such file or folder.")


def test_sentences_break_between_words_on_a_terminal(example_model: Path, tmp_path: Path) -> None:
    narrow = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": "40", "TERM": "xterm", "NO_COLOR": "1"}
    words = ["hf-to-gguf", str(example_model), "-o", "x.gguf", "--type", "q9"]
    lines = run(words, tmp_path, narrow).stderr.decode().splitlines()
    assert len(lines) > 1
    whole = run(words, tmp_path).stderr.decode().split()
    assert whole[1:] == " ".join(lines).split()[1:]
