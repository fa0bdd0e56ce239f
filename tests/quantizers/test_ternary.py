"""TQ1_0 and TQ2_0 against gguf's decoders and llama.cpp's encoders."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from ggml_oracle import ggml_quantize
from gguf import GGMLQuantizationType, quants
from qconv_encodings import ENCODINGS
from weight_samples import squared_error, weight_samples

from qconv.quantizers.base import EncodeOptions

NAMES = ["TQ1_0", "TQ2_0"]
EFFORTS: tuple[Literal["fast", "default", "best"], ...] = ("fast", "default", "best")
COLUMNS = 256 * 3  # an odd number of blocks
ROWS = 7


@pytest.mark.parametrize("name", NAMES)
def test_decoder_is_gguf_s_for_every_scale_and_byte(name: str) -> None:
    encoding = ENCODINGS[name]
    halves = np.arange(1 << 16, dtype=np.uint16)
    halves = halves[(halves & 0x7C00) != 0x7C00]
    data = np.random.default_rng(1).integers(0, 256, (halves.size, encoding.block_bytes), np.uint8)
    data[:256, :-2] = np.arange(256)[:, None]
    data[:, -2:] = halves.view(np.uint8).reshape(-1, 2)
    assert encoding.decode(data).tobytes() == quants.dequantize(data, GGMLQuantizationType[name]).tobytes()


def _ternary(scale: float) -> np.ndarray:
    codes = np.random.default_rng(3).integers(-1, 2, (ROWS, COLUMNS))
    return (codes * scale).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("effort", EFFORTS)
def test_ternary_weights_come_back_and_are_packed_as_by_gguf(
    name: str, effort: Literal["fast", "default", "best"]
) -> None:
    rows = _ternary(0.75)
    data = ENCODINGS[name].encode(rows, None, EncodeOptions(effort))
    assert np.array_equal(ENCODINGS[name].decode(data), rows)
    by_gguf = quants.quantize(rows, GGMLQuantizationType[name])
    # the sign of the scale is free; ours is that of the largest weight
    positive = data.reshape(-1, ENCODINGS[name].block_bytes)[:, -1] < 0x80
    assert positive.any()
    assert np.array_equal(data.reshape(positive.size, -1)[positive], by_gguf.reshape(positive.size, -1)[positive])


@pytest.mark.parametrize("name", NAMES)
def test_more_effort_lowers_the_error(name: str) -> None:
    rows = weight_samples(ROWS, COLUMNS)["student-3"]
    encoding = ENCODINGS[name]
    errors = [
        squared_error(rows, encoding.decode(encoding.encode(rows, None, EncodeOptions(effort)))) for effort in EFFORTS
    ]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.oracles
@pytest.mark.parametrize("name", NAMES)
def test_the_largest_weight_is_a_poor_scale_for_other_weights(name: str) -> None:
    encoding, rows = ENCODINGS[name], weight_samples(ROWS, COLUMNS)["gauss"]
    assert encoding.type_id is not None
    theirs = squared_error(rows, encoding.decode(ggml_quantize(rows, encoding.type_id)))
    assert squared_error(rows, encoding.decode(encoding.encode(rows))) < 0.4 * theirs
