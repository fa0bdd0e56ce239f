"""docs/hostile.md names tests that are there, and every advisory of the specification."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

GGUF = "tests/formats/gguf/test_hostile.py"


def rows(root: Path) -> list[tuple[str, str]]:
    """First and last column of the tables of advisories."""
    text = (root / "docs" / "hostile.md").read_text()
    table = text[text.index("## Advisories") :].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table if line.startswith("| ")]
    return [(row[0], row[-1]) for row in cells if row[0] != "advisory"]


def test_every_test_exists(root: Path) -> None:
    found = rows(root)
    assert len(found) > 20
    for advisory, tests in found:
        file = GGUF
        named = re.findall(r"`([^`]+)`", tests)
        assert any(name.startswith("test_") for name in named), advisory
        for name in named:
            if name.endswith(".py"):
                file = name
            else:
                assert f"def {name}(" in (root / file).read_text(), (advisory, name)


@pytest.mark.shared
def test_every_advisory_is_there(root: Path, shared: Path) -> None:
    text = (shared / "specs" / "ggml-pth-gguf.md").read_text()
    section = text[text.index("### 3.4") : text.index("### 3.5")]
    wanted = set(re.findall(r"CVE-\d{4}-\d+|GHSA-\w{4}-\w{4}-\w{4}|TALOS-\d{4}-\d+", section))
    assert len(wanted) > 15
    page = (root / "docs" / "hostile.md").read_text()
    assert sorted(name for name in wanted if name not in page) == []
    unnumbered = next(line for line in section.splitlines() if line.startswith("| unnumbered"))
    assert sum(advisory == "without number" for advisory, _ in rows(root)) == unnumbered.count(";") + 1


@pytest.mark.shared
def test_every_hostile_checkpoint_is_there(root: Path, shared: Path) -> None:
    page = (root / "docs" / "hostile.md").read_text()
    assert all(f"`{path.name}`" in page for path in (shared / "fixtures" / "pth").glob("evil-*"))
