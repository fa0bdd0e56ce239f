"""AWQ layers, packed by a straightforward packer, give exactly the packer's weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from packed_folders import AWQ_ORDER, PackedLayer, Unpacker, awq_gemm, awq_gemv, awq_gemv_fast, float16, int32, rows_of

from qconv.errors import FormatError, MissingTensorError, ModelError, QconvError, ShapeError
from qconv.formats.packed.awq import PACKING

WEIGHTS = np.random.default_rng(3).standard_normal((72, 96)).astype(np.float32)
PACKERS = {"gemm": awq_gemm, "gemv": awq_gemv}


def packed(version: str, group_size: int) -> PackedLayer:
    return PACKERS[version](group_size)(WEIGHTS, np.random.default_rng(1))


def settings(group_size: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True} | more


@pytest.mark.parametrize("group_size", [32, 96, 16, 40])
@pytest.mark.parametrize("version", PACKERS)
def test_weights_are_the_packers(version: str, group_size: int, unpack: Unpacker) -> None:
    layer = packed(version, group_size)
    found = unpack(PACKING, layer.tensors, settings(group_size, version=version))
    tensor = found.tensors["x.weight"]
    np.testing.assert_array_equal(rows_of(tensor), layer.weights)
    for start, stop in ((0, 0), (3, 5), (7, 70), (8, 16), (71, 72), (1, 72)):
        np.testing.assert_array_equal(rows_of(tensor, start, stop), layer.weights[start:stop])
    assert found.facts == {"bits": 4, "group_size": group_size, "layout": version}
    assert found.summary == f"4 bits, groups of {group_size}"


@pytest.mark.parametrize("version", PACKERS)
def test_the_version_is_told_by_the_shapes(version: str, unpack: Unpacker) -> None:
    layer = packed(version, 32)
    given = {"group_size": 32} if version == "gemv" else {}
    found = unpack(PACKING, layer.tensors, given)
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights)


FAST = np.random.default_rng(5).standard_normal((40, 192)).astype(np.float32)
# what AutoAWQ's pack_intweight makes of the codes (3 k k + 5 k + k // 5 + 7 n k + n) mod 16
FAST_WORDS = (
    "c390 5b18 3906 7d4a 18e4 18e5 8e4b 4a17 3906 b18e 906c d4a1 8e4b 8e5b e4b1 a17d "
    "5421 5310 a875 5320 6531 dca9 b976 ecb9 ca97 b986 0fdb ba87 db98 421f 1fec 431f "
    "e5b2 5b18 17e4 3906 b28e 906d e4a1 8e5b 5b28 b18e 7e4a 906d 28e5 06d3 4a17 e5b1 "
    "7643 5310 8653 1fec 0fdb 5421 1fdc 20fd ecb9 b986 edb9 7643 7532 ca97 7542 8753"
)


@pytest.mark.parametrize("group_size", [32, 64, 96, 192])
@pytest.mark.parametrize("version", ["gemv_fast", None])
def test_outputs_by_fours(version: str | None, group_size: int, unpack: Unpacker) -> None:
    layer = awq_gemv_fast(group_size)(FAST, np.random.default_rng(1))
    found = unpack(PACKING, layer.tensors, settings(group_size) | ({"version": version} if version else {}))
    tensor = found.tensors["x.weight"]
    np.testing.assert_array_equal(rows_of(tensor), layer.weights)
    for start, stop in ((0, 0), (3, 5), (7, 38), (8, 16), (39, 40), (1, 40)):
        np.testing.assert_array_equal(rows_of(tensor, start, stop), layer.weights[start:stop])
    assert found.facts["layout"] == "gemv_fast"


def test_outputs_by_fours_as_the_package_packs_them(unpack: Unpacker) -> None:
    words = np.array([int(word, 16) for word in FAST_WORDS.split()], "<u2")
    tensors = {
        ".qweight": ("I16", (1, 64), words.tobytes()),
        ".scales": float16(np.ones((8, 4), np.float32)),
        ".qzeros": float16(np.zeros((8, 4), np.float32)),
    }
    n, k = np.arange(4)[:, None], np.arange(64)
    rows = rows_of(unpack(PACKING, tensors, settings(64, version="gemv_fast")).tensors["x.weight"])
    np.testing.assert_array_equal(rows, (3 * k * k + 5 * k + k // 5 + 7 * n * k + n) % 16)


@pytest.mark.parametrize(
    ("suffix", "shape"), [(".qweight", (10, 96)), (".scales", (8, 36)), (".qzeros", (7, 40)), (".scales", (2, 40))]
)
def test_shapes_of_outputs_by_fours(suffix: str, shape: tuple[int, int], unpack: Unpacker) -> None:
    layer = awq_gemv_fast(64)(FAST, np.random.default_rng(1))
    dtype = layer.tensors[suffix][0]
    changed = layer.tensors | {suffix: (dtype, shape, bytes(2 * shape[0] * shape[1]))}
    error = failure(unpack, ShapeError, changed, settings(64, version="gemv_fast"))
    assert error.tensor in ("x.qweight", "x.scales", "x.qzeros")


def test_one_group_for_all_inputs(unpack: Unpacker) -> None:
    layer = packed("gemm", 96)
    found = unpack(PACKING, layer.tensors, settings(-1))
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights)


def test_the_order_of_outputs_in_a_word(unpack: Unpacker) -> None:
    """Nibble i holds output (0, 2, 4, 6, 1, 3, 5, 7)[i]: a word of 0x76543210 says so itself."""
    tensors = {
        ".qweight": int32([[0x76543210]]),
        ".qzeros": int32([[0]]),
        ".scales": float16(np.ones((1, 8), np.float32)),
    }
    rows = rows_of(unpack(PACKING, tensors, settings(1)).tensors["x.weight"])
    assert [int(rows[output, 0]) for output in AWQ_ORDER] == list(range(8))
    assert rows[:, 0].astype(int).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_scaled_activations_are_divided_out_of_the_next_layer(unpack: Unpacker) -> None:
    """f(x) / s times W is f(x) times W / s."""
    layer = packed("gemm", 32)
    scales = np.linspace(0.25, 4, 96).astype(np.float16).astype(np.float32)
    tensors = {f".mlp.c_proj{suffix}": value for suffix, value in layer.tensors.items()}
    found = unpack(PACKING, tensors | {".mlp.act.scales": float16(scales)}, settings(32))
    assert set(found.tensors) == {"x.mlp.c_proj.weight"}
    np.testing.assert_array_equal(rows_of(found.tensors["x.mlp.c_proj.weight"]), layer.weights / scales)
    with pytest.raises(ModelError, match=r"x\.other\.act\.scales: scales an activation"):
        unpack(PACKING, tensors | {".other.act.scales": float16(scales)}, settings(32))


def failure(unpack: Unpacker, kind: type[QconvError], tensors: dict[str, Any], given: dict[str, Any]) -> QconvError:
    with pytest.raises(kind) as caught:
        rows_of(unpack(PACKING, tensors, given).tensors["x.weight"])
    return caught.value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bits": 5}, "bits: 5, which must be 4"),
        ({"bits": None, "w_bit": 8}, "w_bit: 8, which must be 4"),
        ({"group_size": 0}, "group_size: 0, which must be a number of weights above 0, or -1"),
        ({"version": "llm-awq"}, "version: 'llm-awq', and qconv reads gemm, gemv, gemv_fast"),
        ({"format": "marlin"}, "format: 'marlin'"),
    ],
)
def test_impossible_settings_name_the_key(change: dict[str, Any], words: str, unpack: Unpacker) -> None:
    layer = packed("gemm", 32)
    error = failure(unpack, FormatError, layer.tensors, settings(32) | change)
    assert f"quantization_config has {words}" in str(error)
    assert error.remedy


@pytest.mark.parametrize("suffix", [".qzeros", ".scales"])
def test_a_missing_tensor_is_named(suffix: str, unpack: Unpacker) -> None:
    tensors = {key: value for key, value in packed("gemm", 32).tensors.items() if key != suffix}
    assert failure(unpack, MissingTensorError, tensors, settings(32)).tensor == f"x{suffix}"


@pytest.mark.parametrize("version", PACKERS)
@pytest.mark.parametrize("suffix", [".qweight", ".qzeros", ".scales"])
def test_wrong_shapes_and_dtypes_are_named(suffix: str, version: str, unpack: Unpacker) -> None:
    layer = packed(version, 32)
    dtype, (height, width), data = layer.tensors[suffix]
    item = len(data) // (height * width)
    wrongs: list[tuple[int, ...]] = [(height + 1, width), (0, width), (height, 0), (height * width,)]
    if (version, suffix) != ("gemv", ".qweight"):  # whose groups are padded, so that one more word of inputs fits too
        wrongs.append((height, width + 1))
    for wrong in wrongs:
        tensors = layer.tensors | {suffix: (dtype, wrong, bytes(int(np.prod(wrong)) * item))}
        error = failure(unpack, ShapeError, tensors, settings(32, version=version))
        assert error.tensor is not None
        assert error.path is not None
    tensors = layer.tensors | {suffix: ("U8", (height, width), data[: height * width])}
    error = failure(unpack, FormatError, tensors, settings(32, version=version))
    assert (error.tensor, "its dtype is U8" in error.message) == (f"x{suffix}", True)


@pytest.mark.parametrize("version", PACKERS)
def test_the_group_size_must_fit_the_scales(version: str, unpack: Unpacker) -> None:
    error = failure(unpack, ShapeError, packed(version, 32).tensors, settings(1, version=version))
    assert error.tensor == "x.scales"
    assert "group_size in quantization_config is 1" in error.message
