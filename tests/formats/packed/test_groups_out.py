"""What is rounded for GPTQ and AWQ is what their readers give, and is packed as AutoGPTQ and AutoAWQ pack it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from packed_folders import AWQ_ORDER, Unpacker, rows_of, words_of

from qconv.formats.packed.awq import PACKING as AWQ
from qconv.formats.packed.gptq import PACKING as GPTQ
from qconv.quantizers.rounding.feedback import column_order, factorize
from qconv.quantizers.rounding.group_packing import pack_awq, pack_gptq
from qconv.quantizers.rounding.group_rounding import Grid, Rounded, round_groups, round_with_feedback

VECTORS: dict[str, Any] = json.loads(Path(__file__).with_name("integer_vectors.json").read_text())
DTYPES = {"int32": "I32", "float16": "F16"}


def rounded(packing: str, mode: str, symmetric: bool = False) -> Rounded:
    rng = np.random.default_rng(4)
    weights = (rng.normal(size=(40, 128)) * 0.1).astype(np.float32)
    weights[:, :32] = np.abs(weights[:, :32])
    inputs = rng.normal(size=(300, 128)) * np.exp(rng.normal(size=128))
    moment = inputs.T @ inputs
    grid = Grid(4, 32, symmetric, 1 if packing == "gptq" else 0)
    if mode == "nearest":
        return round_groups(weights, grid)
    order = None if mode == "feedback" else column_order(moment)
    return round_with_feedback(weights, factorize(moment, order=order), grid, static=mode == "static")


def stored(tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    return {
        f".{name}": (DTYPES[it.dtype.name], it.shape, it.astype(it.dtype.newbyteorder("<")).tobytes())
        for name, it in tensors.items()
    }


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("mode", ["nearest", "feedback", "order", "static"])
def test_the_gptq_reader_gives_the_chosen_weights(mode: str, symmetric: bool, unpack: Unpacker) -> None:
    found = rounded("gptq", mode, symmetric)
    tensors = pack_gptq(found, 4) | {"g_idx": found.groups.astype(np.int32)}
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": symmetric, "checkpoint_format": "gptq"}
    unpacked = unpack(GPTQ, stored(tensors), settings)
    np.testing.assert_array_equal(rows_of(unpacked.tensors["x.weight"]), found.weights)
    assert not unpacked.notes


@pytest.mark.parametrize("mode", ["nearest", "feedback", "static"])
def test_the_awq_reader_gives_the_chosen_weights(mode: str, unpack: Unpacker) -> None:
    found = rounded("awq", mode)
    settings = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    unpacked = unpack(AWQ, stored(pack_awq(found)), settings)
    np.testing.assert_array_equal(rows_of(unpacked.tensors["x.weight"]), found.weights)


def test_gptq_is_packed_bit_by_bit() -> None:
    """Codes down each output, zero points less one along each group, 8 fields of 4 bits in a word, the first lowest."""
    found = rounded("gptq", "order")
    tensors = pack_gptq(found, 4)
    words = np.array([words_of(row.tolist(), 4) for row in found.codes], np.uint32)
    np.testing.assert_array_equal(tensors["qweight"].view(np.uint32), words.T)
    zeros = np.array([words_of((column - 1).tolist(), 4) for column in found.zeros.T.astype(int)], np.uint32)
    np.testing.assert_array_equal(tensors["qzeros"].view(np.uint32), zeros)
    np.testing.assert_array_equal(tensors["scales"], found.scales.T)
    assert {name: it.dtype.name for name, it in tensors.items()} == {
        "qweight": "int32",
        "qzeros": "int32",
        "scales": "float16",
    }


def test_symmetric_zero_points_are_sevens() -> None:
    assert (pack_gptq(rounded("gptq", "nearest", True), 4)["qzeros"].view(np.uint32) == 0x77777777).all()


def test_awq_is_packed_nibble_by_nibble() -> None:
    found = rounded("awq", "feedback")
    tensors = pack_awq(found)
    for name, fields in (("qweight", found.codes), ("qzeros", found.zeros)):
        for number, column in enumerate(fields.T):
            expected = [
                sum(int(column[start + output]) << (4 * nibble) for nibble, output in enumerate(AWQ_ORDER))
                for start in range(0, 40, 8)
            ]
            np.testing.assert_array_equal(tensors[name].view(np.uint32)[number], np.array(expected, np.uint32))


def array(case: dict[str, Any], name: str) -> NDArray[Any]:
    dtype, shape, data = case["tensors"][name]
    return np.frombuffer(base64.b64decode(data), {"I32": "<u4", "F16": "<f2"}[dtype]).reshape(shape)


@pytest.mark.parametrize("name", ["gptq 4 bits", "gptq 4 bits reordered"])
def test_gptq_words_are_autogptqs(name: str) -> None:
    """Taken apart by the definition and packed again, AutoGPTQ's words come back."""
    case = VECTORS[name]
    qweight, qzeros = array(case, "qweight"), array(case, "qzeros")
    codes = np.array([[qweight[k // 8, n] >> (4 * (k % 8)) & 15 for k in range(32)] for n in range(32)], np.uint8)
    zeros = np.array([[(qzeros[g, n // 8] >> (4 * (n % 8)) & 15) + 1 for g in range(2)] for n in range(32)], np.uint8)
    assert zeros.max() <= 15
    found = Rounded(codes, zeros, array(case, "scales").T, array(case, "g_idx").astype(np.intp))
    tensors = pack_gptq(found, 4)
    np.testing.assert_array_equal(tensors["qweight"].view(np.uint32), qweight)
    np.testing.assert_array_equal(tensors["qzeros"].view(np.uint32), qzeros)
    expected = np.frombuffer(base64.b64decode(case["weights"][2]), "<f4").reshape(case["weights"][1])
    np.testing.assert_array_equal(found.weights, expected)


def test_awq_words_are_autoawqs() -> None:
    case = VECTORS["awq gemm"]
    qweight, qzeros = array(case, "qweight"), array(case, "qzeros")

    def field(words: NDArray[Any], row: int, n: int) -> int:
        return int(words[row, n // 8]) >> (4 * AWQ_ORDER.index(n % 8)) & 15

    codes = np.array([[field(qweight, k, n) for k in range(64)] for n in range(32)], np.uint8)
    zeros = np.array([[field(qzeros, g, n) for g in range(2)] for n in range(32)], np.uint8)
    found = Rounded(codes, zeros, array(case, "scales").T, np.arange(64) // 32)
    tensors = pack_awq(found)
    np.testing.assert_array_equal(tensors["qweight"].view(np.uint32), qweight)
    np.testing.assert_array_equal(tensors["qzeros"].view(np.uint32), qzeros)
    expected = np.frombuffer(base64.b64decode(case["weights"][2]), "<f4").reshape(case["weights"][1])
    np.testing.assert_array_equal(found.weights, expected)


def test_a_zero_point_of_zero_is_refused() -> None:
    found = rounded("awq", "nearest")
    assert (found.zeros == 0).any()
    with pytest.raises(ValueError, match="zero point of 0"):
        pack_gptq(found, 4)
