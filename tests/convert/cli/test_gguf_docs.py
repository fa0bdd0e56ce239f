"""The console examples of docs/gguf.md print what the page says, but for numbers, which other work may move."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from run_cli import Cli


def examples(page: Path) -> list[tuple[str, str]]:
    """Commands, and what the page says that they print."""
    blocks = re.findall(r"^```console\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    parts = re.split(r"^\$ (.+)\n", "".join(blocks), flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def comparable(text: str) -> str:
    """The text without the values of numbers, and without spaces at line ends."""
    lines = (re.sub(r"\d[\d,.]*(e-\d+)?( [KMG]iB/s)?", "#", line).rstrip() for line in text.splitlines())
    return re.sub(r" +", " ", "\n".join(lines)).strip()


def test_the_page(cli: Cli, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(root / "examples")
    monkeypatch.chdir(tmp_path)
    found = examples(root / "docs" / "gguf.md")
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
