"""Q1_0 and Q2_0 against their definition and llama.cpp; the gguf package knows their sizes only."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from ggml_oracle import ggml_dequantize, ggml_quantize
from qconv_encodings import ENCODINGS
from weight_samples import squared_error, weight_samples

from qconv.quantizers.base import EncodeOptions

NAMES = ["Q1_0", "Q2_0"]
EFFORTS: tuple[Literal["fast", "default", "best"], ...] = ("fast", "default", "best")
ROWS, COLUMNS = 7, 128 * 5


def _every_scale(name: str) -> np.ndarray:
    halves = np.arange(1 << 16, dtype=np.uint16)
    halves = halves[(halves & 0x7C00) != 0x7C00]
    data = np.random.default_rng(1).integers(0, 256, (halves.size, ENCODINGS[name].block_bytes), np.uint8)
    data[:, :2] = halves.view(np.uint8).reshape(-1, 2)
    return data


@pytest.mark.parametrize("name", NAMES)
def test_decoder_follows_the_layout(name: str) -> None:
    data = _every_scale(name)
    width = 1 if name == "Q1_0" else 2
    bits = np.unpackbits(data[:, 2:], axis=1, bitorder="little").reshape(len(data), -1, width)
    codes = bits[..., 0] * 2 - 1.0 if name == "Q1_0" else bits[..., 0] + 2.0 * bits[..., 1] - 1.0
    scales = data[:, :2].copy().view(np.float16).astype(np.float32)
    expected = (codes.astype(np.float32) * scales).astype(np.float32)
    assert ENCODINGS[name].decode(data).tobytes() == expected.tobytes()


@pytest.mark.oracles
@pytest.mark.parametrize("name", NAMES)
def test_decoder_is_llama_cpp_s(name: str) -> None:
    data = _every_scale(name)
    expected = ggml_dequantize(data, name, ENCODINGS[name].block_size)
    assert ENCODINGS[name].decode(data).tobytes() == expected.tobytes()


@pytest.mark.parametrize("effort", EFFORTS)
def test_q2_0_holds_ternary_weights_exactly(effort: Literal["fast", "default", "best"]) -> None:
    rows = (np.random.default_rng(3).integers(-1, 2, (ROWS, COLUMNS)) * 0.375).astype(np.float32)
    encoding = ENCODINGS["Q2_0"]
    assert np.array_equal(encoding.decode(encoding.encode(rows, None, EncodeOptions(effort))), rows)


def test_q2_0_uses_all_four_codes_and_either_sign_of_the_scale() -> None:
    rows = np.tile(np.array([-0.5, 0.0, 0.5, 1.0], np.float32), (2, 16))
    rows[1] *= -1
    assert np.array_equal(ENCODINGS["Q2_0"].decode(ENCODINGS["Q2_0"].encode(rows)), rows)


def test_q1_0_takes_signs_and_the_mean_magnitude() -> None:
    rows = weight_samples(ROWS, COLUMNS)["laplace"]
    decoded = ENCODINGS["Q1_0"].decode(ENCODINGS["Q1_0"].encode(rows))
    means = np.abs(rows).reshape(-1, 128).mean(axis=1, keepdims=True)
    assert np.array_equal(decoded >= 0, rows >= 0)
    assert np.abs(np.abs(decoded).reshape(-1, 128) / means - 1).max() < 2**-10


def test_q2_0_profits_from_effort() -> None:
    rows, encoding = weight_samples(ROWS, COLUMNS)["student-3"], ENCODINGS["Q2_0"]
    errors = [
        squared_error(rows, encoding.decode(encoding.encode(rows, None, EncodeOptions(effort)))) for effort in EFFORTS
    ]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.oracles
def test_q1_0_is_byte_for_byte_llama_cpp_s() -> None:
    """There is nothing to improve: only the order in which the magnitudes are added may round the scale differently."""
    rows = weight_samples(ROWS, COLUMNS)["gauss"]
    ours = ENCODINGS["Q1_0"].encode(rows).reshape(-1, 18)
    theirs = ggml_quantize(rows, 41).reshape(-1, 18)
    assert np.array_equal(ours[:, 2:], theirs[:, 2:])
    steps = ours[:, :2].copy().view(np.int16).astype(int) - theirs[:, :2].copy().view(np.int16)
    assert np.abs(steps).max() <= 1
