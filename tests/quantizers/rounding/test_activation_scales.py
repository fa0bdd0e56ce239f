"""Scales of inputs: what they are, what they cost, and that they pay where a few inputs are much larger than the rest."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from qconv.quantizers.rounding.activation_scales import (
    POWERS,
    best_powers,
    group_moments,
    input_scales,
    output_energies,
    scaled_factor,
    scaling_losses,
    weight_sizes,
)
from qconv.quantizers.rounding.feedback import column_order, factorize
from qconv.quantizers.rounding.group_rounding import Grid, round_groups

GRID = Grid(4, 32)
SQUARES = np.array([1.0, 4.0, 16.0, 64.0], np.float32)
EVEN = np.ones(4, np.float32)


def test_scales_are_powers_of_roots() -> None:
    assert POWERS[0] == (0.0, 0.0)
    np.testing.assert_array_equal(input_scales(SQUARES, SQUARES[::-1], (0.0, 0.0)), EVEN)
    np.testing.assert_allclose(input_scales(SQUARES, EVEN, (1.0, 0.0)), np.array([1, 2, 4, 8]) / np.sqrt(8), rtol=1e-6)
    half = input_scales(SQUARES, SQUARES[::-1].copy(), (0.5, 0.0))
    np.testing.assert_allclose(half[1:] / half[:-1], np.sqrt(2), rtol=1e-6)
    both = input_scales(SQUARES, SQUARES[::-1].copy(), (0.5, 0.5))
    np.testing.assert_allclose(both[1:] / both[:-1], 2, rtol=1e-6)
    assert half.dtype == np.float32


def test_inputs_that_never_came_are_not_divided_by_zero() -> None:
    scales = input_scales(np.array([0, 1, 100], np.float32), np.array([0, 0, 1], np.float32), (0.9, 0.1))
    assert np.isfinite(scales).all()
    assert (scales > 0).all()
    np.testing.assert_array_equal(input_scales(np.zeros(3, np.float32), EVEN[:3], (0.5, 0.0)), np.ones(3))


def test_weights_count_by_what_they_give() -> None:
    """A matrix with large outputs does not choose for one with small ones."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(100, 32)).astype(np.float32)
    moment = x.T @ x
    small, large = rng.normal(size=(2, 8, 32)).astype(np.float32)
    energies = output_energies([small, 100 * large], moment)
    np.testing.assert_allclose(energies[0], np.square(small @ x.T).sum(), rtol=1e-5)
    sizes = weight_sizes([small, 100 * large], energies)
    np.testing.assert_allclose(sizes, weight_sizes([small, large], output_energies([small, large], moment)), rtol=1e-5)
    np.testing.assert_array_equal(weight_sizes([np.zeros((4, 32), np.float32)], [0.0]), np.ones(32))


def test_moments_of_groups_are_those_of_divided_inputs() -> None:
    rng = np.random.default_rng(0)
    x, scales = rng.normal(size=(50, 64)).astype(np.float32), np.exp(rng.normal(size=64)).astype(np.float32)
    divided = x / scales
    expected = divided.T @ divided
    found = group_moments(x.T @ x, 32, scales)
    np.testing.assert_allclose(found[0], expected[:32, :32], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found[1], expected[32:, 32:], rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(group_moments(x.T @ x, 32)[1], (x.T @ x)[32:, 32:])


@pytest.mark.parametrize("ordered", [False, True])
def test_a_scaled_factor_is_that_of_divided_inputs(ordered: bool) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(900, 300)) * np.exp(0.5 * rng.normal(size=300))
    moment = (x.T @ x).astype(np.float32)
    scales = np.exp(0.5 * rng.normal(size=300)).astype(np.float32)
    whole = factorize(moment, 0.01, column_order(moment) if ordered else None)
    found = scaled_factor(whole, scales)
    divided = (moment + whole.damping * np.eye(300)) / np.outer(scales, scales)
    made = (found.unit.astype(np.float64) * found.weights) @ found.unit.T
    np.testing.assert_allclose(made, divided[found.order][:, found.order], rtol=1e-4, atol=1e-5 * divided.max())
    for start, stop in ((0, 256), (256, 300), (40, 72)):
        block = found.unit[start:stop, start:stop].astype(np.float64)
        np.testing.assert_allclose(block @ found.inverse(start, stop), np.eye(stop - start), atol=1e-5)


def test_a_loss_is_that_of_the_outputs() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 64)).astype(np.float32)
    weights = rng.normal(size=(16, 64)).astype(np.float32)
    moment = x.T @ x
    scales = input_scales(moment.diagonal(), np.ones(64, np.float32), (0.5, 0.0))
    rounder = partial(round_groups, grid=GRID)
    values = rounder(weights * scales).weights / scales
    expected = (((values - weights) @ x.T) ** 2).sum() / ((weights @ x.T) ** 2).sum()
    both = [weights, np.zeros_like(weights)]
    found = scaling_losses(both, output_energies(both, moment), moment, scales, rounder)
    assert found == pytest.approx((float(expected), 0.0), rel=1e-3)


def test_scaling_pays_where_inputs_differ() -> None:
    rng = np.random.default_rng(2)
    sizes = np.ones(128)
    sizes[[5, 40, 77, 100]] = 30  # the outliers that language models have
    x = (rng.normal(size=(400, 128)) * sizes).astype(np.float32)
    weights = rng.normal(size=(64, 128)).astype(np.float32)
    moment = x.T @ x
    energies = output_energies([weights], moment)
    columns = weight_sizes([weights], energies)

    def loss(powers: tuple[float, float]) -> float:
        scales = input_scales(moment.diagonal(), columns, powers)
        moments = group_moments(moment, 32, scales)
        rounder = partial(round_groups, grid=GRID, moments=moments)
        return sum(scaling_losses([weights], energies, moment, scales, rounder))

    losses = {it: loss(it) for it in POWERS}
    assert min(losses.values()) < 0.6 * losses[POWERS[0]]


def test_no_matrix_pays_for_another() -> None:
    losses = dict.fromkeys(POWERS, (2.0, 2.0))
    assert best_powers(losses) == POWERS[0]
    losses[POWERS[1]] = (0.1, 2.1)
    assert best_powers(losses) == POWERS[0]
    losses[POWERS[2]] = (1.9, 2.0)
    assert best_powers(losses) == POWERS[2]
