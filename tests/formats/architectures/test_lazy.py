"""Which tensors only move bytes of files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from qconv_encodings import ENCODINGS

from qconv.formats.architectures.lazy import constant, in_float32, only_moves
from qconv.formats.architectures.transforms import TRANSFORMS
from qconv.formats.base import Tensor
from qconv.formats.positional import ContiguousRows, PositionalFile


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[Tensor]:
    """Yield a matrix (8, 4) of float16 in a file."""
    path = tmp_path / "weights"
    path.write_bytes(np.arange(32, dtype="<f2").tobytes())
    file = PositionalFile(path)
    yield Tensor("w", (8, 4), ENCODINGS["F16"], ContiguousRows(file, 0, 8, 8, "w"), "weights: w")
    file.close()


def test_rows_in_another_order_are_moved(stored: Tensor) -> None:
    assert only_moves(stored)
    (turned,) = TRANSFORMS["permute_rotary"].forward([stored], {"heads": 2})
    (stacked,) = TRANSFORMS["stack"].forward([turned, stored], {})
    parts = TRANSFORMS["stack"].inverse([stacked], {"count": 2})
    for moved in (turned, stacked, *parts):
        assert only_moves(moved)
    assert np.array_equal(parts[0].read(0, 8), turned.read(0, 8))
    assert np.array_equal(parts[1].read(3, 5), stored.read(3, 5))


def test_what_is_computed_is_not_moved(stored: Tensor) -> None:
    decoded = in_float32(stored)
    held = constant("c", np.zeros((8, 4), np.float32), "computed")
    (mixed,) = TRANSFORMS["stack"].forward([stored, held], {})
    (turned,) = TRANSFORMS["permute_rotary"].forward([decoded], {"heads": 2})
    for computed in (decoded, held, mixed, turned, replace(stored, read=lambda start, stop: stored.read(start, stop))):
        assert not only_moves(computed)
