"""Rounding in groups against a straightforward float64 statement of it, and what it must never do."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from qconv.errors import EncodingError
from qconv.quantizers.rounding.feedback import column_order, factorize
from qconv.quantizers.rounding.group_rounding import FRACTIONS, Grid, round_groups, round_with_feedback

Doubles = NDArray[np.float64]
SYMMETRIC, ASYMMETRIC = Grid(4, 32, True, 1), Grid(4, 32, False, 1)


def layer(outputs: int = 24, inputs: int = 128, seed: int = 3) -> tuple[NDArray[np.float32], Doubles]:
    """Weights, and the second moment of inputs that go together and differ in size."""
    rng = np.random.default_rng(seed)
    weights = (rng.standard_t(5, (outputs, inputs)) * 0.1).astype(np.float32)
    x = rng.normal(size=(600, inputs)) @ (np.eye(inputs) + 0.3 * rng.normal(size=(inputs, inputs)) / 8)
    x *= np.exp(0.7 * rng.normal(size=inputs))
    return weights, x.T @ x / len(x)


def scale_of(weights: Doubles, importance: Doubles, grid: Grid) -> tuple[float, int]:
    """Return the best scale and zero point of one output's group."""
    found = []
    for fraction in FRACTIONS:
        low, high = min(0.0, weights.min()) * fraction, max(0.0, weights.max()) * fraction
        if grid.symmetric:
            high = max(-low, high)
            low = -high
        scale = float(np.float16((high - low) / 15))
        zero = 8 if grid.symmetric else int(np.clip(np.rint(-low / scale), grid.lowest_zero, 15))
        values = (np.clip(np.rint(weights / scale) + zero, 0, 15) - zero) * scale
        found.append((float((importance * (values - weights) ** 2).sum()), scale, zero))
    return min(found, key=lambda it: it[0])[1:]


def straightforward(
    weights: NDArray[np.float32], moment: Doubles, grid: Grid, order: NDArray[np.intp], static: bool
) -> Doubles:
    """GPTQ as its paper states it: by the Cholesky factor of the inverse."""
    inputs, size = len(moment), grid.group_size
    damped = moment[np.ix_(order, order)] + 0.03 * np.eye(inputs) * moment.diagonal().mean()
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    counts = 1 / upper.diagonal() ** 2
    left = weights.astype(np.float64)[:, order]
    own = np.empty(inputs)
    own[order] = counts
    values = np.zeros_like(left)
    for row in range(len(left)):
        for c in range(inputs):
            if static:
                group = order[c] // size * size
                columns = slice(group, group + size)
                scale, zero = scale_of(weights[row, columns].astype(np.float64), own[columns], grid)
            elif c % size == 0:
                scale, zero = scale_of(left[row, c : c + size], counts[c : c + size], grid)
            values[row, c] = (np.clip(np.rint(left[row, c] / scale) + zero, 0, 15) - zero) * scale
            left[row, c:] -= (left[row, c] - values[row, c]) / upper[c, c] * upper[c, c:]
    found = np.empty_like(values)
    found[:, order] = values
    return found


