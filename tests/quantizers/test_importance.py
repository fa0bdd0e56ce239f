"""Importance vectors: llama.cpp's quotient with ``compat``; shrinkage, floor and root without."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconv.errors import EncodingError, UsageError
from qconv.quantizers.importance import FLOOR, PRIOR_COUNT, ImportanceEntry, ImportanceMatrix, merge

NAME = "blk.0.ffn_down_exps.weight"


def matrix(sums: object, counts: object, compat: bool = False, name: str = NAME) -> ImportanceMatrix:
    """A matrix of one entry."""
    entry = ImportanceEntry(np.asarray(sums, np.float32), np.asarray(counts, np.float64))
    return ImportanceMatrix(MappingProxyType({name: entry}), compat=compat)


def test_compat_is_sum_by_count_and_ones_without_data() -> None:
    m = matrix([[2, 4, 6, 0], [0, 0, 0, 0]], [2, 0], compat=True)
    assert m.vector(NAME, 4, 0, 2).tolist() == [1, 2, 3, 0]
    assert m.vector(NAME, 4, 1, 2).tolist() == [1, 1, 1, 1]
    assert m.vector(NAME, 4, 0, 2).dtype == np.float32


def test_compat_takes_older_files_with_one_count_for_all_experts() -> None:
    flat = matrix([[2, 4, 6, 8]], [2], compat=True)
    assert flat.vector(NAME, 2, 0, 2).tolist() == [1, 2]
    assert flat.vector(NAME, 2, 1, 2).tolist() == [3, 4]


def test_a_legacy_expert_of_ones_has_no_data() -> None:
    flat = matrix([[6, 2, 2**20, 2**20]], [2**20])
    assert flat.vector(NAME, 2, 1, 2) ** 2 == pytest.approx([1.5, 0.5], rel=1e-3)


def test_few_observations_lean_on_the_mean_over_experts() -> None:
    rng = np.random.default_rng(1)
    truth = rng.gamma(2.0, size=(8, 256))
    counts = np.array([969, 16, 178, 574, 314, 8, 798, 1239], np.float64)
    sums = np.stack([rng.gamma(n / 4, 4 * t) for n, t in zip(counts, truth, strict=True)])
    m = matrix(sums, counts)
    pooled = sums.sum(0) / counts.sum()
    few, many = m.vector(NAME, 256, 5, 8) ** 2, m.vector(NAME, 256, 7, 8) ** 2
    assert np.corrcoef(few, pooled)[0, 1] > np.corrcoef(few, sums[5])[0, 1]
    assert np.corrcoef(many, sums[7])[0, 1] > 0.99
    # with as many of its own as the prior counts for, an expert stands half way
    half = matrix([[PRIOR_COUNT * 2, 0], [1e6 * 1, 1e6 * 1]], [PRIOR_COUNT, 1e6])
    assert half.vector(NAME, 2, 0, 2) ** 2 == pytest.approx([1.5, 0.5], rel=1e-3)


def test_an_expert_without_data_gets_the_mean_over_experts() -> None:
    m = matrix([[3e6, 1e6], [0, 0]], [1e6, 0])
    assert m.vector(NAME, 2, 1, 2) ** 2 == pytest.approx([1.5, 0.5], rel=1e-3)


def test_no_column_is_without_weight() -> None:
    dead = matrix([[0] * 63 + [1e9]], [1e9]).vector(NAME, 64)
    assert dead.min() == pytest.approx(FLOOR**0.5)
    assert dead.max() == pytest.approx(8, rel=1e-3)
    assert matrix([[0, 0]], [5]).vector(NAME, 2).tolist() == [1, 1]
    assert matrix([[0, 0]], [0]).vector(NAME, 2).tolist() == [1, 1]


@settings(max_examples=500)
@given(
    st.lists(st.lists(st.floats(0, 2.0**120, width=32), min_size=4, max_size=4), min_size=1, max_size=5),
    st.lists(st.integers(0, 10**9), min_size=5, max_size=5),
)
def test_vectors_are_finite_and_positive(sums: list[list[float]], counts: list[int]) -> None:
    m = matrix(sums, counts[: len(sums)])
    for expert in range(len(sums)):
        vector = m.vector(NAME, 4, expert, len(sums))
        assert np.isfinite(vector).all()
        assert (vector >= np.sqrt(np.float32(FLOOR))).all()


def test_sizes_must_agree() -> None:
    m = matrix(np.ones((2, 4)), [1, 1])
    for columns, experts in ((4, 1), (8, 1), (2, 4), (4, 3)):
        with pytest.raises(EncodingError, match=r"ffn_down_exps\.weight.*2 x 4.*made for this model"):
            m.vector(NAME, columns, 0, experts)
    with pytest.raises(EncodingError, match="no entry"):
        m.vector("blk.1.attn_q.weight", 4)


@pytest.mark.parametrize(
    ("sums", "counts", "words"),
    [
        ([[1, np.nan]], [1], "sums that are not finite"),
        ([[1, np.inf]], [1], "sums that are not finite"),
        ([[1, -1]], [1], "negative sums"),
        ([[1, 1]], [np.nan], "counts that are not finite"),
        ([[1, 1]], [-1], "negative counts"),
        ([[1, 1]], [0.5], "counts between 0 and 1"),
        ([[1, 1]], [1, 1], "shape"),
        ([1, 1], [1, 1], "shape"),
    ],
)
def test_unusable_entries_name_their_tensor(sums: object, counts: object, words: str) -> None:
    with pytest.raises(EncodingError, match=rf"ffn_down_exps\.weight.*{words}"):
        matrix(sums, counts)


def test_filters() -> None:
    entry = ImportanceEntry(np.ones((1, 2), np.float32), np.ones(1))
    m = ImportanceMatrix({"blk.0.attn_q.weight": entry, "blk.0.ffn_up.weight": entry, "blk.1.attn_q.weight": entry})
    assert set(m.filtered(["attn_q"]).entries) == {"blk.0.attn_q.weight", "blk.1.attn_q.weight"}
    assert set(m.filtered(exclude=["blk.0", "zzz"]).entries) == {"blk.1.attn_q.weight"}
    assert set(m.filtered().entries) == set(m.entries)
    with pytest.raises(UsageError):
        m.filtered(["a"], ["b"])
    with pytest.raises(UsageError, match="no entry"):
        m.filtered(["zzz"])


def test_merge_weights_by_count() -> None:
    a = ImportanceMatrix({"a": ImportanceEntry(np.array([[4, 0]], np.float32), np.array([2.0]))}, ("x",), 3, 512)
    b = ImportanceMatrix({"a": ImportanceEntry(np.array([[0, 9]], np.float32), np.array([1.0]))}, ("y", "x"), 2, 256)
    both = merge([a, b])
    assert both.entries["a"].sums.tolist() == [[4, 9]]
    assert both.entries["a"].counts.tolist() == [3]
    assert (both.datasets, both.chunk_count, both.chunk_size) == (("x", "y"), 4, 512)
    c = ImportanceMatrix({"a": ImportanceEntry(np.ones((1, 3), np.float32), np.ones(1))})
    with pytest.raises(EncodingError, match="a: has different sizes: 1 x 2, 1 x 3"):
        merge([a, c])
    with pytest.raises(UsageError):
        merge([])


def test_coverage() -> None:
    assert ImportanceEntry(np.ones((4, 2), np.float32), np.array([1.0, 0, 5, 0])).coverage == 0.5
