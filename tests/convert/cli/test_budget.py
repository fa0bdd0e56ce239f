"""``--size``, ``--bpw``, ``--recipe``: what a user types, and what a user reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_cli import Cli

EXAMPLE = Path(__file__).parents[3] / "examples" / "prose-llama-7m"


def test_a_size_and_its_recipe(cli: Cli, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.txt"
    done = cli("hf-to-gguf", EXAMPLE, "-o", tmp_path / "a.gguf", "--size", "3.4MiB", "--recipe-out", recipe)
    assert done.code == 0, done.err
    assert "types chosen: 3,56" in done.err
    assert "--measure-on" in done.err
    assert (tmp_path / "a.gguf").stat().st_size <= int(3.4 * (1 << 20))
    assert recipe.read_text().startswith("# types for prose-llama-7m: 3,56")
    again = cli("hf-to-gguf", EXAMPLE, "-o", tmp_path / "b.gguf", "--recipe", recipe)
    assert again.code == 0, again.err
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "1MiB"], "cannot be met: this model takes between"),
        (["--size", "1TiB"], "cannot be met: this model takes between"),
        (["--bpw", "0.5"], "cannot be met: this model takes between"),
        (["--size", "3MiB", "--bpw", "4"], "--size and --bpw exclude each other"),
        (["--size", "3MiB", "--type", "q4_k_m"], "exclude each other"),
        (["--size", "much"], "'much' is no size"),
        (["--recipe-out", "x.txt"], "go with --size or --bpw"),
        (["--bpw", "4", "--pure"], "--compat and --pure"),
    ],
)
def test_what_makes_no_sense(cli: Cli, tmp_path: Path, words: list[str], message: str) -> None:
    done = cli("hf-to-gguf", EXAMPLE, "-o", tmp_path / "a.gguf", *words)
    assert done.code == 2
    assert message in done.err
    assert "measuring" not in done.err  # what cannot be is told before anything is measured
    assert not list(tmp_path.iterdir())
