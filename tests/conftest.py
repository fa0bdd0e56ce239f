"""Fixtures for every test: the checkout, and the folder ``../shared`` that only CI and developers have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from run_cli import Cli

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models, texts and fixtures; its absence fails the test, and never skips it."""
    folder = Path(os.environ.get("QCONV_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.fail(f"tests marked 'shared' need {folder}; set QCONV_SHARED to where it lies")
    return folder


@pytest.fixture(scope="session")
def example_model() -> Path:
    """The trained 6.8 M-weight Llama that ships with the project, as a Hugging Face folder."""
    return ROOT / "examples" / "prose-llama-7m"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run ``qconv`` in this process: ``cli("inspect", path).code``."""
    return Cli(capsys, monkeypatch)
