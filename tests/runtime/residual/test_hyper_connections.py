"""Residual streams that are mixed: their shares, what is read of them, and how they go on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_networks import in_memory, logits, network, tokens

from qconv.errors import ModelError
from qconv.formats.metadata import float32
from qconv.runtime.building.configuration import StreamMixing
from qconv.runtime.building.network import load_network
from qconv.runtime.hooks import ProductInput
from qconv.runtime.residual.hyper_connections import even_shares, join_streams, repeat_streams, spread_result
from qconv.runtime.stages import OUTPUT, embed_batch, network_stages, run_stage, stage_inputs
from qconv.runtime.workers import Workers


def test_shares_add_up_to_one_from_either_side() -> None:
    scores = np.random.default_rng(0).standard_normal((50, 4, 4)).astype(np.float32)
    shares = even_shares(scores * np.float32(0.5), StreamMixing(20, 1e-6))
    assert (shares > 0).all()
    for axis in (1, 2):
        assert np.abs(shares.sum(axis=axis) - 1).max() < 1e-4
    once = even_shares(np.zeros((1, 3, 3), np.float32), StreamMixing(1, 0.5))
    assert once == pytest.approx((1 / 3 + 0.5) / (3 * (1 / 3 + 0.5) + 0.5), rel=1e-6)


def test_streams_go_on_as_mixtures_with_a_share_of_the_result() -> None:
    rng = np.random.default_rng(1)
    rows, count, hidden = 5, 4, 6
    streams = rng.standard_normal((rows, count * hidden)).astype(np.float32)
    result = rng.standard_normal((rows, hidden)).astype(np.float32)
    writing = rng.random((rows, count)).astype(np.float32)
    passing = rng.random((rows, count, count)).astype(np.float32)
    before = streams.reshape(rows, count, hidden).copy()
    spread_result(result, writing, passing, streams)
    for row in range(rows):
        for target in range(count):
            wanted = writing[row, target] * result[row]
            for source in range(count):
                wanted = wanted + passing[row, source, target] * before[row, source]
            found = streams[row, target * hidden : (target + 1) * hidden]
            assert np.abs(found - wanted).max() < 1e-5


def test_streams_begin_alike_and_end_as_their_mean() -> None:
    configuration = network("glm5-next").configuration
    hidden = np.random.default_rng(2).standard_normal((3, configuration.hidden)).astype(np.float32)
    streams = repeat_streams(configuration, hidden)
    assert streams.shape == (3, 4 * configuration.hidden)
    assert repeat_streams(configuration, streams) is streams
    assert np.abs(join_streams(configuration, streams) - hidden).max() < 1e-6


def test_stages_carry_the_streams() -> None:
    """A pass stage by stage ends where the whole pass does, and every stage tells of the matrix that mixes its streams."""
    whole, text = network("glm5-next"), tokens(20)
    (wanted,) = logits(whole, text)
    outputs: list[NDArray[np.float32]] = []

    def collect(found: ProductInput) -> None:
        if found.names == (whole.output.matrix.name,):
            outputs.append(found.values.copy())

    with Workers(1) as workers:
        hidden = embed_batch(whole, [text], workers)
        for stage in network_stages(whole):
            run_stage(whole, stage, hidden, [len(text)], workers, collect)
            if stage.part != OUTPUT:
                kind = {"attention": "attn", "feed_forward": "ffn"}[stage.part]
                assert stage.block is not None
                assert stage_inputs(whole, stage)[0].names == (f"blk.{stage.block.index}.hc_{kind}_fn.weight",)
    result = outputs[0] @ whole.output.matrix.decode(slice(0, whole.output.matrix.rows)).T
    assert np.abs(result - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_what_is_no_way_to_mix_streams_is_refused() -> None:
    model = in_memory("glm5-next", Path("tiny"))
    changed = {**model.metadata, "glm5-next.hyper_connection.epsilon": float32(2.0)}
    with pytest.raises(ModelError, match=r"4 residual streams .* with 2\.0 added"):
        load_network(replace(model, metadata=changed))
