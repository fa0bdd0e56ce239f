"""Layers in Marlin's order give exactly the packer's weights, and AutoGPTQ's words the codes that it was given."""

from __future__ import annotations

import numpy as np
import pytest
from packed_folders import Unpacker, float16, int32, marlin, rows_of

from qconv.errors import FormatError, MissingTensorError, ShapeError
from qconv.formats.packed import PACKINGS
from qconv.formats.packed.marlin import PACKING

ZEROS = np.zeros((192, 128), np.float32)
SETTINGS = {"quant_method": "gptq", "bits": 4, "is_marlin_format": True}


@pytest.mark.parametrize("group_size", [-1, 32, 64, 128])
@pytest.mark.parametrize("settings", [SETTINGS, {"quant_method": "marlin"}, {}])
def test_weights_are_the_packers(group_size: int, settings: dict[str, object], unpack: Unpacker) -> None:
    layer = marlin(group_size)(ZEROS, np.random.default_rng(1))
    stored = unpack.checkpoint({f"x{suffix}": value for suffix, value in layer.tensors.items()})
    assert next(it for it in PACKINGS if it.recognises({"quantization_config": settings}, stored)) is PACKING
    found = unpack(PACKING, layer.tensors, settings)
    tensor = found.tensors["x.weight"]
    np.testing.assert_array_equal(rows_of(tensor), layer.weights)
    for start, stop in ((0, 0), (3, 5), (60, 70), (63, 64), (191, 192), (1, 192)):
        np.testing.assert_array_equal(rows_of(tensor, start, stop), layer.weights[start:stop])
    assert found.facts == {"bits": 4, "group_size": 128 if group_size == -1 else group_size, "layout": "marlin"}


WORDS_OF_THE_PACKAGE = (
    "18181890 18181890 18181890 18181890 4a4a8e06 4a4a8e06 4a4a8e06 4a4a8e06 e5e56ce4 e5e56ce4 e5e56ce4 e5e56ce4 1717c34b 1717c34b "
    "1717c34b 1717c34b 1010a921 1010a921 1010a921 1010a921 2020fd75 2020fd75 2020fd75 2020fd75 a9a9b931 a9a9b931 a9a9b931 a9a9b931 "
    "b9b9fe76 b9b9fe76 b9b9fe76 b9b9fe76 18183ab2 18183ab2 18183ab2 18183ab2 06066ce4 06066ce4 06066ce4 06066ce4 6d6d068e 6d6d068e "
    "6d6d068e 6d6d068e 5b5b29a1 5b5b29a1 5b5b29a1 5b5b29a1 1010cb43 1010cb43 1010cb43 1010cb43 ececdb53 ececdb53 ececdb53 ececdb53 "
    "212153db 212153db 212153db 212153db fdfd54dc fdfd54dc fdfd54dc fdfd54dc 18185cd4 18185cd4 18185cd4 18185cd4 c2c24ac2 c2c24ac2 "
    "c2c24ac2 c2c24ac2 e5e5a028 e5e5a028 e5e5a028 e5e5a028 9f9f8f07 9f9f8f07 9f9f8f07 9f9f8f07 1010ed65 1010ed65 1010ed65 1010ed65 "
    "a8a8b931 a8a8b931 a8a8b931 a8a8b931 a9a9fd75 a9a9fd75 a9a9fd75 a9a9fd75 3131ba32 3131ba32 3131ba32 3131ba32 18187ef6 18187ef6 "
    "18187ef6 18187ef6 8e8e28a0 8e8e28a0 8e8e28a0 8e8e28a0 6d6d4ac2 6d6d4ac2 6d6d4ac2 6d6d4ac2 d3d3e56d d3d3e56d d3d3e56d d3d3e56d "
    "10100f87 10100f87 10100f87 10100f87 6464971f 6464971f 6464971f 6464971f 2121971f 2121971f 2121971f 2121971f 75751098 75751098 "
    "75751098 75751098 "
)


def test_words_are_the_packages(unpack: Unpacker) -> None:
    """What AutoGPTQ packs of the codes (3 k k + 5 k + k // 5 + 7 n k + n) mod 16, 16 inputs and 64 outputs."""
    words = np.array([int(word, 16) for word in WORDS_OF_THE_PACKAGE.split()], np.uint32)
    tensors = {".B": int32(words.reshape(1, 128)), ".s": float16(np.ones((1, 64), np.float32))}
    n, k = np.arange(64)[:, None], np.arange(16)
    rows = rows_of(unpack(PACKING, tensors, SETTINGS).tensors["x.weight"])
    np.testing.assert_array_equal(rows + 8, (3 * k * k + 5 * k + k // 5 + 7 * n * k + n) % 16)


@pytest.mark.parametrize(
    ("suffix", "shape", "kind"),
    [(".B", (8, 300), ShapeError), (".s", (4, 190), ShapeError), (".s", (3, 192), ShapeError)],
)
def test_what_does_not_fit_is_named(
    suffix: str, shape: tuple[int, int], kind: type[FormatError], unpack: Unpacker
) -> None:
    layer = marlin(32)(ZEROS, np.random.default_rng(1))
    dtype, item = ("I32", 4) if suffix == ".B" else ("F16", 2)
    with pytest.raises(kind) as caught:
        unpack(PACKING, layer.tensors | {suffix: (dtype, shape, bytes(item * shape[0] * shape[1]))}, SETTINGS)
    assert caught.value.tensor == f"x{suffix}"
    assert caught.value.remedy


def test_missing_scales_are_named(unpack: Unpacker) -> None:
    layer = marlin(32)(ZEROS, np.random.default_rng(1))
    with pytest.raises(MissingTensorError) as caught:
        unpack(PACKING, {".B": layer.tensors[".B"]}, SETTINGS)
    assert caught.value.tensor == "x.s"
