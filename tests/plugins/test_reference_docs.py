"""The docs speak of everything that is registered, and their examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qconv.plugins import load_plugins

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = Path(__file__).parents[2] / "examples" / "prose-llama-7m"
BUILT_IN = load_plugins("").registries()


def sections(name: str) -> dict[str, str]:
    """The text below each heading of the second level."""
    heads = re.split(r"^## (.+)$", (DOCS / name).read_text(), flags=re.MULTILINE)
    return dict(zip(heads[1::2], heads[2::2], strict=True))


def rows(name: str, columns: int) -> list[list[str]]:
    """The cells of every table row with so many columns, without markup."""
    lines = [line for line in (DOCS / name).read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if len(row) == columns]


def test_every_format_has_a_heading_and_a_row() -> None:
    assert list(sections("formats.md")) == list(BUILT_IN.formats)
    table = {row[0]: row for row in rows("formats.md", 5)}
    for name, it in BUILT_IN.formats.items():
        assert (table[name][3] == "no") == (it.lay_out is None)


@pytest.mark.parametrize("name", list(BUILT_IN.formats))
def test_the_example_of_a_format(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", sections("formats.md")[name], flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks[0], f"docs/formats.md: {name}", "exec"), {"model": str(EXAMPLE)})  # noqa: S102 - the docs are ours


def test_every_encoding_has_a_row_that_is_true() -> None:
    table = {row[0]: row[1:] for row in rows("encodings.md", 6)}
    for it in BUILT_IN.encodings.values():
        expected = [str(it.block_size), str(it.block_bytes), f"{it.bits_per_weight:g}", str(it.importance), it.family]
        assert table[it.name] == expected
    assert [name for name in table if name in BUILT_IN.encodings] == list(BUILT_IN.encodings)


def test_every_architecture_has_a_row() -> None:
    table = {row[0]: row for row in rows("architectures.md", 4)}
    for name, it in BUILT_IN.architectures.items():
        assert table[name][2] == it.gguf
