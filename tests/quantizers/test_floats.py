"""F32, F16, BF16, F64 and the integers, against gguf's own codecs and NumPy's conversions."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from qconv_encodings import ENCODINGS

from qconv.errors import EncodingError

# every float32 exponent, both signs, with mantissas about each tie of the 16-bit formats
SPREAD = (
    (np.arange(512, dtype=np.uint32)[:, None] << 23)
    | np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x3001, 0x7FFF, 0x8000, 0x8001, 0x17FFF, 0x18000, 0x18001,
                0x7FE000, 0x7FEFFF, 0x7FF000, 0x7F8000, 0x7FFFFF], np.uint32)
).view(np.float32)  # fmt: skip
RANDOM = np.random.default_rng(3).integers(0, 1 << 32, (40, 4096), np.uint32).view(np.float32)


def _same_bits(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("rows", [SPREAD, RANDOM], ids=["spread", "random"])
def test_bf16_is_encoded_as_gguf_does(rows: np.ndarray) -> None:
    assert _same_bits(ENCODINGS["BF16"].encode(rows), quants.quantize(rows, GGMLQuantizationType.BF16))


def test_bf16_rounds_up_to_infinity_as_gguf_does() -> None:
    """The largest float32 rounds to infinity in bfloat16 by its definition, and llama.cpp's files hold it so."""
    assert ENCODINGS["BF16"].encode(np.full((1, 1), 3.4e38, np.float32)).tobytes() == b"\x80\x7f"


@pytest.mark.parametrize("rows", [SPREAD, RANDOM], ids=["spread", "random"])
def test_f16_is_encoded_as_gguf_does(rows: np.ndarray) -> None:
    rows = np.where(np.isfinite(rows) & (np.abs(rows) >= 65520), np.float32(1.5), rows)
    assert _same_bits(ENCODINGS["F16"].encode(rows), quants.quantize(rows, GGMLQuantizationType.F16))


def test_f16_keeps_subnormals() -> None:
    smallest = np.array([[2.0**-24, -(2.0**-24), 2.0**-15]], np.float32)
    assert np.array_equal(ENCODINGS["F16"].decode(ENCODINGS["F16"].encode(smallest)), smallest)


@pytest.mark.parametrize("value", [65520.0, -65520.0, 1e30])
def test_f16_overflow_is_refused(value: float) -> None:
    rows = np.zeros((5, 300), np.float32)
    rows[0] = 65519.0
    rows[3, 299] = value
    with pytest.raises(EncodingError, match=r"row 3, column 299: .*65504.* Choose BF16 or F32"):
        ENCODINGS["F16"].encode(rows)


def test_f16_passes_nan_and_infinity() -> None:
    rows = np.array([[np.nan, np.inf, -np.inf, 1.0]], np.float32)
    assert np.array_equal(ENCODINGS["F16"].decode(ENCODINGS["F16"].encode(rows)), rows, equal_nan=True)


@pytest.mark.parametrize("name", ["F16", "BF16"])
@pytest.mark.parametrize("finite", [True, False])
def test_every_16_bit_pattern_is_decoded_as_gguf_does(name: str, finite: bool) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    if finite:
        infinity = 0x7C00 if name == "F16" else 0x7F80
        patterns = patterns[(patterns & infinity) != infinity]
    data = patterns[None].view(np.uint8)
    assert _same_bits(ENCODINGS[name].decode(data), quants.dequantize(data, GGMLQuantizationType[name]))


def test_f16_decoding_reaches_every_chunk() -> None:
    rows = np.random.default_rng(5).standard_normal((50, 4000)).astype(np.float16)
    assert np.array_equal(ENCODINGS["F16"].decode(rows.view(np.uint8)), rows.astype(np.float32))


def test_f32_and_f64_keep_every_bit() -> None:
    for name in ("F32", "F64"):
        assert np.array_equal(ENCODINGS[name].decode(ENCODINGS[name].encode(SPREAD)), SPREAD, equal_nan=True)
    assert ENCODINGS["F32"].encode(RANDOM).tobytes() == RANDOM.tobytes()


def test_f64_beyond_float32_is_refused() -> None:
    doubles = np.array([[1.0, np.inf], [-1e39, 0.0]])
    with pytest.raises(EncodingError, match=r"row 1, column 0: -1e\+39 exceeds float32"):
        ENCODINGS["F64"].decode(doubles.view(np.uint8))
    assert np.array_equal(ENCODINGS["F64"].decode(doubles[:1].view(np.uint8)), [[1.0, np.inf]])


@pytest.mark.parametrize(("name", "dtype"), [("I8", "i1"), ("I16", "<i2"), ("I32", "<i4"), ("I64", "<i8")])
def test_integers_are_decoded_and_not_encoded(name: str, dtype: str) -> None:
    limits = np.iinfo(dtype)
    numbers = np.array([[limits.min, -1, 0, 1, 100, limits.max]], dtype)
    assert np.array_equal(ENCODINGS[name].decode(numbers.view(np.uint8)), numbers.astype(np.float32))
    with pytest.raises(EncodingError, match=f"{name} can be read but not written"):
        ENCODINGS[name].encode(np.zeros((1, 4), np.float32))


def test_floats_import_no_compiler() -> None:
    code = (
        "import sys, qconv.quantizers.floats, qconv.quantizers.catalog;"
        "sys.exit(any(name.split('.')[0] in ('numba', 'llvmlite') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
