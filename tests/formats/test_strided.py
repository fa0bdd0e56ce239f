"""Rows through strides, against NumPy's own views, with the pieces small enough that every way of cutting is gone."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from qconv.errors import TruncatedError
from qconv.formats import strided
from qconv.formats.positional import PositionalFile
from qconv.formats.strided import StridedView, contiguous_strides, gather_rows

ELEMENTS = np.random.default_rng(1).integers(0, 1 << 16, 20_000).astype("<u2")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PositionalFile]:
    path = tmp_path_factory.mktemp("strided") / "elements"
    path.write_bytes(b"offset" + ELEMENTS.tobytes())
    opened = PositionalFile(path)
    yield opened
    opened.close()


@st.composite
def geometries(draw: st.DrawFn) -> tuple[int, tuple[int, ...], tuple[int, ...], int, int]:
    shape = tuple(draw(st.lists(st.integers(1, 12), max_size=4)))
    strides = tuple(draw(st.integers(0, 400)) for _ in shape)
    span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    offset = draw(st.integers(0, max(0, ELEMENTS.size - span)))
    rows = prod(shape[:-1])
    start = draw(st.integers(0, rows))
    return offset, shape, strides, start, draw(st.integers(start, rows))


@pytest.mark.parametrize(("small", "large"), [(2, 2), (64, 512), (16 << 10, 4 << 20)])
def test_any_view(file: PositionalFile, small: int, large: int) -> None:
    @settings(max_examples=150, deadline=None)
    @given(geometries())
    def check(geometry: tuple[int, tuple[int, ...], tuple[int, ...], int, int]) -> None:
        offset, shape, strides, start, stop = geometry
        view = StridedView(file, 6 + 2 * offset, shape, strides, 2, "t")
        expected = as_strided(ELEMENTS[offset:], shape, tuple(2 * stride for stride in strides))
        rows = expected.reshape(prod(shape[:-1]), -1)[start:stop]
        found = gather_rows(view, start, stop)
        assert found.dtype == np.uint8
        assert found.shape == (stop - start, 2 * (shape[-1] if shape else 1))
        assert found.tobytes() == rows.tobytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strided, "_SMALL", small)
        patch.setattr(strided, "_LARGE", large)
        check()


def test_reads_are_bounded(file: PositionalFile, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    whole = PositionalFile.read_into

    def read_into(self: PositionalFile, out: memoryview, offset: int, tensor: str | None = None) -> None:
        lengths.append(len(memoryview(out).cast("B")))
        whole(self, out, offset, tensor)

    monkeypatch.setattr(PositionalFile, "read_into", read_into)
    monkeypatch.setattr(strided, "_SMALL", 512)
    monkeypatch.setattr(strided, "_LARGE", 2048)
    gather_rows(StridedView(file, 6, (100, 200), (1, 100), 2, "t"), 0, 100)  # dense: large pieces
    assert max(lengths) <= 2048
    assert sum(lengths) == 40_000
    lengths.clear()
    gather_rows(StridedView(file, 6, (2, 200), (1, 100), 2, "t"), 0, 2)  # two of a hundred rows: small ones
    assert max(lengths) <= 512


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,), (2, 0, 4)])
def test_nothing(file: PositionalFile, shape: tuple[int, ...]) -> None:
    view = StridedView(file, 6, shape, contiguous_strides(shape), 4, "t")
    rows = prod(shape[:-1])
    assert gather_rows(view, 0, rows).shape == (rows, 4 * shape[-1])


def test_a_file_that_has_become_shorter(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(bytes(100))
    file = PositionalFile(path)
    path.write_bytes(bytes(50))
    with pytest.raises(TruncatedError, match="tensor t"):
        gather_rows(StridedView(file, 0, (5, 5), (1, 5), 4, "t"), 0, 5)
    file.close()
