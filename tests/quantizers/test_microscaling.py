"""MXFP4 and NVFP4 against gguf's decoders and llama.cpp's encoders."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from qconv_encodings import ENCODINGS
from weight_samples import squared_error, weight_samples

from qconv.quantizers.base import EncodeOptions

NAMES = ["MXFP4", "NVFP4"]
ROWS, COLUMNS = 7, 64 * 5
NUMBERS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_decoder_is_gguf_s_for_every_scale_and_code(name: str) -> None:
    """All 256 bytes as scale, each with all 256 bytes of codes."""
    encoding = ENCODINGS[name]
    scales, codes = (axis.reshape(-1) for axis in np.mgrid[0:256, 0:256].astype(np.uint8))
    data = np.repeat(codes[:, None], encoding.block_bytes, axis=1)
    count = 1 if name == "MXFP4" else 4
    data[:, :count] = np.stack([scales ^ step for step in range(count)], axis=1)
    with np.errstate(over="ignore"):  # the last two exponents are beyond float32
        expected = quants.dequantize(data, GGMLQuantizationType[name]).astype(np.float32)
    assert encoding.decode(data).tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_of_the_format_come_back_at_every_scale(name: str) -> None:
    random = np.random.default_rng(2)
    exponents = range(-120, 124, 4) if name == "MXFP4" else range(-6, 9)
    for exponent in exponents:
        row = random.permutation(np.tile(np.concatenate([NUMBERS, -NUMBERS]), 8))[None] * np.float32(2.0**exponent)
        row = np.concatenate([row[:, i : i + 16] for i in range(0, 128, 16)], axis=1)
        row[:, ::16] = 6 * 2.0**exponent  # every block meets its largest number
        decoded = ENCODINGS[name].decode(ENCODINGS[name].encode(row))
        assert np.array_equal(decoded, row), exponent


@pytest.mark.parametrize("name", NAMES)
def test_each_weight_takes_the_nearest_number(name: str) -> None:
    rows = weight_samples(ROWS, COLUMNS)["gauss"] * np.float32(50)
    decoded = ENCODINGS[name].decode(ENCODINGS[name].encode(rows))
    data = ENCODINGS[name].encode(rows).reshape(-1, ENCODINGS[name].block_bytes)
    if name == "MXFP4":
        scales, size = np.exp2(data[:, 0].astype(np.float32) - 127), 32
    else:
        unit_codes = np.zeros_like(data)
        unit_codes[:, :4], unit_codes[:, 4:] = data[:, :4], 0x22  # code 2 is 1
        scales, size = ENCODINGS[name].decode(unit_codes)[:, ::16].reshape(-1), 16
    grid = scales[:, None] * np.concatenate([NUMBERS, -NUMBERS])
    distances = np.abs(rows.reshape(-1, size, 1) - grid[:, None, :]).min(axis=2)
    assert np.allclose(np.abs(rows - decoded).reshape(-1, size), distances, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_hard_input_decodes_to_finite_numbers(name: str) -> None:
    largest = np.finfo(np.float32).max
    rows = np.zeros((4, 64), np.float32)
    rows[0] = np.where(np.arange(64) % 3, largest, -largest)
    rows[1] = 1e-45
    rows[2, 5] = largest
    decoded = ENCODINGS[name].decode(ENCODINGS[name].encode(rows))
    assert np.isfinite(decoded).all()
    assert not decoded[3].any()


def test_nvfp4_profits_from_effort() -> None:
    rows, encoding = weight_samples(ROWS, COLUMNS)["student-3"], ENCODINGS["NVFP4"]
    fast, default, best = (
        squared_error(rows, encoding.decode(encoding.encode(rows, None, EncodeOptions(effort))))
        for effort in ("fast", "default", "best")
    )
    assert fast > default >= best
