"""The budget solver: never over budget, as good as trying everything on small problems, and quick on large ones."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconv.errors import UsageError
from qconv.quantizers.budget import Options, bounds, solve


def problem(seed: int, tensors: int, options: int) -> list[Options]:
    """Sizes and errors as types have them: each bit halves the error, and some types are better than others."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(tensors):
        bits = np.sort(random.uniform(1.5, 8.5, options))
        weights = int(random.integers(1, 60)) * 1024
        noise = np.exp(0.4 * random.standard_normal(options))
        found.append(Options((weights * bits / 8).astype(np.int64), random.lognormal() * weights * 4.0**-bits * noise))
    return found


def cost(tensors: list[Options], chosen: list[int]) -> tuple[int, float]:
    pairs = list(zip(tensors, chosen, strict=True))
    return sum(int(it.sizes[choice]) for it, choice in pairs), sum(float(it.errors[choice]) for it, choice in pairs)


def best(tensors: list[Options], budget: int) -> float:
    """The lowest error of all combinations."""
    every = product(*(range(len(it.sizes)) for it in tensors))
    return min(error for size, error in (cost(tensors, list(chosen)) for chosen in every) if size <= budget)


@pytest.mark.parametrize("seed", range(40))
def test_close_to_the_best_of_all_combinations(seed: int) -> None:
    tensors = problem(seed, 5, 5)
    least, most = bounds(tensors)
    for share in (0.1, 0.35, 0.7):
        budget = int(least + share * (most - least))
        size, error = cost(tensors, solve(tensors, budget))
        assert size <= budget
        assert error <= 1.001 * best(tensors, budget)


def test_many_tensors_come_close_to_the_bound_of_any_mixture() -> None:
    tensors = problem(5, 300, 12)
    least, most = bounds(tensors)
    budget = least + (most - least) // 2
    size, error = cost(tensors, solve(tensors, budget))
    assert size <= budget
    # for every price of a byte, the cheapest options of all tensors bound the error from below
    prices = np.logspace(-9, 3, 400)
    bound = max(sum(float((it.errors + price * it.sizes).min()) for it in tensors) - price * budget for price in prices)
    assert error <= 1.02 * bound


def test_no_exchange_of_two_is_left() -> None:
    tensors = problem(7, 12, 6)
    least, most = bounds(tensors)
    budget = least + (most - least) // 3
    chosen = solve(tensors, budget)
    size, error = cost(tensors, chosen)
    for one, two in product(range(12), repeat=2):
        for to_one, to_two in product(range(6), repeat=2):
            other = list(chosen)
            other[one], other[two] = to_one, to_two
            found = cost(tensors, other)
            assert found[0] > budget or found[1] >= error * (1 - 1e-9), (size, other)


def test_all_the_bytes_there_are_buy_the_lowest_error() -> None:
    tensors = problem(3, 6, 7)
    _, most = bounds(tensors)
    assert cost(tensors, solve(tensors, most))[1] == pytest.approx(sum(float(it.errors.min()) for it in tensors))


def test_too_few_bytes() -> None:
    tensors = problem(1, 4, 3)
    least, most = bounds(tensors)
    assert cost(tensors, solve(tensors, least))[0] == least
    with pytest.raises(UsageError, match=f"between {least:,} and {most:,}"):
        solve(tensors, least - 1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 10)), min_size=1, max_size=4), min_size=1, max_size=5),
    st.integers(0, 250),
)
def test_any_numbers(rows: list[list[tuple[int, float]]], budget: int) -> None:
    tensors = [
        Options(np.array([size for size, _ in row], np.int64), np.array([error for _, error in row])) for row in rows
    ]
    least, _ = bounds(tensors)
    if budget < least:
        with pytest.raises(UsageError):
            solve(tensors, budget)
        return
    first, again = solve(tensors, budget), solve(tensors, budget)
    assert first == again
    assert cost(tensors, first)[0] <= budget
