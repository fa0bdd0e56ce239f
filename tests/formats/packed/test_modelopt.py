"""ModelOpt folders: NVFP4 kept with its scale beside it, FP8 restored."""

from __future__ import annotations

import numpy as np
import pytest
from huggingface_folder import Stored
from packed_floats import f32, float8_blocks, nvfp4, octets
from packed_folders import Unpacker, rows_of

from qconv.errors import FormatError, NonFiniteError, QconvError, ShapeError
from qconv.formats.base import Tensor
from qconv.formats.packed.modelopt import PACKING
from qconv.formats.scales import folded

WEIGHTS = np.random.default_rng(3).standard_normal((10, 128)).astype(np.float32)
SETTINGS = {"quant_method": "modelopt", "quant_algo": "NVFP4"}


def test_nvfp4(unpack: Unpacker) -> None:
    layer = nvfp4()(WEIGHTS, np.random.default_rng(1))
    found = unpack(PACKING, layer.tensors, SETTINGS)
    tensor = found.tensors["x.weight"]
    assert isinstance(tensor, Tensor)
    assert tensor.encoding.name == "NVFP4"
    assert set(found.tensors) == {"x.weight"}
    np.testing.assert_array_equal(rows_of(tensor), layer.weights)
    np.testing.assert_array_equal(tensor.rows(3, 7), layer.weights[3:7])
    assert tensor.read(4, 4).shape == (0, 72)
    scale = np.frombuffer(layer.tensors[".weight_scale_2"][2], np.float32)
    np.testing.assert_array_equal(rows_of(found.scales["x.weight"]), [scale])
    whole = folded(tensor, found.scales["x.weight"])
    np.testing.assert_array_equal(rows_of(whole), layer.weights * scale)
    # the packer chose the nearest numbers, so the weights are near what was packed
    assert np.abs(rows_of(whole) - WEIGHTS).max() < np.abs(WEIGHTS).max() / 6


@pytest.mark.parametrize("scale", [None, 1.0])
def test_no_scale_or_a_scale_of_1_needs_no_tensor(scale: float | None, unpack: Unpacker) -> None:
    layer = nvfp4(with_scale=False)(WEIGHTS, np.random.default_rng(1)).tensors
    if scale is not None:
        layer |= {".weight_scale_2": f32(np.array([scale], np.float32))}
    assert not unpack(PACKING, layer, SETTINGS).scales


def test_rows_of_no_whole_blocks_are_restored(unpack: Unpacker) -> None:
    layer = nvfp4()(WEIGHTS[:, :80].copy(), np.random.default_rng(1))
    found = unpack(PACKING, layer.tensors, SETTINGS)
    scale = np.frombuffer(layer.tensors[".weight_scale_2"][2], np.float32)
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights * scale)
    assert not found.scales


def test_stacks_may_have_a_scale_for_each_matrix(unpack: Unpacker) -> None:
    layer = nvfp4()(WEIGHTS, np.random.default_rng(1))
    tensors: dict[str, Stored] = {
        key: (dtype, (2, 5, *shape[1:]), data) for key, (dtype, shape, data) in layer.tensors.items() if len(shape) == 2
    }
    tensors[".weight_scale_2"] = f32(np.array([2.0, 3.0], np.float32))
    found = unpack(PACKING, tensors, SETTINGS)
    tensor = found.tensors["x.weight"]
    assert isinstance(tensor, Tensor)
    assert tensor.shape == (2, 5, 128)
    np.testing.assert_array_equal(
        rows_of(folded(tensor, found.scales["x.weight"])), layer.weights * np.repeat([2, 3], 5)[:, None]
    )


