"""GPTQ layers, packed by a straightforward packer, give exactly the packer's weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from packed_folders import PackedLayer, Unpacker, gptq, int32, rows_of, words_of

from qconv.errors import FormatError, MissingTensorError, QconvError, ShapeError
from qconv.formats.packed.gptq import PACKING

WEIGHTS = np.random.default_rng(3).standard_normal((64, 96)).astype(np.float32)


def packed(weights: np.ndarray = WEIGHTS, **options: Any) -> PackedLayer:
    return gptq(**options)(weights, np.random.default_rng(1))


def settings(bits: int, group_size: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group_size} | more


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2", "gptq_p"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_weights_are_the_packers(bits: int, layout: str, unpack: Unpacker) -> None:
    if bits in (5, 6, 7):
        layout = "gptq_p"  # the only form that has these
    layer = packed(bits=bits, group_size=32, layout=layout)
    found = unpack(PACKING, layer.tensors, settings(bits, 32, checkpoint_format=layout))
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights)
    assert set(found.tensors) == {"x.weight"}
    assert found.facts == {"bits": bits, "group_size": 32, "layout": layout}
    assert found.summary == f"{bits} bits, groups of 32"


@pytest.mark.parametrize("declared", [None, "gptq", "gptq_v2", "gptq_p"])
@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("bits", [5, 6, 7])
def test_some_widths_are_planar_whatever_is_declared(
    bits: int, sym: bool, declared: str | None, unpack: Unpacker
) -> None:
    layer = packed(bits=bits, group_size=32, layout="gptq_p", sym=sym)
    given = settings(bits, 32, sym=sym) | ({} if declared is None else {"checkpoint_format": declared})
    np.testing.assert_array_equal(rows_of(unpack(PACKING, layer.tensors, given).tensors["x.weight"]), layer.weights)


@pytest.mark.parametrize("dtype", ["I8", "I16", "I64"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
def test_words_of_other_sizes(layout: str, bits: int, dtype: str, unpack: Unpacker) -> None:
    """A word of any size holds codes from its lowest bits on, down the inputs in one tensor and along the outputs in the other."""
    layer = packed(bits=bits, group_size=32, layout=layout)
    size = {"I8": 1, "I16": 2, "I64": 8}[dtype]

    def down(name: str) -> NDArray[np.uint8]:
        _, shape, data = layer.tensors[name]
        words = np.frombuffer(data, "<u4").reshape(shape)
        return np.ascontiguousarray(words.T if name == ".qweight" else words).view(np.uint8)

    weights = down(".qweight").view(f"<i{size}").T  # (words, outputs)
    zeros = down(".qzeros").view(f"<i{size}")
    tensors = layer.tensors | {
        ".qweight": (dtype, weights.shape, np.ascontiguousarray(weights).tobytes()),
        ".qzeros": (dtype, zeros.shape, zeros.tobytes()),
    }
    tensor = unpack(PACKING, tensors, settings(bits, 32, checkpoint_format=layout)).tensors["x.weight"]
    np.testing.assert_array_equal(rows_of(tensor), layer.weights)
    np.testing.assert_array_equal(rows_of(tensor, 13, 41), layer.weights[13:41])


@pytest.mark.parametrize("group_size", [-1, 96, 16, 40])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("with_g_idx", [False, True])
def test_groups(group_size: int, act_order: bool, with_g_idx: bool, unpack: Unpacker) -> None:
    act_order = act_order and with_g_idx  # reordered groups cannot be told without the index
    layer = packed(bits=4, group_size=group_size, act_order=act_order, with_g_idx=with_g_idx)
    found = unpack(PACKING, layer.tensors, settings(4, group_size))
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights)


def test_an_index_of_zeros_means_consecutive_groups(unpack: Unpacker) -> None:
    layer = packed(bits=4, group_size=32)
    zeros = int32(np.zeros(96, np.uint32))
    found = unpack(PACKING, layer.tensors | {".g_idx": zeros}, settings(4, 32))
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_scales_of_every_dtype(dtype: str, unpack: Unpacker) -> None:
    layer = packed(bits=8, group_size=32, scales_dtype=dtype)
    assert layer.tensors[".scales"][0] == dtype
    found = unpack(PACKING, layer.tensors, settings(8, 32))
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_zero_point_of_zero_in_the_first_format_does_not_carry(bits: int, unpack: Unpacker) -> None:
    """Stored less one, it is all ones; each field counts by itself."""
    weights = np.abs(WEIGHTS)
    weights[1::2] *= -1  # zero points of 0 beside others
    layer = packed(weights, bits=bits, group_size=32)
    top = (1 << bits) - 1
    assert int(np.frombuffer(layer.tensors[".qzeros"][2], "<u4")[0]) & top == top
    found = unpack(PACKING, layer.tensors, settings(bits, 32))
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights)


def test_zero_words_flooded_by_an_unmasked_minus_one(unpack: Unpacker) -> None:
    """AutoGPTQ packs -1 into a word without masking: all fields above are ones too, and so zero points of 0."""
    layer = packed(bits=4, group_size=96)
    words = np.array([words_of([6] * 64, 4)], np.uint32)
    words[0, 2] = 0xFFFFFFF6
    tensors = layer.tensors | {".qzeros": int32(words), ".scales": ("F32", (1, 64), np.ones(64, "<f4").tobytes())}
    found = rows_of(unpack(PACKING, tensors, settings(4, -1)).tensors["x.weight"])
    zeros = np.full(64, 7)
    zeros[17:24] = 0
    codes = rows_of(unpack(PACKING, tensors, settings(4, -1, checkpoint_format="gptq_v2")).tensors["x.weight"])
    stored = np.full(64, 6)
    stored[17:24] = 15
    np.testing.assert_array_equal(found, codes + stored[:, None] - zeros[:, None])


@pytest.mark.parametrize("declared", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("held", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits", [3, 4])
def test_symmetric_zero_points_tell_the_format(bits: int, held: str, declared: str, unpack: Unpacker) -> None:
    layer = packed(bits=bits, group_size=32, layout=held, sym=True)
    found = unpack(PACKING, layer.tensors, settings(bits, 32, checkpoint_format=declared, sym=True))
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights)
    assert any(f"format {held}" in note for note in found.notes) == (held != declared)
    assert found.facts["layout"] == held


def test_the_words_of_symmetric_models() -> None:
    """The zero words that other programs know a symmetric model by."""
    known = {("gptq", 4): 0x77777777, ("gptq", 8): 0x7F7F7F7F, ("gptq", 2): 0x55555555}
    known |= {("gptq_v2", 4): 0x88888888, ("gptq_v2", 8): 0x80808080, ("gptq_v2", 2): 0xAAAAAAAA}
    for (layout, bits), word in known.items():
        layer = packed(bits=bits, group_size=32, layout=layout, sym=True)
        assert set(np.frombuffer(layer.tensors[".qzeros"][2], "<u4")) == {word}


def test_any_rows_from_any_thread(unpack: Unpacker) -> None:
    layer = packed(bits=3, group_size=32, act_order=True)
    tensor = unpack(PACKING, layer.tensors, settings(3, 32)).tensors["x.weight"]
    spans = [(start, stop) for start in range(0, 64, 5) for stop in (start, start + 1, min(64, start + 37))]
    with ThreadPoolExecutor(4) as pool:
        for (start, stop), rows in zip(spans, pool.map(lambda span: rows_of(tensor, *span), spans), strict=True):
            np.testing.assert_array_equal(rows, layer.weights[start:stop])


def test_modules_may_differ_where_the_settings_say_so(unpack: Unpacker) -> None:
    layer = packed(bits=8, group_size=16)
    with pytest.raises(ShapeError, match="8 bits each and not 4 bits"):
        unpack(PACKING, layer.tensors, settings(4, 32))
    mixed = settings(4, 32, dynamic={"x": {"bits": 8, "group_size": 16}})
    found = unpack(PACKING, layer.tensors, mixed)
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights)
    assert found.facts["bits"] == 8


def test_without_settings_the_shapes_tell(unpack: Unpacker) -> None:
    layer = packed(bits=2, group_size=32, with_g_idx=False)
    found = unpack(PACKING, layer.tensors, {})
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights)


@pytest.mark.parametrize("with_g_idx", [True, False])
def test_without_settings_a_last_group_may_be_shorter(with_g_idx: bool, unpack: Unpacker) -> None:
    """64 and 32 of 96 inputs, not twice 48, which no quantizer offers; 32 times 3 and 16 of 112."""
    layer = packed(bits=4, group_size=64, with_g_idx=with_g_idx)
    found = unpack(PACKING, layer.tensors, {})
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights)
    assert found.facts["group_size"] == 64
    odd = np.random.default_rng(3).standard_normal((64, 112)).astype(np.float32)
    layer = gptq(4, 32, with_g_idx=with_g_idx)(odd, np.random.default_rng(4))
    found = unpack(PACKING, layer.tensors, {})
    np.testing.assert_array_equal(rows_of(found.tensors["x.weight"]), layer.weights)


def failure(unpack: Unpacker, kind: type[QconvError], tensors: dict[str, Any], given: dict[str, Any]) -> QconvError:
    with pytest.raises(kind) as caught:
        rows_of(unpack(PACKING, tensors, given).tensors["x.weight"])
    return caught.value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bits": 9}, "bits: 9, which must be 2, 3, 4, 5, 6, 7 or 8"),
        ({"bits": "4"}, "bits: '4'"),
        ({"group_size": 0}, "group_size: 0, which must be a number of weights above 0, or -1"),
        ({"group_size": 10**30}, "group_size: 1000"),
        ({"group_size": True}, "group_size: True"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format: 'marlin', and qconv reads gptq, gptq_v2, gptq_p"),
        ({"is_marlin_format": True}, "marlin"),
        ({"checkpoint_format": ["x"]}, "checkpoint_format"),
    ],
)
def test_impossible_settings_name_the_key(change: dict[str, Any], words: str, unpack: Unpacker) -> None:
    layer = packed(bits=4, group_size=32)
    error = failure(unpack, FormatError, layer.tensors, settings(4, 32) | change)
    assert f"quantization_config has {words}" in str(error) or words in str(error)
    assert error.remedy


def test_marlins_tensors_are_refused_by_name(unpack: Unpacker) -> None:
    tensors = {".B": int32(np.zeros((6, 128), np.uint32)), ".s": ("F16", (3, 64), bytes(384))}
    stored = unpack.checkpoint({f"x{suffix}": value for suffix, value in tensors.items()})
    assert PACKING.recognises({"quantization_config": settings(4, 32)}, stored)
    assert "checkpoint_format: 'marlin'" in str(failure(unpack, FormatError, tensors, settings(4, 32)))


@pytest.mark.parametrize("suffix", [".qzeros", ".scales"])
def test_a_missing_tensor_is_named(suffix: str, unpack: Unpacker) -> None:
    tensors = {key: value for key, value in packed(bits=4, group_size=32).tensors.items() if key != suffix}
    assert failure(unpack, MissingTensorError, tensors, settings(4, 32)).tensor == f"x{suffix}"


@pytest.mark.parametrize("suffix", [".qweight", ".qzeros", ".scales", ".g_idx"])
def test_a_wrong_shape_is_named(suffix: str, unpack: Unpacker) -> None:
    layer = packed(bits=4, group_size=32)
    dtype, shape, data = layer.tensors[suffix]
    item = len(data) // int(np.prod(shape))
    wrongs = [(shape[0] + 1, *shape[1:]), (shape[0] - 1, *shape[1:]), (0, *shape[1:]), (), (1, *shape)]
    if len(shape) == 2:
        wrongs += [(shape[0], shape[1] + 1), (shape[0], 0), (shape[1] * 2, shape[0])]
    for wrong in wrongs:
        tensors = layer.tensors | {suffix: (dtype, wrong, bytes(int(np.prod(wrong)) * item))}
        error = failure(unpack, ShapeError, tensors, settings(4, 32))
        assert error.tensor is not None
        assert error.path is not None


@pytest.mark.parametrize("suffix", [".qweight", ".qzeros", ".scales", ".g_idx"])
def test_a_wrong_dtype_is_named(suffix: str, unpack: Unpacker) -> None:
    layer = packed(bits=4, group_size=32)
    _, shape, data = layer.tensors[suffix]
    size = int(np.prod(shape))
    tensors = layer.tensors | {suffix: ("U8", shape, data[:size])}
    error = failure(unpack, FormatError, tensors, settings(4, 32))
    assert (error.tensor, "its dtype is U8" in error.message) == (f"x{suffix}", True)


@pytest.mark.parametrize("value", [-1, 3, 1 << 30])
def test_an_input_in_no_group_is_named(value: int, unpack: Unpacker) -> None:
    layer = packed(bits=4, group_size=32)
    index = np.arange(96, dtype=np.int32) // 32
    index[41] = value
    error = failure(unpack, FormatError, layer.tensors | {".g_idx": int32(index.view(np.uint32))}, settings(4, 32))
    assert error.tensor == "x.g_idx"
    assert f"puts input 41 into group {value}, and x.scales has 3 groups" in error.message


def test_the_group_size_must_fit_the_scales(unpack: Unpacker) -> None:
    layer = packed(bits=4, group_size=32)
    error = failure(unpack, ShapeError, layer.tensors, settings(4, 64))
    assert error.tensor == "x.scales"
    assert "3 groups for 96 inputs, and group_size in quantization_config is 64" in error.message


def test_a_layer_cannot_be_packed_and_plain(unpack: Unpacker) -> None:
    layer = packed(bits=4, group_size=32)
    plain = ("F32", (64, 96), WEIGHTS.tobytes())
    error = failure(unpack, FormatError, layer.tensors | {".weight": plain}, settings(4, 32))
    assert error.tensor == "x.weight"
