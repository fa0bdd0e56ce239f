"""gpt-oss's experts keep every bit as GGUF's MXFP4."""

from __future__ import annotations

import numpy as np
import pytest
from huggingface_folder import Stored
from packed_floats import bf16, mxfp4_codes, octets
from packed_folders import Unpacker, rows_of

from qconv.errors import FormatError, MissingTensorError, QconvError, ShapeError
from qconv.formats.base import Tensor
from qconv.formats.packed.mxfp4 import PACKING

SHAPE = (3, 8, 64)
SETTINGS = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}


def experts() -> tuple[dict[str, Stored], np.ndarray]:
    weights = np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32)
    packed, scales, exact = mxfp4_codes(weights)
    layer = {
        ".up_blocks": octets(packed, 3, 8, 2, 16),
        ".up_scales": octets(scales, 3, 8, 2),
        ".up_bias": bf16(np.ones((3, 8), np.float32)),
    }
    return layer, exact.reshape(-1, 64)


def test_experts(unpack: Unpacker) -> None:
    layer, exact = experts()
    found = unpack(PACKING, layer, SETTINGS)
    tensor = found.tensors["x.up"]
    assert isinstance(tensor, Tensor)
    assert (tensor.encoding.name, tensor.shape) == ("MXFP4", SHAPE)
    np.testing.assert_array_equal(rows_of(tensor), exact)
    for start, stop in ((0, 1), (7, 9), (4, 4), (23, 24)):
        np.testing.assert_array_equal(tensor.rows(start, stop), exact[start:stop])
    assert set(found.tensors) == {"x.up", "x.up_bias"}


def test_recognised_by_names_alone(unpack: Unpacker) -> None:
    layer, _ = experts()
    tensors = unpack.checkpoint({f"x{suffix}": value for suffix, value in layer.items()})
    assert PACKING.recognises({}, tensors)
    assert not PACKING.recognises({"quantization_config": {"quant_method": "gptq"}}, tensors)
    del tensors["x.up_scales"]
    assert not PACKING.recognises({}, tensors)


def failure(unpack: Unpacker, layer: dict[str, Stored]) -> QconvError:
    with pytest.raises(QconvError) as caught:
        unpack(PACKING, layer, SETTINGS)
    return caught.value


@pytest.mark.parametrize("suffix", [".up_blocks", ".up_scales"])
def test_a_wrong_shape_or_dtype_is_named(suffix: str, unpack: Unpacker) -> None:
    layer, _ = experts()
    _, shape, data = layer[suffix]
    for wrong in ((4, *shape[1:]), (*shape[:-1], shape[-1] + 1), shape[:2], (0, *shape[1:])):
        error = failure(unpack, layer | {suffix: ("U8", wrong, bytes(int(np.prod(wrong))))})
        assert isinstance(error, ShapeError)
        assert error.tensor in ("x.up_blocks", "x.up_scales")
    error = failure(unpack, layer | {suffix: ("I16", shape, bytes(2 * len(data)))})
    assert (type(error), error.tensor) == (FormatError, f"x{suffix}")


def test_missing_scales_are_named(unpack: Unpacker) -> None:
    layer, _ = experts()
    layer |= {".down_blocks": layer[".up_blocks"]}
    error = failure(unpack, layer)
    assert (type(error), error.tensor) == (MissingTensorError, "x.down_scales")
