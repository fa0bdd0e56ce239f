"""What AutoGPTQ and AutoAWQ packed and restored: ``integer_vectors.json`` holds their tensors and weights, with their versions.

They were made once, with those modules of the packages that need no GPU.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_folders import Unpacker, rows_of

from qconv.formats.packed import PACKINGS

VECTORS: dict[str, Any] = json.loads(Path(__file__).with_name("integer_vectors.json").read_text())


@pytest.mark.parametrize("name", VECTORS)
def test_weights_are_the_packages(name: str, unpack: Unpacker) -> None:
    case = VECTORS[name]
    layer = {
        f".{key}": (dtype, tuple(shape), base64.b64decode(data))
        for key, (dtype, shape, data) in case["tensors"].items()
    }
    settings = case["quantization_config"]
    packing = next(packing for packing in PACKINGS if settings["quant_method"] in packing.methods)
    dtype, shape, data = case["weights"]
    assert dtype == "F32"
    expected = np.frombuffer(base64.b64decode(data), "<f4").reshape(shape)
    np.testing.assert_array_equal(rows_of(unpack(packing, layer, settings).tensors["x.weight"]), expected)


def test_every_form_is_there() -> None:
    assert len(VECTORS) == 8
    assert {case["quantization_config"].get("bits") for case in VECTORS.values()} == {2, 3, 4, 8}
