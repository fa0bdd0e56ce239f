"""A text and subjects for tests that measure models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qconv.convert.measure import Subject, open_subject
from qconv.plugins.manager import load_plugins

PROSE = Path(__file__).with_name("prose.txt")
"""English prose, written for these tests: some 900 tokens of the example model."""


@contextmanager
def subject(path: Path) -> Iterator[Subject]:
    """Open a model with the built-in plugins."""
    with open_subject(path, load_plugins().registries()) as found:
        yield found
