"""Windows, against position-by-position loops."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qconv.errors import UsageError
from qconv.runtime.measuring.windows import cut_standard, cut_strided, join


@given(st.integers(8, 33), st.integers(0, 70), st.integers(1, 4) | st.none())
def test_standard_scores_what_llamacpp_scores(context: int, extra: int, limit: int | None) -> None:
    tokens = list(range(1000, 1000 + 2 * context + extra))
    found = cut_standard(tokens, context, bos=1, limit=limit)
    chunks = len(tokens) // context
    assert len(found.tokens) == (chunks if limit is None else min(limit, chunks))
    for i, (run, window) in enumerate(zip(found.evaluated.tolist(), found.tokens.tolist(), strict=True)):
        assert window == tokens[i * context : (i + 1) * context]
        assert run == [1, *window[1:]]
    pairs = [(p, tokens[p + 1]) for p in range(context // 2, context - 1)]
    assert list(range(context))[found.wanted] == [p for p, _ in pairs]
    assert found.targets[0].tolist() == [target for _, target in pairs]
    assert found.scored_per_window == context - context // 2 - 1
    assert found.mode == "standard"


@given(st.integers(8, 24), st.data())
def test_strided_scores_each_token_once_with_enough_before_it(context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context - 1))
    tokens = list(range(2 * context + data.draw(st.integers(0, 40))))
    found = cut_strided(tokens, context, stride, bos=None)
    scored = found.targets.ravel().tolist()
    last = (len(tokens) - context) // stride * stride + context - 1  # of the last window that fits
    assert scored == list(range(context - stride, last + 1))
    assert (found.evaluated == found.tokens).all()
    assert found.mode == "strided"


def test_standard_leaves_bos_out_where_the_vocabulary_has_none() -> None:
    assert cut_standard(range(20), 10, bos=None).evaluated[1].tolist() == list(range(10, 20))


def test_texts_too_short_and_strides_too_long() -> None:
    with pytest.raises(UsageError, match=r"19 tokens, but at least two contexts \(20\).*a context of at most 9"):
        cut_standard(range(19), 10, None)
    with pytest.raises(UsageError, match="stride of 10 does not fit a context of 10"):
        cut_strided(range(40), 10, 10, None)
    with pytest.raises(UsageError, match="too short to score"):
        cut_standard(range(40), 7, None)


def test_join() -> None:
    one, other = cut_standard(range(20), 10, 1), cut_standard(range(50, 80), 10, 1)
    assert join([one, other]).tokens[:, 0].tolist() == [0, 10, 50, 60, 70]
    with pytest.raises(UsageError, match="cut differently"):
        join([one, cut_standard(range(40), 12, 1)])
