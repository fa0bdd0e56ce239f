"""The statistics block, against sums written out token by token in Python's own floats."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest

from qconv.runtime.measuring.divergence import (
    Compared,
    compare,
    compare_logits,
    compare_top,
    log_probabilities,
    summarise,
)
from qconv.runtime.measuring.losses import estimate, mean, token_losses

RNG = np.random.default_rng(5)
POSITIONS, VOCABULARY = 150, 37
BASE = RNG.normal(0, 4, (POSITIONS, VOCABULARY)).astype(np.float32)
LOGITS = (BASE + RNG.normal(0, 0.3, BASE.shape)).astype(np.float32)
TARGETS = RNG.integers(0, VOCABULARY, POSITIONS)


def log_softmax(row: Any) -> list[float]:
    values = [float(x) for x in row]
    top = max(values)
    normaliser = top + math.log(math.fsum(math.exp(x - top) for x in values))
    return [x - normaliser for x in values]


def divergence(p: list[float], q: list[float], lowest: float) -> float:
    return math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True) if a > lowest)


def test_losses_and_perplexity() -> None:
    expected = [-log_softmax(row)[target] for row, target in zip(LOGITS, TARGETS, strict=True)]
    losses = token_losses(LOGITS, TARGETS)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    found = estimate(losses)
    n, average = len(expected), statistics.fmean(expected)
    spread = math.sqrt((statistics.fmean(x * x for x in expected) - average**2) / (n - 1))
    assert found.value == pytest.approx(math.exp(average), rel=1e-5)
    assert found.error == pytest.approx(math.exp(average) * spread, rel=1e-4)
    assert found.tokens == n


@pytest.mark.parametrize("lowest", [-16.0, -6.0])
def test_five_numbers_per_position(lowest: float) -> None:
    base = log_probabilities(BASE)
    found = compare(base, LOGITS, TARGETS, lowest)
    for i in range(POSITIONS):
        p, q, target = log_softmax(BASE[i]), log_softmax(LOGITS[i]), TARGETS[i]
        assert found.loss[i] == pytest.approx(-q[target], rel=1e-5)
        assert found.base_loss[i] == pytest.approx(-p[target], rel=1e-5)
        assert found.divergence[i] == pytest.approx(divergence(p, q, lowest), abs=2e-6)
        assert found.change[i] == pytest.approx(math.exp(q[target]) - math.exp(p[target]), abs=1e-6)
        assert found.same_top[i] == (p.index(max(p)) == q.index(max(q)))


def test_live_base_counts_every_token() -> None:
    found = compare_logits(BASE * 8, LOGITS * 8, TARGETS)
    for i in range(POSITIONS):
        p, q = log_softmax(BASE[i] * np.float32(8)), log_softmax(LOGITS[i] * np.float32(8))
        assert found.divergence[i] == pytest.approx(divergence(p, q, -math.inf), abs=2e-5)
    assert compare_logits(BASE, BASE, TARGETS).divergence == pytest.approx(0, abs=1e-6)


def test_a_token_without_any_probability_is_no_nan() -> None:
    base, logits = BASE[:1].copy(), LOGITS[:1].copy()
    base[0, 3] = logits[0, 3] = -np.inf
    found = compare_logits(base, logits, np.array([0]))
    p, q = log_softmax(np.delete(BASE[0], 3)), log_softmax(np.delete(LOGITS[0], 3))
    assert found.divergence[0] == pytest.approx(divergence(p, q, -math.inf), abs=2e-6)


@pytest.mark.parametrize("kept", [1, 5, VOCABULARY])
def test_top_tokens_and_one_symbol_for_the_rest(kept: int) -> None:
    order = np.argsort(-BASE, axis=1, kind="stable")[:, :kept]
    base = log_probabilities(BASE)
    tails, expected = [], []
    for i in range(POSITIONS):
        p, q, top = log_softmax(BASE[i]), log_softmax(LOGITS[i]), set(order[i].tolist())
        p_rest, q_rest = (math.fsum(math.exp(x) for k, x in enumerate(v) if k not in top) for v in (p, q))
        value = math.fsum(math.exp(p[k]) * (p[k] - q[k]) for k in top)
        expected.append(value + (p_rest * math.log(p_rest / q_rest) if p_rest else 0))
        tails.append(math.log(p_rest) if p_rest else -math.inf)
    index = np.arange(POSITIONS)
    found = compare_top(
        order,
        np.take_along_axis(base, order, axis=1),
        np.array(tails, np.float32),
        base[index, TARGETS],
        LOGITS,
        TARGETS,
    )
    whole = compare(base, LOGITS, TARGETS, -math.inf)
    np.testing.assert_allclose(found.divergence, expected, atol=2e-6)
    assert (found.divergence <= whole.divergence + 2e-6).all()
    np.testing.assert_allclose(found.loss, whole.loss, rtol=1e-6)
    np.testing.assert_allclose(found.change, whole.change, atol=1e-6)
    assert (found.same_top == whole.same_top).all()


def straightforward(found: Compared) -> dict[str, float]:
    """The block by its definitions, with Python's floats."""
    n = len(found.loss)
    q, p = found.loss.tolist(), found.base_loss.tolist()
    average = statistics.fmean

    def error(values: list[float]) -> float:
        return math.sqrt((average(x * x for x in values) - average(values) ** 2) / (n - 1))

    covariance = (average(a * b for a, b in zip(q, p, strict=True)) - average(q) * average(p)) / (n - 1)
    ratio = average(q) - average(p)
    ratio_error = math.sqrt(error(q) ** 2 + error(p) ** 2 - 2 * covariance)
    ppl, base = math.exp(average(q)), math.exp(average(p))
    u, v = ppl * error(q), base * error(p)
    squares = [x * x for x in found.change.tolist()]
    rms = math.sqrt(average(squares))
    share = average(map(float, found.same_top.tolist()))
    return {
        "ppl": ppl,
        "ppl error": u,
        "base": base,
        "base error": v,
        "correlation": covariance / (error(q) * error(p)),
        "log ratio": ratio,
        "log ratio error": ratio_error,
        "ratio": math.exp(ratio),
        "ratio error": math.exp(ratio) * ratio_error,
        "difference": ppl - base,
        "difference error": math.sqrt(u * u + v * v - 2 * ppl * base * covariance),
        "divergence": average(found.divergence.tolist()),
        "divergence error": error(found.divergence.tolist()),
        "change": average(found.change.tolist()),
        "change error": error(found.change.tolist()),
        "rms": rms,
        "rms error": 0.5 / rms * error(squares),
        "same": share,
        "same error": math.sqrt(share * (1 - share) / (n - 1)),
    }


