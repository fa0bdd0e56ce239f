"""docs/recipes.md holds what its script writes."""

from __future__ import annotations

import runpy
from pathlib import Path

from qconv.quantizers.recipes import recipes
from qconv.quantizers.recipes.situation import CONDITIONS


def test_the_tables_are_current(root: Path) -> None:
    text = (root / "docs" / "recipes.md").read_text(encoding="utf-8")
    script = runpy.run_path(str(root / "scripts" / "recipe_tables.py"))
    assert script["filled"](text) == text, "run scripts/recipe_tables.py"
    assert all(f"| {name} |" in text for name in recipes() if name != "COPY")


def test_every_condition_is_explained(root: Path) -> None:
    text = (root / "docs" / "recipes.md").read_text(encoding="utf-8")
    first_cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| ")]
    explained = {part.strip() for cell in first_cells for part in cell.split(",")}
    assert set(CONDITIONS) <= explained
