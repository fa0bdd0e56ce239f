"""compressed-tensors layers give exactly their packer's weights, rounded to the dtype of the scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from packed_floats import bf16, f32, float8_blocks, mxfp4, nvfp4, octets, word_integers
from packed_folders import PackedLayer, Packer, Unpacker, int32, rows_of

from qconv.errors import FormatError, MissingTensorError, QconvError, ShapeError
from qconv.formats.base import Tensor
from qconv.formats.packed.compressed_tensors import PACKING

WEIGHTS = np.random.default_rng(3).standard_normal((34, 96)).astype(np.float32)


def packed(packer: Packer, weights: np.ndarray = WEIGHTS) -> PackedLayer:
    return packer(weights, np.random.default_rng(1))


def settings(form: str, **weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dense", [True, False])
def test_packed_integers(bits: int, symmetric: bool, dense: bool, unpack: Unpacker) -> None:
    layer = packed(word_integers(bits, 32, symmetric, dense))
    told, silent = (
        settings("pack-quantized", num_bits=bits, type="int", group_size=32),
        {"quant_method": "compressed-tensors"},
    )
    # four fields of 7 bits in a word look like four of 8
    for said in (told, silent) if dense or bits != 7 else (told,):
        found = unpack(PACKING, layer.tensors, said)
        tensor = found.tensors["x.weight"]
        assert isinstance(tensor, Tensor)
        assert tensor.encoding.name == "BF16"
        np.testing.assert_array_equal(rows_of(tensor), layer.weights)
        assert set(found.tensors) == {"x.weight"}
        assert found.summary == f"{bits}-bit integers, packed"
        for start, stop in ((0, 1), (5, 5), (7, 19), (31, 34), (33, 34)):
            np.testing.assert_array_equal(tensor.rows(start, stop), layer.weights[start:stop])


@pytest.mark.parametrize("group", [None, 96, 16, 48])
@pytest.mark.parametrize("act_order", [False, True])
def test_groups(group: int | None, act_order: bool, unpack: Unpacker) -> None:
    layer = packed(word_integers(4, group, act_order=act_order))
    found = unpack(PACKING, layer.tensors, settings("pack-quantized", num_bits=4, type="int", group_size=group))
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights)


def test_an_index_as_initialised_means_groups_in_order(unpack: Unpacker) -> None:
    layer = packed(word_integers(4, 32))
    index = int32(np.full(96, 0xFFFFFFFF, np.uint32))
    found = unpack(PACKING, layer.tensors | {".weight_g_idx": index}, settings("pack-quantized", num_bits=4))
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights)


def test_a_column_in_no_group_is_named(unpack: Unpacker) -> None:
    layer = packed(word_integers(4, 32))
    index = np.arange(96, dtype=np.uint32) // 32
    index[41] = 3
    tensor = unpack(PACKING, layer.tensors | {".weight_g_idx": int32(index)}, {}).tensors["x.weight"]
    with pytest.raises(FormatError, match="puts column 41 into group 3") as caught:
        rows_of(tensor)
    assert caught.value.tensor == "x.weight_g_idx"


@pytest.mark.parametrize("block", [(1, 96), (1, 32), (16, 32), (34, 96)])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_float_quantized(block: tuple[int, int], dtype: str, unpack: Unpacker) -> None:
    layer = packed(float8_blocks(block, ".weight_scale", dtype))
    said = settings("float-quantized", num_bits=8, type="float", block_structure=list(block))
    tensor = unpack(PACKING, layer.tensors, said).tensors["x.weight"]
    assert isinstance(tensor, Tensor)
    assert tensor.encoding.name == dtype
    expected = layer.weights
    if dtype == "BF16":
        expected = tensor.encoding.decode(tensor.encoding.encode(expected))
    np.testing.assert_array_equal(rows_of(tensor), expected)


@pytest.mark.parametrize("zeros", [False, True])
def test_int_quantized(zeros: bool, unpack: Unpacker) -> None:
    rng = np.random.default_rng(5)
    codes = rng.integers(-128, 128, (6, 40))
    scales = (rng.integers(1, 256, (6, 1)) / 2.0**16).astype(np.float32)  # 8 bits, as BF16 has
    offsets = rng.integers(-128, 128, (6, 1)) * zeros
    layer = {
        ".weight": octets(codes.reshape(-1).tolist(), 6, 40, dtype="I8"),
        ".weight_scale": bf16(scales),
        **({".weight_zero_point": octets(offsets.reshape(-1).tolist(), 6, 1, dtype="I8")} if zeros else {}),
    }
    found = unpack(PACKING, layer, settings("int-quantized", num_bits=8, type="int"))
    tensor = found.tensors["x.weight"]
    assert isinstance(tensor, Tensor)
    exact = ((codes - offsets) * scales).astype(np.float32)
    np.testing.assert_array_equal(rows_of(tensor), tensor.encoding.decode(tensor.encoding.encode(exact)))
    assert tensor.encoding.name == "BF16"
    assert set(found.tensors) == {"x.weight"}
    assert found.summary == "8-bit integers"


def test_nvfp4_is_kept_with_its_scale_beside_it(unpack: Unpacker) -> None:
    layer = packed(nvfp4("compressed-tensors"), WEIGHTS[:, :64].copy())
    found = unpack(PACKING, layer.tensors | {".input_global_scale": f32(np.ones(1, np.float32))}, {})
    tensor = found.tensors["x.weight"]
    assert isinstance(tensor, Tensor)
    assert tensor.encoding.name == "NVFP4"
    np.testing.assert_array_equal(rows_of(tensor), layer.weights)
    divisor = np.frombuffer(layer.tensors[".weight_global_scale"][2], np.float32)
    np.testing.assert_array_equal(rows_of(found.scales["x.weight"]), [np.float32(1) / divisor])
    assert set(found.tensors) == {"x.weight"}


def test_nvfp4_in_rows_of_no_whole_blocks_is_restored(unpack: Unpacker) -> None:
    layer = packed(nvfp4("compressed-tensors"))
    found = unpack(PACKING, layer.tensors, {})
    divisor = np.frombuffer(layer.tensors[".weight_global_scale"][2], np.float32)
    assert not found.scales
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights * (np.float32(1) / divisor))


def test_mxfp4_is_kept(unpack: Unpacker) -> None:
    layer = packed(mxfp4)
    tensor = unpack(PACKING, layer.tensors, {}).tensors["x.weight"]
    assert isinstance(tensor, Tensor)
    assert tensor.encoding.name == "MXFP4"
    np.testing.assert_array_equal(tensor.rows(3, 17), layer.weights[3:17])


def failure(unpack: Unpacker, layer: Any, said: dict[str, Any] | None = None) -> QconvError:
    with pytest.raises(QconvError) as caught:
        unpack(PACKING, layer, said or settings("pack-quantized", num_bits=4, type="int", group_size=32))
    return caught.value


@pytest.mark.parametrize(
    "suffix", [".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point", ".weight_g_idx"]
)
def test_a_wrong_shape_or_dtype_is_named(suffix: str, unpack: Unpacker) -> None:
    layer = packed(word_integers(4, 32, symmetric=False, act_order=True)).tensors
    dtype, shape, data = layer[suffix]
    item = len(data) // int(np.prod(shape))
    for wrong in ((shape[0] + 1, *shape[1:]), (shape[0] - 1, *shape[1:]), (0, *shape[1:]), (), (1, *shape)):
        error = failure(unpack, layer | {suffix: (dtype, wrong, bytes(int(np.prod(wrong)) * item))})
        assert error.tensor is not None
        assert error.path is not None
    error = failure(unpack, layer | {suffix: ("BOOL", shape, bytes(int(np.prod(shape))))})
    assert (error.tensor, "its dtype is BOOL" in error.message) == (f"x{suffix}", True)


@pytest.mark.parametrize("sizes", [(0, 96), (34, -96), (1 << 40, 96), (34, 1 << 62), (35, 96), (34, 97)])
def test_a_shape_that_lies(sizes: tuple[int, int], unpack: Unpacker) -> None:
    layer = packed(word_integers(4, 32)).tensors
    error = failure(unpack, layer | {".weight_shape": ("I64", (2,), np.array(sizes, "<i8").tobytes())})
    assert error.tensor is not None
    assert error.tensor.startswith("x.weight_")


@pytest.mark.parametrize("suffix", [".weight_scale", ".weight_shape"])
def test_a_missing_tensor_is_named(suffix: str, unpack: Unpacker) -> None:
    layer = packed(word_integers(4, 32)).tensors
    error = failure(unpack, {key: value for key, value in layer.items() if key != suffix})
    assert (type(error), error.tensor) == (MissingTensorError, f"x{suffix}")


def test_groups_that_do_not_divide_the_columns(unpack: Unpacker) -> None:
    layer = packed(word_integers(4, 32)).tensors
    error = failure(unpack, layer | {".weight_scale": bf16(np.ones((34, 50), np.float32))})
    assert (type(error), error.tensor) == (ShapeError, "x.weight_scale")
    assert "50 groups" in error.message


def test_a_width_that_fits_several_numbers_of_bits(unpack: Unpacker) -> None:
    layer = {
        ".weight_packed": int32([[1]]),
        ".weight_scale": bf16(np.ones((1, 1), np.float32)),
        ".weight_shape": ("I64", (2,), np.array([1, 4], "<i8").tobytes()),
    }
    assert "num_bits" in str(failure(unpack, layer, {"quant_method": "compressed-tensors"}))
    unpack(PACKING, layer, settings("pack-quantized", num_bits=8))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "marlin-24"}, "format: 'marlin-24'"),
        ({"format": ["pack-quantized"]}, "format: "),
        ({"config_groups": {"g": {"format": "sparse-bitmask"}}}, "config_groups.g.format: 'sparse-bitmask'"),
        ({"config_groups": [1]}, "config_groups that are no object"),
        ({"config_groups": {"g": {"weights": {"num_bits": "4"}}}}, "config_groups.g.weights.num_bits: '4'"),
        ({"config_groups": {"g": {"weights": {"num_bits": 1 << 70}}}}, "config_groups.g.weights.num_bits"),
        ({"config_groups": {"g": {"weights": {"group_size": True}}}}, "config_groups.g.weights.group_size"),
        ({"config_groups": {"g": {"weights": {"block_structure": [128]}}}}, "config_groups.g.weights.block_structure"),
        ({"config_groups": {"g": {"weights": {"block_structure": "0x128"}}}}, "config_groups.g.weights.block_structure"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config.format"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_read_name_the_key(change: dict[str, Any], words: str, unpack: Unpacker) -> None:
    layer = packed(word_integers(4, 32)).tensors
    error = failure(unpack, layer, settings("pack-quantized", num_bits=4) | change)
    assert isinstance(error, FormatError)
    assert words in error.message
    assert error.remedy


def test_zero_points_of_four_bit_floats_are_refused(unpack: Unpacker) -> None:
    layer = packed(mxfp4).tensors | {".weight_zero_point": bf16(np.ones((34, 3), np.float32))}
    assert failure(unpack, layer).tensor == "x.weight_zero_point"


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf, 1e-45])
def test_a_global_scale_by_which_nothing_can_be_divided(value: float, unpack: Unpacker) -> None:
    layer = packed(nvfp4("compressed-tensors"), WEIGHTS[:, :64].copy()).tensors
    scale = f32(np.array([value], np.float32))
    assert failure(unpack, layer | {".weight_global_scale": scale}).tensor == "x.weight_global_scale"
