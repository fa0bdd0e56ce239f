"""``checklist.chk``, and ``qconv verify`` of a folder with one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from run_cli import Cli

from qconv.errors import FormatError, MissingFileError
from qconv.formats.meta.checklist import check_small_files, read_checklist, verify_checklist


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.pth").write_bytes(b"first")
    (tmp_path / "b.json").write_bytes(b"second")
    first, second = hashlib.md5(b"first").hexdigest().upper(), hashlib.sha256(b"second").hexdigest()
    (tmp_path / "checklist.chk").write_text(f"{first}  a.pth\r\n{second} *b.json\n\n")
    return tmp_path


def test_whole_and_damaged_files(folder: Path) -> None:
    counts: list[int] = []
    assert verify_checklist(folder, counts.append) == {"a.pth": True, "b.json": True}
    assert sum(counts) == 11
    (folder / "a.pth").write_bytes(b"First")
    assert verify_checklist(folder) == {"a.pth": False, "b.json": True}
    assert check_small_files(folder) == (
        "a.pth is not the file that checklist.chk describes: it was edited or damaged",
    )


def test_absent_files(folder: Path) -> None:
    (folder / "a.pth").unlink()
    assert check_small_files(folder) == ()
    with pytest.raises(MissingFileError, match=r"names files that are missing: a\.pth"):
        verify_checklist(folder)
    (folder / "checklist.chk").unlink()
    assert read_checklist(folder) == {}
    with pytest.raises(MissingFileError, match=r"no checklist\.chk"):
        verify_checklist(folder)


@pytest.mark.parametrize(
    "line",
    [
        "zz",
        "0" * 31 + "  a",
        "0" * 33 + "  a",
        "0" * 32 + " a",
        "0" * 32 + "  ../a",
        "0" * 32 + "  /etc/passwd",
        "0" * 32 + "  c:a",
        "0" * 32 + "  a\\b",
        "0" * 32 + "  ",
        "0" * 32 + "  a\n" + "1" * 32 + "  a",
        "\0",
        "\n" * (1 << 20) + "0",
    ],
)
def test_malformed_lists(folder: Path, line: str) -> None:
    (folder / "checklist.chk").write_text(line + "\n")
    with pytest.raises(FormatError, match="a line is not a digest"):
        read_checklist(folder)


def test_command(folder: Path, cli: Cli) -> None:
    done = cli("verify", folder)
    assert (done.code, done.err) == (0, "")
    assert "whole: 2 files, 11 bytes" in done.out
    (folder / "a.pth").write_bytes(b"First")
    done = cli("verify", folder)
    assert done.code == 1
    assert "a.pth differs from checklist.chk" in done.err
    done = cli("verify", folder, "--json")
    assert done.code == 1
    assert json.loads(done.out) == {"path": str(folder), "ok": False, "files": {"a.pth": False, "b.json": True}}


@pytest.mark.shared
def test_real_checklist(shared: Path) -> None:
    found = verify_checklist(shared / "fixtures" / "pth")
    assert found == {"consolidated.00.pth": True, "consolidated.01.pth": True, "params.json": True}
