"""docs/converting.md: its commands print what the page says, but for numbers; its Python runs; its tables are complete."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from doc_examples import comparable, console_examples
from run_cli import Cli

from qconv.formats.huggingface.out import source
from qconv.formats.rounded import EXACT_NAMES


@pytest.fixture
def page(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page, to be tried in an empty folder with the examples beside it."""
    (tmp_path / "examples").symlink_to(root / "examples")
    monkeypatch.chdir(tmp_path)
    return (root / "docs" / "converting.md").read_text()


def test_commands(cli: Cli, page: str) -> None:
    found = console_examples(page)
    assert len(found) > 6
    for command, expected in found:
        words = shlex.split(command)
        assert words[0] == "qconv"
        done = cli(*words[1:])
        assert comparable(done.out + done.err) == comparable(expected), command
        assert (done.code == 0) == ("error:" not in expected)


def test_python(page: str) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    exec(compile(code, "docs/converting.md", "exec"), {})  # noqa: S102 - the docs are ours


def test_keys(page: str) -> None:
    listed = set(re.findall(r"^\| `qconv\.source\.(\w+)`", page, flags=re.MULTILINE))
    documented = set(re.findall(r"^``qconv\.source\.(\w+)``", source.__doc__ or "", flags=re.MULTILINE))
    assert listed == documented | {EXACT_NAMES.rpartition(".")[2]}
