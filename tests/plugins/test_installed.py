"""Whether a plugin may be installed is seen without importlib.metadata."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from qconv.plugins.installed import may_have_entry_points


@pytest.mark.parametrize(
    ("folder", "text", "found"),
    [
        ("novel-1.0.dist-info", "[console_scripts]\na = b:c\n\n[qconv]\nnovel = novel\n", True),
        ("novel.egg-info", "[qconv]\nnovel = novel\n", True),
        ("other-1.0.dist-info", "[qconv.other]\nnovel = novel\n", False),
    ],
)
def test_entry_points_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, text: str, found: bool
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path / "absent")])
    assert not may_have_entry_points("qconv")
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "entry_points.txt").write_text(text)
    assert may_have_entry_points("qconv") is found


def test_an_archive_may_have_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "packages.zip", "w") as archive:
        archive.writestr("empty.txt", "")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "packages.zip")])
    assert may_have_entry_points("qconv")


def test_starting_leaves_the_slow_module_alone() -> None:
    code = "import sys, qconv.convert.cli as c; c.build_app('inspect'); print('importlib.metadata' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
