"""Passes in stages, against the pass in one go."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_networks import STANDALONE, UNBOUND, network, tokens

from qconv.errors import ModelError, UsageError
from qconv.runtime.forward import forward
from qconv.runtime.hooks import ProductInput
from qconv.runtime.measuring.hessian import HessianCollector, moment_bytes
from qconv.runtime.stages import embed_batch, network_stages, run_stage, stage_inputs
from qconv.runtime.workers import Workers

SEQUENCES = [tokens(9, seed) for seed in range(3)]


class Record:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[tuple[str, ...], int | None, np.ndarray]] = []

    def __call__(self, found: ProductInput) -> None:
        self.seen.append((found.names, found.expert, found.values.copy()))


@pytest.mark.parametrize("family", STANDALONE)
def test_stages_add_up_to_the_pass(family: str) -> None:
    model, whole, staged = network(family, **UNBOUND.get(family, {})), Record(), Record()
    for _ in forward(model, SEQUENCES, collector=whole):
        pass
    with Workers(2) as workers:
        hidden = embed_batch(model, SEQUENCES, workers)
        for stage in network_stages(model):
            first = len(staged.seen)
            run_stage(model, stage, hidden, [9] * 3, workers, staged)
            told = {(names, values.shape[1], expert is not None) for names, expert, values in staged.seen[first:]}
            planned = stage_inputs(model, stage)
            assert told == {(it.names, it.columns, it.experts is not None) for it in planned}
    assert len(staged.seen) == len(whole.seen)
    for (names, expert, values), (other, chosen, wanted) in zip(staged.seen, whole.seen, strict=True):
        assert (names, expert) == (other, chosen)
        np.testing.assert_array_equal(values, wanted)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "read keys and values of others"),
        ({"num_kv_shared_layers": 0}, "input of its own for each token"),
    ],
)
def test_blocks_that_read_more_than_the_stream_are_refused(config: dict[str, int], words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        network_stages(network("gemma4", **config))
    assert "gemma4" in str(caught.value)
    assert "imatrix" in str(caught.value)


def test_tokens_are_checked() -> None:
    with Workers(1) as workers, pytest.raises(UsageError, match="not among"):
        embed_batch(network("llama"), [[10**6]], workers)


@pytest.mark.parametrize("columns", [1, 5, 512, 1030])
def test_moments_are_the_same_on_any_number_of_threads(columns: int) -> None:
    rows = np.random.default_rng(columns).normal(size=(1500, columns)).astype(np.float32)
    index = np.arange(1500)
    found = []
    for threads in (1, 3):
        with Workers(threads) as workers:
            collector = HessianCollector(bool, skip_first=False, workers=workers)
            collector(ProductInput(("x",), rows, index, index, None))
            moment = collector.moment("x")
            assert moment is not None
            found.append(moment)
    np.testing.assert_array_equal(found[0].total, found[1].total)
    exact = rows.astype(np.float64).T @ rows.astype(np.float64)
    np.testing.assert_allclose(found[0].total, exact, rtol=1e-5, atol=2e-3)
    np.testing.assert_allclose(found[0].mean(), exact / 1500, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[0].diagonal, found[0].total.diagonal())
    assert sum(tile.nbytes for tile in found[0].tiles.values()) == moment_bytes(columns)
