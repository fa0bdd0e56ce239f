"""The gated delta rule in chunks against the recurrence position by position."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from qconv.runtime.recurrent.delta_rule import run_delta_rule

Floats = NDArray[np.float32]

HEADS, SIZE, WIDE = 3, 8, 5


def inputs(count: int, forgetting: float) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    rng = np.random.default_rng(count)
    queries, keys = (rng.standard_normal((HEADS, count, SIZE)).astype(np.float32) for _ in range(2))
    keys /= np.linalg.norm(keys, axis=2, keepdims=True)
    values = rng.standard_normal((HEADS, count, WIDE)).astype(np.float32)
    decay = -forgetting * rng.random((HEADS, count)).astype(np.float32)
    return queries, keys, values, decay, rng.random((HEADS, count)).astype(np.float32)


def step_by_step(
    queries: Floats, keys: Floats, values: Floats, decay: Floats, rates: Floats, memory: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The definition, in float64; ``memory`` is changed."""
    out = np.empty(values.shape)
    for head in range(len(values)):
        for at in range(values.shape[1]):
            memory[head] *= np.exp(float(decay[head, at]))
            key = keys[head, at].astype(float)
            missed = values[head, at] - memory[head].T @ key
            memory[head] += np.outer(key, rates[head, at] * missed)
            out[head, at] = memory[head].T @ queries[head, at]
    return out


@pytest.mark.parametrize("count", [1, 7, 8, 9, 40])
@pytest.mark.parametrize("forgetting", [0.0, 0.5, 60.0])
def test_chunks_give_what_steps_give(count: int, forgetting: float) -> None:
    found = inputs(count, forgetting)
    start = np.random.default_rng(0).standard_normal((HEADS, SIZE, WIDE))
    memory, wanted_memory = start.astype(np.float32), start.copy()
    wanted = step_by_step(*found, memory=wanted_memory)
    out = run_delta_rule(*found, memory=memory, chunk=8)
    assert np.abs(out - wanted).max() < 2e-5 * np.abs(wanted).max()
    assert np.abs(memory - wanted_memory).max() < 2e-5 * np.abs(wanted_memory).max()


def test_a_memory_carries_over() -> None:
    found = inputs(150, 0.1)
    whole, parts = np.zeros((HEADS, SIZE, WIDE), np.float32), np.zeros((HEADS, SIZE, WIDE), np.float32)
    q, k, v, decay, rates = found
    at_once = run_delta_rule(*found, memory=whole)
    cuts = (slice(0, 64), slice(64, 65), slice(65, 150))
    in_turn = [run_delta_rule(q[:, cut], k[:, cut], v[:, cut], decay[:, cut], rates[:, cut], parts) for cut in cuts]
    assert np.abs(np.concatenate(in_turn, axis=1) - at_once).max() < 2e-5 * np.abs(at_once).max()
    assert np.abs(parts - whole).max() < 2e-5 * np.abs(whole).max()
