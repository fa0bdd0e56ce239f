"""Sampling: the distribution by its definition, and draws that follow it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qconv.errors import UsageError
from qconv.runtime.generating.sampling import GREEDY, Sampling, distribution, sample

LOGITS = np.array([0.5, 2.0, -1.0, 1.0, 2.0, -40.0], np.float32)


def by_definition(logits: NDArray[np.float32], sampling: Sampling) -> dict[int, float]:
    """The distribution, token by token in plain Python."""
    order = sorted(range(len(logits)), key=lambda token: (-float(logits[token]), token))
    order = order[: sampling.top_k or None]
    weights = [np.exp(float(logits[token]) - float(logits[order[0]])) for token in order]
    kept, reached = [], 0.0
    for token, weight in zip(order, weights, strict=True):
        kept.append(token)
        reached += weight / sum(weights)
        if reached >= sampling.top_p and sampling.top_p < 1:
            break
    hot = [np.exp((float(logits[token]) - float(logits[order[0]])) / sampling.temperature) for token in kept]
    return {token: weight / sum(hot) for token, weight in zip(kept, hot, strict=True)}


@pytest.mark.parametrize(
    ("sampling", "tokens"),
    [
        (Sampling(1.0, 0, 1.0), [1, 4, 3, 0, 2, 5]),
        (Sampling(0.5, 3, 1.0), [1, 4, 3]),
        (Sampling(2.0, 0, 0.6), [1, 4]),
        (Sampling(2.0, 0, 0.3), [1]),
        (Sampling(0.7, 3, 0.9), [1, 4, 3]),
        (Sampling(0.7, 1, 1.0), [1]),
        (GREEDY, [1]),
    ],
)
def test_what_is_kept(sampling: Sampling, tokens: list[int]) -> None:
    found, shares = distribution(LOGITS, sampling)
    assert found.tolist() == tokens
    assert shares.sum() == pytest.approx(1)


@given(
    st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40),
    st.floats(0.05, 5),
    st.integers(0, 45),
    st.floats(0.01, 0.99),
)
def test_the_distribution_is_that_of_the_definition(
    logits: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    values, sampling = np.array(logits, np.float32), Sampling(temperature, top_k, top_p)
    tokens, shares = distribution(values, sampling)
    wanted = by_definition(values, sampling)
    # where a prefix reaches top-p to the last digit, either side of it is right
    assert abs(len(tokens) - len(wanted)) <= 1
    if len(tokens) == len(wanted):
        assert dict(zip(tokens.tolist(), shares.tolist(), strict=True)) == pytest.approx(wanted)


@pytest.mark.parametrize("sampling", [Sampling(1.0, 0, 1.0), Sampling(0.6, 4, 0.97), Sampling(3.0, 5, 1.0)])
def test_draws_follow_the_distribution(sampling: Sampling) -> None:
    count, random = 20_000, np.random.default_rng(7)
    drawn = np.bincount([sample(LOGITS, sampling, random) for _ in range(count)], minlength=len(LOGITS))
    wanted = by_definition(LOGITS, sampling)
    for token in range(len(LOGITS)):
        share = wanted.get(token, 0.0)
        if share == 0:
            assert drawn[token] == 0
        assert abs(drawn[token] - share * count) <= 4.5 * np.sqrt(count * share * (1 - share)) + 1


def test_a_seed_repeats_itself_and_another_does_not() -> None:
    sampling = Sampling(1.5, 0, 1.0)

    def draw(seed: int) -> list[int]:
        random = np.random.default_rng(seed)
        return [sample(LOGITS, sampling, random) for _ in range(40)]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_a_tiny_temperature_is_greedy() -> None:
    logits = np.array([3.0, 88.0, 87.9], np.float32)
    tokens, shares = distribution(logits, Sampling(1e-310, 0, 1.0))
    assert (tokens.tolist(), shares.tolist()) == ([1, 2, 0], [1, 0, 0])
    assert sample(logits, Sampling(1e-310, 0, 1.0), np.random.default_rng(0)) == 1


@pytest.mark.parametrize(
    "numbers",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": float("nan")},
    ],
)
def test_numbers_without_a_meaning(numbers: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Sampling(**numbers)
