"""README's examples print what it says, to the digit but for the time they take."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from doc_examples import console_examples
from run_cli import Cli


def test_the_readme(cli: Cli, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(root / "examples")
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    found = console_examples((root / "README.md").read_text())
    assert len(found) > 1
    for command, expected in found:
        program, *words = shlex.split(command)
        assert program == "qconv"
        assert _without_times(cli(*words).out) == _without_times(expected)


def _without_times(text: str) -> str:
    return re.sub(r"^[\d.]+ s, [\d,]+ million weights per second$", "a time", text, flags=re.MULTILINE)
