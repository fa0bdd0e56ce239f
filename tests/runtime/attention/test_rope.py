"""Rotary positions beside their definition, one pair at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest

from qconv.runtime.attention.rope import rope_frequencies, rope_table, rotate
from qconv.runtime.attention.rope_settings import RopeSettings

PLAIN = RopeSettings("neox", 8, 10000.0)


@pytest.mark.parametrize("order", ["neox", "interleaved"])
@pytest.mark.parametrize("rotated", [8, 12])
def test_each_pair_turns_by_its_angle(order: Literal["neox", "interleaved"], rotated: int) -> None:
    settings = RopeSettings(order, rotated, 100.0, factor=2.0, attention_factor=1.5)
    values = np.random.default_rng(0).standard_normal((5, 3, 12), np.float32)
    positions = np.array([0, 1, 7, 100, 1000])
    out = np.empty((3, 5, 12), np.float32)
    rotate(values, rope_table(settings, positions), settings, out)
    for head in range(3):
        for row, position in enumerate(positions):
            wanted = values[row, head].astype(np.float64)
            for pair in range(rotated // 2):
                one, other = (2 * pair, 2 * pair + 1) if order == "interleaved" else (pair, pair + rotated // 2)
                angle = position * 100.0 ** (-2 * pair / rotated) / 2.0
                a, b = float(values[row, head, one]), float(values[row, head, other])
                wanted[one] = 1.5 * (a * math.cos(angle) - b * math.sin(angle))
                wanted[other] = 1.5 * (a * math.sin(angle) + b * math.cos(angle))
            assert np.abs(out[head, row] - wanted).max() < 2e-6


def test_products_depend_on_the_distance_alone() -> None:
    query, key = np.random.default_rng(1).standard_normal((2, 1, 1, 8), np.float32)
    found = []
    for start in (0, 3, 500):
        turned = []
        for values, position in ((query, start + 5), (key, start)):
            out = np.empty((1, 1, 8), np.float32)
            rotate(values, rope_table(PLAIN, np.array([position])), PLAIN, out)
            turned.append(out[0, 0])
        found.append(float(turned[0] @ turned[1]))
    assert np.ptp(found) < 1e-5
    assert abs(found[0] - float(query[0, 0] @ key[0, 0])) > 1e-3


def test_divisors_divide_each_frequency() -> None:
    divisors = np.array([1.0, 2.0, 4.0, 8.0], np.float32)
    wanted = rope_frequencies(PLAIN) / [1, 2, 4, 8]
    assert np.allclose(rope_frequencies(PLAIN, divisors), wanted, rtol=1e-12)


def test_yarn_keeps_high_frequencies_divides_low_ones_and_ramps_between() -> None:
    settings = RopeSettings("neox", 64, 10000.0, factor=4.0, yarn=True, original_context=4096)
    ratio = rope_frequencies(settings) / rope_frequencies(replace(settings, yarn=False, factor=1.0))
    assert ratio[0] == 1.0
    assert ratio[-1] == 0.25
    assert (np.diff(ratio) <= 0).all()
    turns = 4096 * rope_frequencies(replace(settings, yarn=False, factor=1.0)) / (2 * math.pi)
    assert (ratio[turns > 40] == 1.0).all()
    assert (ratio[turns < 0.5] == 0.25).all()
    assert ((ratio > 0.25) & (ratio < 1.0)).sum() > 5
    table = rope_table(settings, np.array([3]))
    assert np.allclose(np.abs(table), 1 + 0.1 * math.log(4), rtol=1e-6)
