"""``qconv perplexity --cache-type``: what keys and values in blocks cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from measuring import PROSE
from run_cli import Cli

WORDS = ("--text", PROSE, "-c", 64, "--chunks", 6, "--json")


def measure(cli: Cli, *words: object) -> dict[str, Any]:
    done = cli("perplexity", *words)
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_the_divergence_of_cache_types(cli: Cli, example_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    exact = measure(cli, example_model, *WORDS, "--save-base", base)
    assert exact["cache"] == "F32"
    lost = {}
    for kind in ("q8_0", "q4_0"):
        found = measure(cli, example_model, *WORDS, "--cache-type", kind, "--base", base)
        assert found["cache"] == kind.upper()
        assert found["perplexity"]["value"] == pytest.approx(exact["perplexity"]["value"], rel=0.05)
        lost[kind] = found["divergence"]["divergence"]["value"]
    print(exact["perplexity"], lost)
    assert 0 < lost["q8_0"] < 0.05 * lost["q4_0"]


def test_a_type_that_no_cache_has(cli: Cli, example_model: Path) -> None:
    done = cli("perplexity", example_model, *WORDS, "--cache-type", "q5_0")
    assert (done.code, done.out) == (2, "")
    assert "--cache-type is one of F32, Q8_0, Q4_0" in done.err