@pytest.mark.parametrize("grid", [SYMMETRIC, ASYMMETRIC], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize(("ordered", "static"), [(False, False), (True, False), (True, True)])
def test_feedback_is_gptq(grid: Grid, ordered: bool, static: bool) -> None:
    weights, moment = layer(outputs=6)
    order = column_order(moment) if ordered else np.arange(len(moment))
    found = round_with_feedback(weights, factorize(moment, order=order), grid, static=static)
    expected = straightforward(weights, moment, grid, order, static)
    same = np.isclose(found.weights, expected, atol=1e-6)
    assert same.mean() > 0.995  # a tie that float32 breaks otherwise changes what follows
    if static or not ordered:
        np.testing.assert_array_equal(found.groups, np.arange(128) // 32)
    else:
        np.testing.assert_array_equal(found.groups[order], np.arange(128) // 32)


@pytest.mark.parametrize("grid", [SYMMETRIC, ASYMMETRIC], ids=["symmetric", "asymmetric"])
def test_feedback_and_second_moments_lose_less(grid: Grid) -> None:
    weights, moment = layer(outputs=64)

    def loss(values: NDArray[np.float32]) -> float:
        return float(np.einsum("ij,ij->", (values - weights) @ moment, values - weights))

    blocks = np.stack([moment[s : s + 32, s : s + 32] for s in range(0, 128, 32)]).astype(np.float32)
    plain = loss(round_groups(weights, grid).weights)
    by_moments = loss(round_groups(weights, grid, moments=blocks).weights)
    fed = loss(round_with_feedback(weights, factorize(moment), grid).weights)
    ordered = loss(round_with_feedback(weights, factorize(moment, order=column_order(moment)), grid).weights)
    assert by_moments < 0.95 * plain
    assert fed < 0.8 * plain
    assert ordered < 0.8 * plain


def test_a_search_beats_the_whole_range() -> None:
    weights, _ = layer(outputs=64)
    rounded = round_groups(weights, ASYMMETRIC)
    whole = np.zeros_like(weights)
    for start in range(0, 128, 32):
        part = weights[:, start : start + 32]
        low, high = np.minimum(part.min(1), 0)[:, None], np.maximum(part.max(1), 0)[:, None]
        scale = (high - low) / 15
        zero = np.rint(-low / scale)
        whole[:, start : start + 32] = (np.clip(np.rint(part / scale) + zero, 0, 15) - zero) * scale
    assert ((rounded.weights - weights) ** 2).sum() < 0.97 * ((whole - weights) ** 2).sum()


@pytest.mark.parametrize("grid", [SYMMETRIC, ASYMMETRIC, Grid(4, -1), Grid(4, 128, True), Grid(3, 64)])
def test_codes_and_zero_points_are_in_range(grid: Grid) -> None:
    weights, moment = layer()
    weights[:, :32] = np.abs(weights[:, :32])  # a group without negative weights, whose zero point would be 0
    weights[:, 32:64] = -np.abs(weights[:, 32:64])
    for rounded in (round_groups(weights, grid), round_with_feedback(weights, factorize(moment), grid)):
        assert rounded.codes.max() <= grid.top
        assert rounded.zeros.min() >= grid.lowest_zero
        assert rounded.zeros.max() <= grid.top
        assert rounded.scales.shape == (24, 128 // grid.size(128))
        if grid.symmetric:
            assert (rounded.zeros == 8).all()
        assert np.abs(rounded.weights - weights).mean() < 0.05


@pytest.mark.parametrize("size", [1e-9, 1e-4, 100.0])
def test_weights_of_any_size(size: float) -> None:
    weights = layer()[0] * np.float32(size)
    weights[3] = 0
    rounded = round_groups(weights, ASYMMETRIC)
    assert (rounded.scales > 0).all()
    assert (rounded.weights[3] == 0).all()
    assert (rounded.scales[3] == 1).all()
    assert np.abs(rounded.weights - weights).max() <= max(0.15 * np.abs(weights).max(), 2.0**-24)


def test_groups_wider_than_a_step() -> None:
    weights, moment = layer(outputs=16, inputs=640)
    order = column_order(moment)
    for size, places in ((320, order), (-1, order), (640, None)):
        rounded = round_with_feedback(weights, factorize(moment, order=places), Grid(4, size))
        plain = round_groups(weights, Grid(4, size))
        costs = [np.einsum("ij,ij->", (it.weights - weights) @ moment, it.weights - weights) for it in (rounded, plain)]
        assert costs[0] < costs[1]


def test_rows_know_nothing_of_each_other() -> None:
    weights, moment = layer(outputs=64)
    factor = factorize(moment)
    whole = round_with_feedback(weights, factor, SYMMETRIC)
    part = round_with_feedback(weights[32:], factor, SYMMETRIC)
    assert (whole.codes[32:] == part.codes).mean() > 0.999  # BLAS may add up in another order


def test_what_cannot_be_rounded() -> None:
    weights, _ = layer()
    with pytest.raises(EncodingError, match="groups of 48 weights do not fill rows of 128"):
        round_groups(weights, Grid(4, 48))
    with pytest.raises(EncodingError, match="more than float16"):
        round_groups(weights * np.float32(1e8), ASYMMETRIC)
    weights[0, 0] = np.nan
    with pytest.raises(EncodingError, match="not finite"):
        round_groups(weights, ASYMMETRIC)
