"""bitsandbytes layers give exactly their packer's weights."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from huggingface_folder import Stored
from packed_floats import bitsandbytes_4bit, bitsandbytes_int8, octets
from packed_folders import PackedLayer, Unpacker, rows_of

from qconv.errors import FormatError, MissingTensorError, QconvError, ShapeError
from qconv.formats.base import Tensor
from qconv.formats.packed.bitsandbytes import PACKING

RNG = np.random.default_rng(3)
SETTINGS = {"quant_method": "bitsandbytes"}
STATE = ".weight.quant_state.bitsandbytes__nf4"


def packed(shape: tuple[int, ...] = (6, 96), **options: Any) -> PackedLayer:
    weights = RNG.standard_normal(shape).astype(np.float32)
    return bitsandbytes_4bit(**options)(weights, np.random.default_rng(1))


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [None, 3])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_are_the_packers(kind: str, nested: int | None, dtype: str, unpack: Unpacker) -> None:
    layer = packed(kind=kind, nested=nested, dtype=dtype)
    found = unpack(PACKING, layer.tensors, SETTINGS)
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights)
    assert set(found.tensors) == {"x.weight"}
    assert found.facts == {"type": kind.upper(), "block_size": 64}
    assert found.summary == f"{kind.upper()}, blocks of 64{', scales quantized too' if nested else ''}"


@pytest.mark.parametrize("shape", [(5, 96), (7, 33), (3, 1), (2, 3, 32), (1, 200), (9, 64)])
@pytest.mark.parametrize("nested", [None, 2])
def test_blocks_cross_rows_and_may_end_early(shape: tuple[int, ...], nested: int | None, unpack: Unpacker) -> None:
    layer = packed(shape, nested=nested)
    tensor = unpack(PACKING, layer.tensors, SETTINGS).tensors["x.weight"]
    assert isinstance(tensor, Tensor)
    assert tensor.shape == shape
    expected = layer.weights.reshape(-1, shape[-1])
    for start in range(tensor.row_count):
        for stop in range(start, tensor.row_count + 1):
            np.testing.assert_array_equal(tensor.rows(start, stop), expected[start:stop])


@pytest.mark.parametrize("storage", ["BF16", "F32"])
def test_codes_may_hide_in_another_dtype(storage: str, unpack: Unpacker) -> None:
    layer = packed(storage=storage)
    found = unpack(PACKING, layer.tensors, SETTINGS)
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights)


def test_eight_bits(unpack: Unpacker) -> None:
    layer = bitsandbytes_int8(RNG.standard_normal((5, 24)).astype(np.float32), RNG)
    for tensors in (layer.tensors, {key: value for key, value in layer.tensors.items() if "format" not in key}):
        found = unpack(PACKING, tensors, SETTINGS)
        np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights)
        assert found.summary == "int8"
        assert set(found.tensors) == {"x.weight"}


def failure(unpack: Unpacker, tensors: dict[str, Stored]) -> QconvError:
    with pytest.raises(QconvError) as caught:
        unpack(PACKING, tensors, SETTINGS)
    return caught.value


@pytest.mark.parametrize("order", [1, 2, 3])
def test_another_order_of_int8_is_refused(order: int, unpack: Unpacker) -> None:
    layer = bitsandbytes_int8(RNG.standard_normal((5, 24)).astype(np.float32), RNG)
    error = failure(unpack, layer.tensors | {".weight_format": ("U8", (), bytes([order]))})
    assert error.tensor == "x.weight_format"
    assert f"order {order}" in error.message


def changed(layer: PackedLayer, **change: Any) -> dict[str, Stored]:
    state = json.loads(layer.tensors[STATE][2]) | change
    text = json.dumps({key: value for key, value in state.items() if value is not ...}).encode()
    return layer.tensors | {STATE: octets(list(text))}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("blocksize", 0), ("blocksize", -64), ("blocksize", "64"), ("blocksize", True), ("blocksize", 1 << 60), ("blocksize", ...),
        ("quant_type", "fp4"), ("quant_type", "int4"), ("quant_type", None), ("quant_type", ...),
        ("dtype", "int8"), ("dtype", 7), ("dtype", ...),
        ("shape", []), ("shape", [6, "96"]), ("shape", [6, 0]), ("shape", [-6, -96]), ("shape", 576), ("shape", ...),
        ("shape", [1 << 40, 1 << 40]), ("shape", [1] * 9), ("shape", [True, 576]),
        ("nested_blocksize", 0), ("nested_blocksize", ...), ("nested_offset", float("nan")), ("nested_offset", 1e39),
        ("nested_offset", "0"), ("nested_offset", ...),
    ],
)  # fmt: skip
def test_a_wrong_value_of_the_state_is_named(key: str, value: Any, unpack: Unpacker) -> None:
    error = failure(unpack, changed(packed(nested=3), **{key: value}))
    assert error.tensor == f"x{STATE}"
    assert f"has {key}: " in error.message


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"nf4", b"\xff\xfe", b"[" * 60000, b'{"blocksize": 1' + b"0" * 5000 + b"}"]
)
def test_a_state_that_is_no_object(content: bytes, unpack: Unpacker) -> None:
    error = failure(unpack, packed().tensors | {STATE: ("U8", (len(content),), content)})
    assert error.tensor == f"x{STATE}"


def test_a_state_of_many_megabytes_is_not_read(unpack: Unpacker) -> None:
    error = failure(unpack, packed().tensors | {STATE: ("U8", (1 << 20,), bytes(1 << 20))})
    assert "1048576 bytes" in error.message


def test_the_shape_must_fit_the_bytes(unpack: Unpacker) -> None:
    error = failure(unpack, changed(packed(), shape=[7, 96]))
    assert (error.tensor, type(error)) == ("x.weight", FormatError)
    assert "288 bytes" in error.message
    assert "336" in error.message


@pytest.mark.parametrize("suffix", [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"])
def test_a_wrong_shape_or_dtype_is_named(suffix: str, unpack: Unpacker) -> None:
    layer = packed(nested=3)
    dtype, (count,), data = layer.tensors[f".weight{suffix}"]
    item = len(data) // count
    for size in (count - 1, count + 1):
        wrong = (dtype, (size,), bytes(size * item))
        error = failure(unpack, layer.tensors | {f".weight{suffix}": wrong})
        assert (error.tensor, type(error)) == (f"x.weight{suffix}", ShapeError)
    error = failure(unpack, layer.tensors | {f".weight{suffix}": ("I8", (len(data),), data)})
    assert error.tensor == f"x.weight{suffix}"
    assert "its dtype is I8" in error.message


@pytest.mark.parametrize("suffix", [".absmax", ".quant_map", ".nested_quant_map"])
def test_a_missing_tensor_is_named(suffix: str, unpack: Unpacker) -> None:
    layer = packed(nested=3)
    error = failure(unpack, {key: value for key, value in layer.tensors.items() if key != f".weight{suffix}"})
    assert isinstance(error, MissingTensorError)
    assert error.tensor == f"x.weight{suffix}"


def test_what_is_beyond_float16_becomes_infinite(unpack: Unpacker) -> None:
    """As in the package's own result; a conversion then names the row and column."""
    layer = packed((2, 64), dtype="float16")
    absmax = np.array([1e6, 1.0], np.float32)
    tensor = unpack(PACKING, layer.tensors | {".weight.absmax": ("F32", (2,), absmax.tobytes())}, SETTINGS).tensors[
        "x.weight"
    ]
    assert isinstance(tensor, Tensor)
    assert tensor.encoding.name == "F16"
    rows = tensor.rows(0, 2)
    assert np.isinf(rows[0]).any()
    assert np.isfinite(rows[1]).all()
