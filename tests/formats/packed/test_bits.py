"""Streams of fields against test vectors and against arithmetic on one big integer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packed_folders import planes_of, words_of

from qconv.formats.packed.bits import unpack_planes, unpack_stream

# 32 fields of value (7 * i + 3) mod 2^b, packed by ExLlamaV2's own kernels
EXLLAMA = {
    2: "1b1b1b1b 1b1b1b1b",
    3: "53977053 70539770 97705397",
    4: "4d6f81a3 c5e7092b 4d6f81a3 c5e7092b",
    5: "4dfc4543 78245ba3 0753617d 4b276cf4 e55c7066",
    6: "9f611283 90bbd2d9 b2579740 8f201eb3 9cab91d5 71538703",
    8: "18110a03 342d261f 5049423b 6c655e57 88817a73 a49d968f c0b9b2ab dcd5cec7",
}


def data_of(words: list[int]) -> np.ndarray:
    return np.array([words], "<u4").view(np.uint8)


@pytest.mark.parametrize("bits", EXLLAMA)
def test_exllamas_vectors(bits: int) -> None:
    words = [int(word, 16) for word in EXLLAMA[bits].split()]
    expected = [(7 * index + 3) % (1 << bits) for index in range(32)]
    assert unpack_stream(data_of(words), bits, 32)[0].tolist() == expected
    assert words_of(expected, bits) == words  # the tests' own packer is held to them too


@given(st.integers(1, 8), st.integers(0, 6), st.data())
def test_streams_are_one_big_number(bits: int, runs: int, data: st.DataObject) -> None:
    fields = data.draw(st.lists(st.integers(0, (1 << bits) - 1), min_size=32 * runs, max_size=32 * runs))
    count = data.draw(st.integers(0, len(fields)))
    packed = np.repeat(data_of(words_of(fields, bits)), 2, axis=0)
    assert unpack_stream(packed, bits, count).tolist() == [fields[:count]] * 2


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_stream_may_end_within_a_run_of_bytes(bits: int) -> None:
    fields = [index % (1 << bits) for index in range(32)]
    packed = data_of(words_of(fields, bits))
    for count in range(33):
        enough = packed[:, : -(-count * bits // 8)]
        assert unpack_stream(enough, bits, count)[0].tolist() == fields[:count]


def test_three_bits_straddle_words() -> None:
    """Fields 10 and 21 of a 3-bit stream lie in two words each."""
    for field, low, high in ((10, 0, 1), (21, 1, 2)):
        words = [0, 0, 0]
        words[low], words[high] = 0xFFFFFFFF, 0
        assert 0 < unpack_stream(data_of(words), 3, 32)[0, field] < 7


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_planes(bits: int) -> None:
    rng = np.random.default_rng(bits)
    fields = rng.integers(0, 1 << bits, (5, 96))
    packed = np.concatenate([data_of(planes_of(row.tolist(), bits)) for row in fields])
    np.testing.assert_array_equal(unpack_planes(packed, bits, 96), fields)
    np.testing.assert_array_equal(unpack_planes(packed, bits, 70), fields[:, :70])


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        unpack_stream(np.zeros((1, 3), np.uint8), 4, 7)
    with pytest.raises(ValueError, match="do not fit"):
        unpack_planes(np.zeros((1, 8), np.uint8), 3, 8)