@pytest.mark.parametrize("block", [(10, 128), (1, 128)])
def test_fp8_beside_nvfp4(block: tuple[int, int], unpack: Unpacker) -> None:
    four = nvfp4()(WEIGHTS, np.random.default_rng(1))
    eight = float8_blocks(block, ".weight_scale")(WEIGHTS, np.random.default_rng(1))
    layer = {f".a{key}": value for key, value in four.tensors.items()}
    layer |= {f".b{key}": value for key, value in eight.tensors.items()} | {".k_scale": f32(np.ones(1, np.float32))}
    found = unpack(PACKING, layer, SETTINGS)
    np.testing.assert_array_equal(rows_of(found.tensors["x.a.weight"]), four.weights)
    np.testing.assert_array_equal(rows_of(found.tensors["x.b.weight"]), eight.weights)
    assert found.summary == "NVFP4 and E4M3"
    assert set(found.tensors) == {"x.a.weight", "x.b.weight"}


def test_a_negative_scale_passes_its_sign_to_the_codes(unpack: Unpacker) -> None:
    layer = nvfp4()(WEIGHTS, np.random.default_rng(1))
    dtype, shape, data = layer.tensors[".weight_scale"]
    negative = (dtype, shape, bytes(byte | 0x80 for byte in data))
    found = unpack(PACKING, layer.tensors | {".weight_scale": negative}, SETTINGS)
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), -layer.weights)


def failure(unpack: Unpacker, layer: dict[str, tuple[str, tuple[int, ...], bytes]]) -> QconvError:
    with pytest.raises(QconvError) as caught:
        unpack(PACKING, layer, SETTINGS)
    return caught.value


def test_a_scale_that_is_no_number_is_named_when_it_is_read(unpack: Unpacker) -> None:
    layer = nvfp4()(WEIGHTS, np.random.default_rng(1))
    dtype, shape, data = layer.tensors[".weight_scale"]
    damaged = bytearray(data)
    damaged[8 * 4 + 2] = 0xFF
    tensor = unpack(PACKING, layer.tensors | {".weight_scale": (dtype, shape, bytes(damaged))}, SETTINGS).tensors[
        "x.weight"
    ]
    assert isinstance(tensor, Tensor)
    tensor.rows(0, 4)
    with pytest.raises(NonFiniteError, match="row 4, weights 32 to 47, is not a number") as caught:
        tensor.rows(3, 6)
    assert caught.value.tensor == "x.weight_scale"


@pytest.mark.parametrize("suffix", [".weight", ".weight_scale", ".weight_scale_2"])
def test_a_wrong_shape_or_dtype_is_named(suffix: str, unpack: Unpacker) -> None:
    layer = nvfp4()(WEIGHTS, np.random.default_rng(1)).tensors
    dtype, shape, _ = layer[suffix]
    for wrong in ((11, *shape[1:]), (*shape, 3), (0,)):
        size = int(np.prod(wrong)) * (4 if dtype == "F32" else 1)
        error = failure(unpack, layer | {suffix: (dtype, wrong, bytes(size))})
        assert isinstance(error, ShapeError)
        assert error.tensor in ("x.weight", "x.weight_scale", "x.weight_scale_2")
    error = failure(unpack, layer | {suffix: ("I64", shape, bytes(8 * int(np.prod(shape))))})
    assert (type(error), error.tensor) == (FormatError, f"x{suffix}")


def test_smoothed_inputs_are_refused(unpack: Unpacker) -> None:
    layer = nvfp4()(WEIGHTS, np.random.default_rng(1)).tensors
    error = failure(unpack, layer | {".pre_quant_scale": f32(np.ones(128, np.float32))})
    assert error.tensor == "x.pre_quant_scale"


def test_packed_and_plain(unpack: Unpacker) -> None:
    layer = {
        f".a{key}": value
        for key, value in nvfp4("compressed-tensors")(WEIGHTS, np.random.default_rng(1)).tensors.items()
    }
    tensors = unpack.checkpoint({f"x{key}": value for key, value in layer.items()})
    assert not PACKING.recognises({}, tensors)
    assert not PACKING.recognises({}, unpack.checkpoint({"x.weight": octets([1], 1)}))
