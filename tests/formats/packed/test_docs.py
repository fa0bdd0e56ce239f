"""docs/packed.md lists every packing as it is."""

from __future__ import annotations

from pathlib import Path

from qconv.formats.packed import PACKINGS


def test_every_packing_is_in_the_table(root: Path) -> None:
    lines = (root / "docs" / "packed.md").read_text().splitlines()
    start = lines.index("| name | is | `quant_method` | what is read |") + 2
    rows = lines[start : lines.index("", start)]
    assert rows == [
        f"| `{packing.name}` | {packing.label} | {', '.join(f'`{method}`' for method in packing.methods)} | {packing.description} |"
        for packing in PACKINGS
    ]


def test_names_are_unique() -> None:
    names = [packing.name for packing in PACKINGS]
    methods = [method for packing in PACKINGS for method in packing.methods]
    assert len(names) == len(set(names))
    assert len(methods) == len(set(methods))
