"""What the quantizers' own packages packed and restored: ``vectors.json`` holds their tensors and their results, with their versions."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_folders import Unpacker, rows_of
from qconv_encodings import ENCODINGS

from qconv.formats.base import Tensor
from qconv.formats.packed import PACKINGS
from qconv.formats.scales import folded

VECTORS: dict[str, Any] = json.loads(Path(__file__).with_name("vectors.json").read_text())


def floats(dtype: str, shape: list[int], data: str) -> np.ndarray:
    rows = np.frombuffer(base64.b64decode(data), np.uint8).reshape(shape[0], -1)
    return ENCODINGS[dtype].decode(rows)


@pytest.mark.parametrize("name", VECTORS)
def test_weights_are_the_packages(name: str, unpack: Unpacker) -> None:
    case = VECTORS[name]
    layer = {
        f".{key}": (dtype, tuple(shape), base64.b64decode(data))
        for key, (dtype, shape, data) in case["tensors"].items()
    }
    expected = floats(*case["weights"])
    settings = case["quantization_config"]
    packing = next(it for it in PACKINGS if settings["quant_method"] in it.methods)
    found = unpack(packing, layer, settings)
    tensor = found.tensors["x.weight"]
    assert isinstance(tensor, Tensor)
    assert set(found.tensors) == {"x.weight"}
    if "nvfp4" in name:
        # the package rounds to BF16 what is here a product in float32
        assert tensor.encoding.name == "NVFP4"
        weights = rows_of(folded(tensor, found.scales["x.weight"]))
        np.testing.assert_allclose(weights, expected, rtol=2.0**-8)
    else:
        assert "mxfp4" in name or tensor.encoding.name == case["weights"][0]
        np.testing.assert_array_equal(rows_of(tensor), expected)


def test_every_form_is_there() -> None:
    assert len(VECTORS) == 22
