"""The console examples of docs/gguf.md print what the page says, but for numbers, which other work may move."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from doc_examples import comparable, console_examples
from run_cli import Cli


def test_the_page(cli: Cli, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(root / "examples")
    monkeypatch.chdir(tmp_path)
    found = console_examples((root / "docs" / "gguf.md").read_text())
    assert len(found) > 10
    for command, expected in found:
        words = shlex.split(command)
        if words[0] == "mv":
            Path(words[1]).rename(words[2])
            continue
        assert words[0] == "qconv"
        done = cli(*words[1:])
        assert comparable(done.out + done.err) == comparable(expected), command
        assert (done.code == 0) == (not expected.startswith("error:") and words[1] != "diff")
