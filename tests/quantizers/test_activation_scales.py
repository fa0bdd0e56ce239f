"""Scales of inputs: what they are, and that they pay where a few inputs are much larger than the rest."""

from __future__ import annotations

import numpy as np
import pytest

from qconv.quantizers.activation_scales import EXPONENTS, group_moments, input_scales, scaled_moment, scaling_loss
from qconv.quantizers.group_rounding import Grid, round_groups

GRID = Grid(4, 32)


def test_scales_are_powers_of_root_mean_squares() -> None:
    diagonal = np.array([1.0, 4.0, 16.0, 64.0], np.float32)
    np.testing.assert_array_equal(input_scales(diagonal, 0.0), np.ones(4))
    np.testing.assert_allclose(input_scales(diagonal, 1.0), np.array([1, 2, 4, 8]) / np.sqrt(8), rtol=1e-6)
    half = input_scales(np.diag(diagonal), 0.5)
    np.testing.assert_allclose(half[1:] / half[:-1], np.sqrt(2), rtol=1e-6)
    assert half.dtype == np.float32


def test_inputs_that_never_came_are_not_divided_by_zero() -> None:
    scales = input_scales(np.array([0, 1, 100], np.float32), 0.95)
    assert np.isfinite(scales).all()
    assert (scales > 0).all()
    np.testing.assert_array_equal(input_scales(np.zeros(3, np.float32), 0.5), np.ones(3))


def test_a_scaled_moment_is_that_of_divided_inputs() -> None:
    rng = np.random.default_rng(0)
    x, scales = rng.normal(size=(50, 64)).astype(np.float32), np.exp(rng.normal(size=64)).astype(np.float32)
    divided = x / scales
    np.testing.assert_allclose(scaled_moment(x.T @ x, scales), divided.T @ divided, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(group_moments(x.T @ x, 32)[1], (x.T @ x)[32:, 32:])


def test_a_loss_is_that_of_the_outputs() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 64)).astype(np.float32)
    weights = rng.normal(size=(16, 64)).astype(np.float32)
    moment = x.T @ x
    scales = input_scales(moment, 0.5)
    values = round_groups(weights * scales, GRID, (moment.diagonal() / scales**2).astype(np.float32)).weights / scales
    expected = (((values - weights) @ x.T) ** 2).sum()
    assert scaling_loss([weights], moment, GRID, scales) == pytest.approx(float(expected), rel=1e-3)


def test_scaling_pays_where_inputs_differ() -> None:
    rng = np.random.default_rng(2)
    sizes = np.ones(128)
    sizes[[5, 40, 77, 100]] = 30  # the outliers that language models have
    x = (rng.normal(size=(400, 128)) * sizes).astype(np.float32)
    weights = rng.normal(size=(64, 128)).astype(np.float32)
    moment = x.T @ x
    losses = {it: scaling_loss([weights], moment, GRID, input_scales(moment, it)) for it in EXPONENTS}
    assert min(losses.values()) < 0.6 * losses[0.0]
