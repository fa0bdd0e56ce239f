"""Thousands of damaged checkpoints: an error of qconv's or a sound result, soon, and in bounded memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch_files as made
from torch_mutations import attack

from qconv.errors import FormatError
from qconv.formats.pickles import read_pickled_checkpoint
from qconv.formats.positional import PositionalFile

ARRAYS = {f"layers.{i}.weight": np.full((4, 6), i, "<f4") for i in range(3)} | {"norm": np.ones(6, "<f2")}


@pytest.mark.parametrize("seed", range(4))
def test_mutations(tmp_path: Path, seed: int) -> None:
    value, data = made.plain_tensors(ARRAYS)
    contents = [
        made.zip_checkpoint(ARRAYS),
        made.archive(made.members(made.pickled(value), data), long=True),
        made.legacy_checkpoint(ARRAYS),
    ]
    assert 300 < attack(tmp_path / "m.pth", contents, 750, seed) < 750


@pytest.mark.shared
def test_mutations_of_real_files(tmp_path: Path, shared: Path) -> None:
    names = (
        "consolidated.00.pth",
        "legacy.00.pth",
        "odd.pth",
        "evil-reduce.pth",
        "evil-legacy.pth",
        "evil-missing.pth",
    )
    contents = [(shared / "fixtures" / "pth" / name).read_bytes() for name in names]
    assert 200 < attack(tmp_path / "m.pth", contents, 600, 0) <= 600


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("evil-reduce.pth", "asks for __builtin__.print"),
        ("evil-legacy.pth", "asks for __builtin__.print"),
        ("evil-missing.pth", "storage 0, which the pickle names, is not in the archive"),
    ],
)
def test_hostile_files(shared: Path, name: str, problem: str, capfd: pytest.CaptureFixture[str]) -> None:
    file = PositionalFile(shared / "fixtures" / "pth" / name)
    with pytest.raises(FormatError, match=problem):
        read_pickled_checkpoint(file)
    file.close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.shared
def test_every_hostile_file_is_tested(shared: Path) -> None:
    assert len(list((shared / "fixtures" / "pth").glob("evil-*"))) == 3
