"""The check for NaN and infinity on encoded bits, against NumPy on decoded numbers."""

from __future__ import annotations

import numpy as np
import pytest

from qconv.errors import EncodingError
from qconv.quantizers.finite import CHECKED_ENCODINGS, first_non_finite

NUMBERS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_16_bit_pattern(name: str) -> None:
    patterns = np.arange(1 << 16, dtype="<u2")
    numbers = patterns.view(np.float16) if name == "F16" else (patterns.astype(np.uint32) << 16).view(np.float32)
    for pattern, finite in zip(patterns, np.isfinite(numbers), strict=True):
        found = first_non_finite(pattern[None].view(np.uint8)[None], name)
        assert found == (None if finite else (0, 0)), hex(pattern)


@pytest.mark.parametrize("name", sorted(NUMBERS))
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_first_one_is_found_wherever_it_lies(name: str, bad: float) -> None:
    rows, columns = 70, 4096
    numbers = np.random.default_rng(0).standard_normal((rows, columns)).astype(NUMBERS[name])
    numbers[0, 0] = np.finfo(NUMBERS[name]).max
    numbers[1, 0] = np.finfo(NUMBERS[name]).min
    assert first_non_finite(numbers.view(np.uint8), name) is None
    numbers[69, 4095] = bad
    assert first_non_finite(numbers.view(np.uint8), name) == (69, 4095)
    numbers[33, 7] = -bad
    assert first_non_finite(numbers.view(np.uint8), name) == (33, 7)
    numbers[33, 6] = bad
    assert first_non_finite(numbers.view(np.uint8), name) == (33, 6)


@pytest.mark.parametrize("name", sorted(CHECKED_ENCODINGS))
def test_no_rows(name: str) -> None:
    assert first_non_finite(np.empty((0, 64), np.uint8), name) is None
    assert first_non_finite(np.empty((3, 0), np.uint8), name) is None


def test_other_encodings_and_torn_rows_are_refused() -> None:
    with pytest.raises(EncodingError, match="Q4_0 is not checked"):
        first_non_finite(np.zeros((1, 18), np.uint8), "Q4_0")
    with pytest.raises(EncodingError, match="rows of 6 bytes"):
        first_non_finite(np.zeros((1, 6), np.uint8), "F32")
