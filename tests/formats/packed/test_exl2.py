"""EXL2 layers, packed by a straightforward packer, give all 16 bits of the packer's weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from huggingface_folder import Stored
from packed_folders import PackedLayer, Unpacker, exl2, float16, int32, rows_of, words_of

from qconv.errors import FormatError, MissingTensorError, QconvError, ShapeError
from qconv.formats.base import Tensor
from qconv.formats.packed.exl2 import PACKING

WEIGHTS = np.zeros((64, 128), np.float32)  # the packer draws codes of its own
Mix = Callable[[int], Sequence[tuple[int, int]]]
MIXES: dict[str, Mix] = {
    "8/4/3": lambda inputs: [(8, 32), (4, 32), (3, inputs - 64)],
    "6/5/4/3/2": lambda inputs: [(6, 32), (5, 32), (4, 32), (3, 32), (2, inputs - 128)],
    "8/6": lambda inputs: [(8, 64), (6, inputs - 64)],
    "4": lambda inputs: [(4, 32)] * (inputs // 32),
    "3/2": lambda inputs: [(3, 64), (2, inputs - 64)],
    "a tail of 16": lambda inputs: [(5, 32), (2, 64), (2, inputs - 96)],
}
SUBNORMAL, ZERO = 1e-3, 1e-9


def packed(mix: str = "8/4/3", scale: float = 1.0, weights: np.ndarray = WEIGHTS) -> PackedLayer:
    inputs = {"6/5/4/3/2": 160, "a tail of 16": 112}.get(mix, 128)
    return exl2(MIXES[mix], scale)(weights[:, :1].repeat(inputs, axis=1), np.random.default_rng(1))


@pytest.mark.parametrize("scale", [1.0, 0.05, SUBNORMAL, ZERO])
@pytest.mark.parametrize("mix", MIXES)
def test_weights_are_the_packers(mix: str, scale: float, unpack: Unpacker) -> None:
    layer = packed(mix, scale)
    found = unpack(PACKING, layer.tensors, {"quant_method": "exl2"})
    tensor = found.tensors["x.weight"]
    assert isinstance(tensor, Tensor)
    assert tensor.encoding.name == "F16"
    bits = tensor.read(0, 64).view("<u2")
    np.testing.assert_array_equal(bits, layer.weights.astype(np.float16).view(np.uint16))
    if scale == SUBNORMAL:
        assert np.count_nonzero(layer.weights) > 0
        assert np.frombuffer(layer.tensors[".q_scale_max"][2], "<f2").max() / 256 < 2.0**-14


def test_subnormal_steps_are_rounded_as_the_runtime_rounds_them(unpack: Unpacker) -> None:
    """A largest scale of 0.0007 divided by 256 leaves 46 steps of 2^-24: 0.27 % more than the exact quotient."""
    largest = np.float16(0.0007)
    codes = [3] + [2] * 15  # 2 bits: the middle code is 2
    tensors = {
        ".q_weight": int32([[words_of(codes, 2)[0]] * 32]),
        ".q_scale": int32([[0xFFFFFFFF] * 4]),
        ".q_scale_max": float16(np.array([largest])),
        ".q_groups": ("I16", (2,), np.array([2, 0], "<i2").tobytes()),
        ".q_invperm": int32(np.arange(16, dtype=np.uint32)),
    }
    rows = rows_of(unpack(PACKING, tensors, {}).tensors["x.weight"])
    assert float(rows[0, 0]) == 46 * 2.0**-24 * 256
    assert float(rows[0, 0]) / float(largest) == pytest.approx(1.0027, abs=2e-4)
    assert not rows[:, 1:].any()


@pytest.mark.parametrize("root", range(16))
def test_the_grid_of_scales_is_quadratic(root: int, unpack: Unpacker) -> None:
    tensors = {
        ".q_weight": int32([[words_of([9] * 8, 4)[0]] * 32] * 4),
        ".q_scale": int32([[words_of([root] * 8, 4)[0]] * 4]),
        ".q_scale_max": float16(np.array([256.0], np.float32)),
        ".q_groups": ("I16", (2,), np.array([4, 0], "<i2").tobytes()),
        ".q_invperm": int32(np.arange(32, dtype=np.uint32)),
    }
    rows = rows_of(unpack(PACKING, tensors, {}).tensors["x.weight"])
    np.testing.assert_array_equal(rows, np.full((32, 32), (root + 1) ** 2))


def test_outputs_are_padded(unpack: Unpacker) -> None:
    layer = packed(weights=WEIGHTS[:40])
    found = unpack(PACKING, layer.tensors, {})
    tensor = found.tensors["x.weight"]
    assert (tensor.shape, found.row_padding) == ((64, 128), 32)
    np.testing.assert_array_equal(rows_of(tensor, 0, 40), layer.weights)
    assert not rows_of(tensor, 40, 64).any()


def test_any_rows_from_any_thread(unpack: Unpacker) -> None:
    layer = packed("6/5/4/3/2")
    tensor = unpack(PACKING, layer.tensors, {}).tensors["x.weight"]
    spans = [(start, stop) for start in range(0, 64, 5) for stop in (start, start + 1, min(64, start + 37))]
    with ThreadPoolExecutor(4) as pool:
        for (start, stop), rows in zip(spans, pool.map(lambda span: rows_of(tensor, *span), spans), strict=True):
            np.testing.assert_array_equal(rows, layer.weights[start:stop])


def test_bits_per_weight_count_everything_stored(unpack: Unpacker) -> None:
    layer = packed("8/6")
    stored = sum(len(data) for _, _, data in layer.tensors.values())
    found = unpack(PACKING, layer.tensors, {})
    assert found.facts == {"bits": "6 to 8", "bits_per_weight": round(8 * stored / (64 * 128), 3)}
    assert found.summary == f"{8 * stored / (64 * 128):.2f} bits per weight"


def test_what_a_split_model_has_in_one_tensor_is_joined(unpack: Unpacker) -> None:
    parts = {name: packed(weights=WEIGHTS[:rows]) for name, rows in (("q_proj", 64), ("k_proj", 32), ("v_proj", 32))}
    tensors = {
        f"a.0.self_attn.{name}{suffix}": value
        for name, layer in parts.items()
        for suffix, value in layer.tensors.items()
    }
    stored = unpack.checkpoint(tensors)
    found = PACKING.unpack(stored, {"model_type": "phi3"}, unpack.encodings).tensors
    assert list(found) == ["a.0.self_attn.qkv_proj.weight"]
    expected = np.concatenate([layer.weights for layer in parts.values()])
    np.testing.assert_array_equal(rows_of(found["a.0.self_attn.qkv_proj.weight"]), expected)
    assert len(PACKING.unpack(stored, {"model_type": "llama"}, unpack.encodings).tensors) == 3


def failure(unpack: Unpacker, kind: type[QconvError], tensors: dict[str, Stored]) -> QconvError:
    with pytest.raises(kind) as caught:
        rows_of(unpack(PACKING, tensors, {}).tensors["x.weight"])
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (0, 7, "group 0 has 7 bits, not one of 2, 3, 4, 5, 6, 8"),
        (0, 0, "group 0 has 0 bits"),
        (0, -8, "group 0 has -8 bits"),
        (1, 1, "group 0 starts at row 1"),
        (3, 0, "group 0 has the rows 0 to 0"),
        (3, -5, "group 0 has the rows 0 to -5"),
        (5, 30000, "group 1 has the rows 8 to 30000"),
        (2, 6, "no whole number of 6-bit weights"),
        (4, 2, "inputs, x.q_invperm has 128"),
    ],
)
def test_impossible_groups_are_named(place: int, value: int, words: str, unpack: Unpacker) -> None:
    layer = packed()
    dtype, shape, data = layer.tensors[".q_groups"]
    pairs = np.frombuffer(data, "<i2").copy()
    pairs[place] = value
    error = failure(unpack, FormatError, layer.tensors | {".q_groups": (dtype, shape, pairs.tobytes())})
    assert error.tensor == "x.q_groups"
    assert words in error.message


@pytest.mark.parametrize(
    ("value", "words"), [(-1, "row -1"), (128, "row 128"), (1 << 30, "row 1073"), (None, "no input has")]
)
def test_an_order_that_is_no_permutation(value: int | None, words: str, unpack: Unpacker) -> None:
    layer = packed()
    order = np.frombuffer(layer.tensors[".q_invperm"][2], "<i4").copy()
    order[17] = order[18] if value is None else value
    error = failure(unpack, FormatError, layer.tensors | {".q_invperm": int32(order.view(np.uint32))})
    assert error.tensor == "x.q_invperm"
    assert words in error.message


@pytest.mark.parametrize("suffix", [".q_scale", ".q_scale_max", ".q_groups", ".q_invperm"])
def test_a_missing_tensor_is_named(suffix: str, unpack: Unpacker) -> None:
    tensors = {key: value for key, value in packed().tensors.items() if key != suffix}
    assert failure(unpack, MissingTensorError, tensors).tensor == f"x{suffix}"


@pytest.mark.parametrize("suffix", [".q_weight", ".q_scale", ".q_scale_max", ".q_groups", ".q_invperm"])
def test_wrong_shapes_and_dtypes_are_named(suffix: str, unpack: Unpacker) -> None:
    layer = packed()
    dtype, shape, data = layer.tensors[suffix]
    item = len(data) // int(np.prod(shape))
    wrongs: list[tuple[int, ...]] = [
        (0, *shape[1:]),
        (),
        (1, *shape),
        (*shape[:-1], shape[-1] + 1),
        (shape[0] - 1, *shape[1:]),
    ]
    for wrong in wrongs:
        changed: dict[str, Any] = {suffix: (dtype, wrong, bytes(int(np.prod(wrong)) * item))}
        error: Any = failure(unpack, QconvError, layer.tensors | changed)
        assert isinstance(error, ShapeError | FormatError)
        assert error.tensor is not None
    error = failure(unpack, FormatError, layer.tensors | {suffix: ("U8", shape, data[: int(np.prod(shape))])})
    assert (error.tensor, "its dtype is U8" in error.message) == (f"x{suffix}", True)
