"""EXL3 layers: states read bit by bit, numbers by integer arithmetic and transforms in float64 give the reader's weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_folder import Stored
from packed_folders import PackedLayer, Unpacker, exl3, float16, rows_of, trellis_number

from qconv.errors import FormatError, MissingTensorError, QconvError, ShapeError
from qconv.formats.base import Tensor
from qconv.formats.packed.exl3 import PACKING, _numbers

SHAPE = (128, 256)
SETTINGS = {"quant_method": "exl3", "bits": 4.0}
RATES = [(float(bits), codebook) for bits in range(1, 9) for codebook in ("", "mcg", "mul1")]


def packed(bits: float = 4.0, codebook: str = "mul1", **options: Any) -> PackedLayer:
    return exl3(bits, codebook, **options)(np.zeros(SHAPE, np.float32), np.random.default_rng(1))


def check(tensor: Tensor | Any, layer: PackedLayer) -> None:
    """The same weights to the last bit of float16, but where two orders of summation fall on either side of half a bit of a step."""
    assert isinstance(tensor, Tensor)
    assert tensor.encoding.name == "F16"
    found = rows_of(tensor)
    same = found == layer.weights
    assert same.mean() > 0.99
    assert np.abs(found - layer.weights).max() < 2.0**-10 * np.abs(layer.weights).max()


@pytest.mark.parametrize(("bits", "codebook"), [*RATES, (1.5, "mul1"), (2.5, "mul1"), (3.5, "mul1")])
def test_weights_are_the_packers(bits: float, codebook: str, unpack: Unpacker) -> None:
    layer = packed(bits, codebook)
    found = unpack(PACKING, layer.tensors, SETTINGS)
    check(found.tensors["x.weight"], layer)
    assert found.facts == {"bits": f"{bits:g}", "bits_per_weight": bits}


def test_signs_of_older_files(unpack: Unpacker) -> None:
    layer = packed(3.0, "", signs=True)
    check(unpack(PACKING, layer.tensors, {}).tensors["x.weight"], layer)


@pytest.mark.parametrize("codebook", ["", "mcg", "mul1"])
def test_every_state_has_its_number(codebook: str) -> None:
    numbers = _numbers(f".{codebook}" if codebook else "")
    for state in range(0, 1 << 16, 7):
        assert numbers[state] == trellis_number(state, codebook)
    spread = numbers.astype(np.float64).std()
    assert spread == pytest.approx(1.0003 if codebook == "mul1" else 1.2437, rel=2e-3)


def test_any_rows_from_any_thread(unpack: Unpacker) -> None:
    wide = exl3(2.0, "mcg")(np.zeros((256, 128), np.float32), np.random.default_rng(2))
    tensor = unpack(PACKING, wide.tensors, SETTINGS).tensors["x.weight"]
    assert isinstance(tensor, Tensor)
    whole = tensor.read(0, 256)
    spans = [(0, 1), (100, 140), (127, 129), (255, 256), (128, 256)]
    with ThreadPoolExecutor(4) as pool:
        for (start, stop), rows in zip(spans, pool.map(lambda it: tensor.read(*it), spans), strict=True):
            np.testing.assert_array_equal(rows, whole[start:stop])


def failure(unpack: Unpacker, kind: type[QconvError], tensors: dict[str, Stored]) -> QconvError:
    with pytest.raises(kind) as caught:
        unpack(PACKING, tensors, SETTINGS)
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("suffix", [".suh", ".svh"])
def test_a_missing_side_is_named(suffix: str, unpack: Unpacker) -> None:
    layer = packed(1.0)
    error = failure(unpack, MissingTensorError, {key: it for key, it in layer.tensors.items() if key != suffix})
    assert error.tensor == f"x{suffix}"


@pytest.mark.parametrize(
    ("suffix", "stored", "words"),
    [
        (".suh", float16(np.ones(128, np.float16)), "not (256)"),
        (".svh", ("F32", (128,), bytes(512)), "F16"),
        (".trellis", ("I16", (16, 8, 17), bytes(2 * 16 * 8 * 17)), "17 words"),
        (".trellis", ("I16", (16, 8, 144), bytes(2 * 16 * 8 * 144)), "9 bits"),
        (".trellis", ("I16", (16, 8, 72), bytes(2 * 16 * 8 * 72)), "4.5 bits"),
        (".trellis", ("I16", (15, 8, 16), bytes(2 * 15 * 8 * 16)), "15 x 8 tiles"),
        (".mcg", ("I32", (), bytes(4)), "only one of them"),
    ],
)
def test_what_does_not_fit_is_named(suffix: str, stored: Stored, words: str, unpack: Unpacker) -> None:
    error = failure(unpack, FormatError if "not (" not in words else ShapeError, packed(1.0).tensors | {suffix: stored})
    assert error.tensor == ("x.mul1" if suffix == ".mcg" else f"x{suffix}")
    assert words in error.message


def test_half_bits_have_one_codebook(unpack: Unpacker) -> None:
    tensors = {key: it for key, it in packed(1.5).tensors.items() if key != ".mul1"}
    assert "1.5 bits" in failure(unpack, FormatError, tensors).message


@pytest.mark.oracles
def test_transforms_are_the_packages(tmp_path: Path) -> None:
    """torch's matrices as the package applies them, float16 between the steps."""
    import torch

    from qconv.formats.packed.exl3 import _hadamard

    values = np.random.default_rng(1).standard_normal((64, 256)).astype(np.float16)
    signs = [[(-1) ** (i & j).bit_count() for j in range(128)] for i in range(128)]
    turn = torch.tensor(signs, dtype=torch.float32) / 128**0.5
    wanted = (torch.from_numpy(values).float().reshape(64, 2, 128) @ turn).reshape(64, 256).half().numpy()
    found = _hadamard(np.ascontiguousarray(values.T)).T
    assert (found == wanted).mean() > 0.99
    assert np.abs(found.astype(np.float32) - wanted.astype(np.float32)).max() < 4e-3