def test_summary() -> None:
    found = compare(log_probabilities(BASE), LOGITS, TARGETS)
    got = summarise(found)
    values = {
        "ppl": got.perplexity.value,
        "ppl error": got.perplexity.error,
        "base": got.base_perplexity.value,
        "base error": got.base_perplexity.error,
        "correlation": got.correlation,
        "log ratio": got.log_ratio.value,
        "log ratio error": got.log_ratio.error,
        "ratio": got.ratio.value,
        "ratio error": got.ratio.error,
        "difference": got.difference.value,
        "difference error": got.difference.error,
        "divergence": got.divergence.value,
        "divergence error": got.divergence.error,
        "change": got.change.value,
        "change error": got.change.error,
        "rms": got.change_rms.value,
        "rms error": got.change_rms.error,
        "same": got.same_top.value,
        "same error": got.same_top.error,
    }
    assert values == pytest.approx(straightforward(found), rel=1e-6)
    assert got.positions == POSITIONS


@pytest.mark.parametrize("count", [150, 101])
def test_percentiles_interpolate_between_sorted_values(count: int) -> None:
    found = compare(log_probabilities(BASE), LOGITS, TARGETS)
    part = Compared(*(getattr(found, name)[:count] for name in Compared.__dataclass_fields__))
    got = summarise(part)
    for name, percentiles in (("divergence", got.divergence_percentiles), ("change", got.change_percentiles)):
        values = sorted(getattr(part, name).tolist())
        assert percentiles[1.0] == values[-1]
        assert percentiles[0.0] == values[0]
        assert percentiles[0.5] == pytest.approx(statistics.median(values))
        for share, value in percentiles.items():
            where = share * (count - 1)
            low = min(int(where), count - 2)
            assert value == pytest.approx(values[low] + (where - low) * (values[low + 1] - values[low]))
    assert list(got.divergence_percentiles) == [1, 0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001, 0]
    assert list(got.change_percentiles) == [1, 0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001, 0]
    assert list(got.to_dict()["change_percentiles"])[:3] == ["100", "99.9", "99"]  # type: ignore[call-overload]  # plain data


def test_few_or_equal_observations_have_no_error() -> None:
    assert mean(np.arange(10.0), 11).error == 0
    assert mean(np.arange(11.0), 11).error > 0
    assert mean(np.full(50, 2.5)).error == 0
    same = summarise(compare_logits(BASE[:10], BASE[:10], TARGETS[:10]))
    assert (same.correlation, same.same_top.value, same.same_top.error) == (0, 1, 0)
    assert same.ratio.value == pytest.approx(1, abs=1e-6)
