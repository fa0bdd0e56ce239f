"""What the EXL2 quantizer chooses is what the EXL2 reader gives, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from packed_folders import Unpacker

from qconv.formats.base import Tensor
from qconv.formats.packed.exl2 import PACKING
from qconv.quantizers.rounding.exl2_options import parse_option
from qconv.quantizers.rounding.exl2_packing import pack_exl2
from qconv.quantizers.rounding.exl2_rounding import exl2_factor, quantize_exl2

DTYPES = {"int32": "I32", "int16": "I16", "float16": "F16"}


@pytest.mark.parametrize("size", [0.05, 0.5, 1e-4])
@pytest.mark.parametrize("text", ["8@32:.1 4@64:.3 3@64:.6", "6@32:.2 5@32:.4 2@32:.4", "8@128:1"])
def test_the_reader_gives_the_chosen_weights(text: str, size: float, unpack: Unpacker) -> None:
    rng = np.random.default_rng(2)
    weights = (rng.normal(size=(64, 160)) * size).astype(np.float32)
    inputs = rng.normal(size=(300, 160)) * np.exp(rng.normal(size=160))
    matrix = quantize_exl2(weights, exl2_factor(inputs.T @ inputs), parse_option(text))
    stored = {
        f".{name}": (DTYPES[str(it.dtype)], it.shape, it.astype(it.dtype.newbyteorder("<")).tobytes())
        for name, it in pack_exl2(matrix).items()
    }
    tensor = unpack(PACKING, stored, {"quant_method": "exl2"}).tensors["x.weight"]
    assert isinstance(tensor, Tensor)
    np.testing.assert_array_equal(tensor.rows(0, 64), matrix.weights)
    if size > 1e-3:  # below, the scales of float16 have hardly a digit left, which is EXL2's own limit
        assert np.abs(matrix.weights - weights).mean() < (0.3 if "2@" in text else 0.2) * size
