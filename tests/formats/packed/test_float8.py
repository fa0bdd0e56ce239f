"""Tables of 8-bit floats."""

from __future__ import annotations

import numpy as np
import pytest
from packed_floats import float8

from qconv.formats.packed.float8 import FLOAT8, decode_float8

CODES = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize(("dtype", "exponent_bits"), [("F8_E4M3", 4), ("F8_E5M2", 5)])
def test_every_code_by_definition(dtype: str, exponent_bits: int) -> None:
    expected = np.array([float8(code, exponent_bits) for code in range(256)], np.float32)
    found = decode_float8(CODES, dtype)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found[:255]), CODES[:255] >= 128)


def test_exponents() -> None:
    found = decode_float8(CODES, "F8_E8M0")
    assert [found[0], found[127], found[254]] == [2.0**-127, 1.0, 2.0**127]
    assert np.isnan(found[255])


@pytest.mark.oracles
@pytest.mark.parametrize(
    ("dtype", "torch_name"), [("F8_E4M3", "float8_e4m3fn"), ("F8_E5M2", "float8_e5m2"), ("F8_E8M0", "float8_e8m0fnu")]
)
def test_every_code_is_torchs(dtype: str, torch_name: str) -> None:
    import torch

    expected = torch.from_numpy(CODES.copy()).view(getattr(torch, torch_name)).float().numpy()
    np.testing.assert_array_equal(FLOAT8[dtype], expected)
