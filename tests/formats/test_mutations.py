"""Hundreds of damaged files for every reader: refused or read, soon and in bounded memory (``scripts/fuzz_readers.py`` reads more)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile_fixtures import READERS
from hostile_watch import fuzz

MUTATIONS = 250


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name: str, tmp_path: Path) -> None:
    for folder in ("made", "read"):
        (tmp_path / folder).mkdir()
    tally = fuzz(READERS[name](tmp_path / "made"), tmp_path / "read", range(MUTATIONS), seed=1)
    assert not tally.failures
    assert MUTATIONS // 50 < tally.accepted < MUTATIONS * 3 // 4  # damage that neither spares nor kills everything
