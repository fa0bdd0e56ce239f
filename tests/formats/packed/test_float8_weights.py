"""FP8 weights under scales of every form are the products that their packer computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from packed_floats import E4M3, f32, float8, float8_blocks, mxfp4_codes, octets
from packed_folders import PackedLayer, Unpacker, rows_of

from qconv.errors import FormatError, QconvError, ShapeError
from qconv.formats.base import Tensor
from qconv.formats.packed import PACKINGS
from qconv.formats.packed.float8_weights import PACKING

WEIGHTS = np.random.default_rng(3).standard_normal((40, 72)).astype(np.float32)
LARGEST = 1 << 30


def packed(block: tuple[int, int], suffix: str = ".weight_scale_inv", dtype: str = "F32") -> PackedLayer:
    return float8_blocks(block, suffix, dtype)(WEIGHTS, np.random.default_rng(1))


def settings(*block: int) -> dict[str, Any]:
    return {"quant_method": "fp8", **({"weight_block_size": list(block)} if block else {})}


@pytest.mark.parametrize("block", [(16, 16), (16, 32), (1, 72), (40, 72), (24, 40), (40, 1), (1, 1)])
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F8_E8M0", "U8"])
def test_weights_are_the_packers(block: tuple[int, int], dtype: str, unpack: Unpacker) -> None:
    layer = packed(block, dtype=dtype)
    found = unpack(PACKING, layer.tensors, settings(*block))
    tensor = found.tensors["x.weight"]
    assert isinstance(tensor, Tensor)
    assert tensor.encoding.name == ("BF16" if dtype in ("F8_E8M0", "U8") else "F32")
    np.testing.assert_array_equal(rows_of(tensor), layer.weights)
    for start, stop in ((0, 1), (3, 3), (15, 17), (39, 40), (7, 38)):
        np.testing.assert_array_equal(tensor.rows(start, stop), layer.weights[start:stop])
    assert found.summary == f"E4M3, blocks of {block[0]} × {block[1]}"
    assert set(found.tensors) == {"x.weight"}


@pytest.mark.parametrize("block", [(16, 16), (32, 16), (1, 72), (40, 72)])
def test_the_size_of_blocks_follows_from_shapes(block: tuple[int, int], unpack: Unpacker) -> None:
    layer = packed(block)
    for said in (settings(), settings(128, 128), {}):
        found = unpack(PACKING, layer.tensors, said)
        np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights)


@pytest.mark.parametrize("dtype", ["U8", "F8_E8M0"])
@pytest.mark.parametrize("suffix", [".weight_scale", ".weight_scale_inv"])
def test_mxfp8_has_a_power_of_two_for_32_weights(suffix: str, dtype: str, unpack: Unpacker) -> None:
    weights = np.random.default_rng(7).standard_normal((24, 352)).astype(np.float32)
    layer = float8_blocks((1, 32), suffix, dtype)(weights, np.random.default_rng(1))
    stored = unpack.checkpoint({f"x{key}": value for key, value in layer.tensors.items()})
    given = {"quant_method": "mxfp8"}
    assert PACKING.recognises({"quantization_config": given}, stored)
    found = unpack(PACKING, layer.tensors, given)
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights)


def test_scales_may_be_padded(unpack: Unpacker) -> None:
    layer = packed((16, 16))
    _, (rows, columns), data = layer.tensors[".weight_scale_inv"]
    grid = np.full((4, 8), np.nan, np.float32)
    grid[:rows, :columns] = np.frombuffer(data, np.float32).reshape(rows, columns)
    found = unpack(PACKING, layer.tensors | {".weight_scale_inv": f32(grid)}, settings(16, 16))
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights)


@pytest.mark.parametrize("suffix", [".weight_scale_inv", ".weight_scale", ".scale", ".qscale_weight"])
def test_names_of_scales(suffix: str, unpack: Unpacker) -> None:
    layer = packed((16, 16), suffix)
    found = unpack(PACKING, layer.tensors | {".input_scale": f32(np.ones(1, np.float32))}, settings(16, 16))
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights)
    assert set(found.tensors) == {"x.weight"}


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_scale_for_a_tensor(shape: tuple[int, ...], unpack: Unpacker) -> None:
    layer = packed((40, 72), ".weight_scale")
    dtype, _, data = layer.tensors[".weight_scale"]
    found = unpack(PACKING, layer.tensors | {".weight_scale": (dtype, shape, data)}, settings())
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights)


def test_one_scale_for_a_row_as_a_vector(unpack: Unpacker) -> None:
    layer = packed((1, 72), ".weight_scale")
    dtype, _, data = layer.tensors[".weight_scale"]
    found = unpack(PACKING, layer.tensors | {".weight_scale": (dtype, (40,), data)}, settings())
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights)


@pytest.mark.parametrize("grid", [(5, 2, 3), (5,), (5, 1), (5, 1, 1), (5, 24), (5, 24, 1), ()])
def test_stacks_of_matrices(grid: tuple[int, ...], unpack: Unpacker) -> None:
    rng = np.random.default_rng(8)
    shape = (5, 24, 40)
    codes = rng.integers(0, 127, shape)
    scales = rng.uniform(0.5, 2, grid).astype(np.float32)
    expected = np.zeros(shape, np.float32)
    for e in range(5):
        for n in range(24):
            for k in range(40):
                place: tuple[int, ...] = (e, n // 16, k // 16)
                if grid != (5, 2, 3):
                    place = tuple(index if size > 1 else 0 for index, size in zip((e, n, k), grid, strict=False))
                expected[e, n, k] = np.float32(E4M3[codes[e, n, k]]) * scales[place]
    layer = {
        ".experts.up": octets(codes.reshape(-1).tolist(), *shape, dtype="F8_E4M3"),
        ".experts.up_scale_inv": f32(scales),
    }
    tensor = unpack(PACKING, layer, settings(16, 16)).tensors["x.experts.up"]
    assert isinstance(tensor, Tensor)
    flat = expected.reshape(-1, 40)
    np.testing.assert_array_equal(rows_of(tensor), flat)
    for start, stop in ((20, 30), (23, 25), (0, 120), (95, 97), (119, 120)):
        np.testing.assert_array_equal(tensor.rows(start, stop), flat[start:stop])


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_weights_without_scales_count_as_they_are(dtype: str, unpack: Unpacker) -> None:
    codes = [code for code in range(256) if np.isfinite(float8(code, 4 if dtype == "F8_E4M3" else 5))]
    layer = {".weight": octets(codes, 1, len(codes), dtype=dtype), ".bias": f32(np.ones(3, np.float32))}
    found = unpack(PACKING, layer, {"quant_method": "fp8"})
    expected = [float8(code, 4 if dtype == "F8_E4M3" else 5) for code in codes]
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), [np.array(expected, np.float32)])
    assert set(found.tensors) == {"x.weight", "x.bias"}


def test_experts_of_four_bits_are_kept_as_mxfp4(unpack: Unpacker) -> None:
    weights = np.random.default_rng(3).standard_normal((6, 64)).astype(np.float32)
    packed_codes, scales, exact = mxfp4_codes(weights)
    layer = {
        ".weight": octets(packed_codes, 6, 32, dtype="I8"),
        ".scale": octets(scales, 6, 2, dtype="F8_E8M0"),
        ".other.weight": octets([0x38] * 4, 2, 2, dtype="F8_E4M3"),
    }
    tensor = unpack(PACKING, layer, settings()).tensors["x.weight"]
    assert isinstance(tensor, Tensor)
    assert tensor.encoding.name == "MXFP4"
    np.testing.assert_array_equal(rows_of(tensor), exact)


def failure(unpack: Unpacker, layer: Any, said: dict[str, Any]) -> QconvError:
    with pytest.raises(QconvError) as caught:
        unpack(PACKING, layer, said)
    return caught.value


@pytest.mark.parametrize("grid", [(3, 7), (41, 72), (72, 40), (39,), (0, 5), (3, 5, 1), (7,)])
def test_scales_that_fit_nothing_are_named(grid: tuple[int, ...], unpack: Unpacker) -> None:
    layer = packed((16, 16)).tensors | {".weight_scale_inv": f32(np.ones(grid, np.float32))}
    error = failure(unpack, layer, settings(16, 16))
    assert (type(error), error.tensor) == (ShapeError, "x.weight_scale_inv")
    assert error.path is not None


def test_scales_of_a_wrong_dtype_are_named(unpack: Unpacker) -> None:
    layer = packed((16, 16)).tensors | {".weight_scale_inv": ("I32", (3, 5), bytes(60))}
    error = failure(unpack, layer, settings(16, 16))
    assert (type(error), error.tensor) == (FormatError, "x.weight_scale_inv")


@pytest.mark.parametrize("value", [128, [128], [128, 0], [128, -1], ["128", "128"], [True, 128], [1 << 80, 1], {}])
def test_a_block_size_that_is_none_is_named(value: Any, unpack: Unpacker) -> None:
    error = failure(unpack, packed((16, 16)).tensors, {"quant_method": "fp8", "weight_block_size": value})
    assert "weight_block_size" in error.message


def test_the_order_of_packings_leaves_other_folders_to_others(unpack: Unpacker) -> None:
    tensors = unpack.checkpoint({f"x{suffix}": value for suffix, value in packed((16, 16)).tensors.items()})
    assert next(it for it in PACKINGS if it.recognises({}, tensors)) is PACKING
    other = {"quantization_config": {"quant_method": "compressed-tensors"}}
    assert not PACKING.recognises(other, tensors)
