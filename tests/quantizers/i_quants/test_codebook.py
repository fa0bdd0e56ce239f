"""The searches of codebooks against NumPy's brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from gguf.quants import IQ4_NL
from numpy.typing import NDArray
from qconv_encodings import ENCODINGS

from qconv.quantizers.i_quants import codebook_tables as ct
from qconv.quantizers.i_quants import iq4
from qconv.quantizers.i_quants.codebook import load_codebook
from qconv.quantizers.i_quants.codebook_points import FLOAT_ROOM, INT_ROOM, PICKS, SHIFTS, measure_eight, measure_four
from qconv.quantizers.superblocks import W, X
from qconv.quantizers.vectors import simd as v
from qconv.quantizers.vectors.kernel import kernel, scratch, scratch_int

BOOKS = ["IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"]
LENGTH, LANES = 16, 16


def _tables(name: str) -> tuple[NDArray[np.float32], ct.PointTables]:
    """The points that a search is for, and tables with cells of a quarter or sixteenth of their range."""
    book = load_codebook(name)
    points = book.points[:2048] - 1 if name == "IQ1_S" else book.points
    cells = 16 if points.shape[1] == 4 else 4
    low, high = float(points.min()), float(points.max())
    width = (high - low) / (cells - 1)
    centres = (low + width * np.arange(cells)).astype(np.float32)
    return points, ct.point_tables(book, points, centres, (low + width / 2, width))


@kernel
def _measure_eight(
    x: NDArray[np.float32],
    w: NDArray[np.float32],
    scale: float,
    shift: float,
    tables: ct.PointTables,
    exact: bool,
    out: NDArray[np.int32],
    error: NDArray[np.float32],
) -> None:
    work, numbers = scratch(FLOAT_ROOM), scratch_int(INT_ROOM)
    for place in range(SHIFTS, FLOAT_ROOM):
        work[place] = shift
    for place in range(x.size):
        work[X + place], work[W + place] = x[place], w[place]
    sums = measure_eight(work, numbers, tables, v.splat(scale), LENGTH, exact)
    for place in range(out.size):
        out[place] = numbers[PICKS + place]
    error[0] = v.lane_sum(sums.rr)


@kernel
def _measure_four(
    x: NDArray[np.float32],
    w: NDArray[np.float32],
    scale: float,
    shift: float,
    tables: ct.PointTables,
    exact: bool,
    out: NDArray[np.int32],
    error: NDArray[np.float32],
) -> None:
    work, numbers = scratch(FLOAT_ROOM), scratch_int(INT_ROOM)
    for place in range(x.size):
        work[X + place], work[W + place] = x[place], w[place]
    sums = measure_four(work, numbers, tables, v.splat(scale), LENGTH, exact)
    for place in range(out.size):
        out[place] = numbers[PICKS + place]
    error[0] = v.lane_sum(sums.rr)


def _groups(values: NDArray[np.float32], coordinates: int) -> NDArray[np.float32]:
    """(places, lanes) of sub-blocks to (groups, coordinates), group by group of all lanes."""
    return values.reshape(-1, coordinates, LANES).transpose(0, 2, 1).reshape(-1, coordinates)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", BOOKS)
def test_the_exact_search_finds_the_cheapest_point(name: str, wide: bool) -> None:
    points, tables = _tables(name)
    random = np.random.default_rng(1)
    scale = np.float32(0.15 if name == "IQ1_S" else 2 / points.max())
    shift = 1.0 if name == "IQ1_S" else 0.0
    x = random.standard_normal(LENGTH * LANES).astype(np.float32)
    x = x if shift else np.abs(x)
    w = np.exp((1.2 if wide else 0.0) * random.standard_normal(x.size)).astype(np.float32)
    coordinates = points.shape[1]
    out = np.empty(x.size // coordinates, np.int32)
    measure = _measure_four if coordinates == 4 else _measure_eight
    error, rough = np.empty(1, np.float32), np.empty(1, np.float32)
    measure(x, w, float(scale), shift, tables, True, out, error)
    groups, weights = _groups(x, coordinates), _groups(w, coordinates)
    costs = ((groups[:, None] - scale * (points + np.float32(shift))) ** 2 * weights[:, None]).sum(2)
    found = costs[np.arange(len(costs)), out]
    # costs are compared in units of 2**-17 of the group's largest
    assert np.all(found <= costs.min(1) + 1e-4 * costs.max(1))
    assert found.sum() <= costs.min(1).sum() * 1.001
    assert error[0] == pytest.approx(found.sum(), rel=1e-5)
    measure(x, w, float(scale), shift, tables, False, out, rough)
    assert error[0] < rough[0] < 3 * error[0]


@pytest.mark.parametrize("name", BOOKS)
def test_rectangles_cover_all_points_and_nothing_else(name: str) -> None:
    points, tables = _tables(name)
    levels = np.unique(points)
    half = points.shape[1] // 2
    place = len(levels) ** np.arange(half)[::-1]
    digits = np.searchsorted(levels, points)
    wanted = set(zip((digits[:, :half] @ place).tolist(), (digits[:, half:] @ place).tolist(), strict=True))
    count = len(levels) ** half
    covered = set[tuple[int, int]]()
    large, small = np.split(tables.rectangles, [tables.large])
    for data, (rows, columns) in ((large, ct.LARGE), (small, ct.SMALL)):
        for rectangle in (data.view("<u2") // LANES).reshape(-1, rows + columns).tolist():
            covered |= set(product(rectangle[:rows], (column - count for column in rectangle[rows:])))
    assert covered == wanted


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ2_XS", "IQ3_XXS"])
def test_one_sign_yields_where_only_seven_are_stored(name: str) -> None:
    encoding = ENCODINGS[name]
    rows = np.full((1, 256), 0.5, np.float32)
    rows[0, 3::8] = -0.05
    decoded = encoding.decode(encoding.encode(rows, np.ones(256, np.float32)))
    negative = (decoded.reshape(-1, 8) < 0).sum(1)
    assert np.all(negative % 2 == 0)
    assert np.all(decoded[rows > 0] > 0)


@pytest.mark.parametrize(
    "name", ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"]
)
def test_weights_that_a_block_can_hold_are_almost_kept(name: str) -> None:
    encoding = ENCODINGS[name]
    random = np.random.default_rng(2)
    usual = random.standard_normal((64, encoding.block_size)).astype(np.float32)
    importance = np.ones(encoding.block_size, np.float32)
    rows = encoding.decode(encoding.encode(usual, importance))
    again = encoding.decode(encoding.encode(rows, importance))
    first, second = (float(((a - b) ** 2).sum()) for a, b in ((usual, rows), (rows, again)))
    assert second < 0.25 * first


def test_the_polynomial_of_iq4_meets_the_boundaries_between_levels() -> None:
    levels = np.array(IQ4_NL.kvalues, np.float32)
    boundaries = (levels[1:] + levels[:-1]) / 2
    np.testing.assert_allclose(np.polynomial.polynomial.polyval(boundaries, iq4.CODE), np.arange(15) + 0.5, atol=0.012)
    everywhere = np.polynomial.polynomial.polyval(np.linspace(-iq4.LOWEST, iq4.HIGHEST, 10_001), iq4.CODE)
    assert (np.diff(everywhere) > 0).all()
    assert np.rint(everywhere[[0, -1]]).tolist() == [0, 15]
