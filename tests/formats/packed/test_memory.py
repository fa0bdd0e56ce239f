"""What reading takes does not grow with the file: a slab of rows, and as much again while it is unpacked."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from huggingface_folder import Stored
from packed_folders import Unpacker

from qconv.convert.execute import SLAB_WEIGHTS
from qconv.formats.base import Tensor
from qconv.formats.packed import PACKINGS

ROWS, COLUMNS = 2048, 4096
SLAB = 4 * SLAB_WEIGHTS  # bytes of float32
_BYTES = {"I32": 4, "I16": 2, "F16": 2, "BF16": 2, "U8": 1, "F32": 4, "I8": 1, "F8_E4M3": 1}


def noise(dtype: str, *shape: int) -> Stored:
    return (dtype, shape, np.random.default_rng(0).bytes(int(np.prod(shape)) * _BYTES[dtype]))


def numbers(dtype: str, *shape: int) -> Stored:
    values = np.random.default_rng(0).random(shape).astype("<f4")
    return (dtype, shape, values.tobytes() if dtype == "F32" else values.astype("<f2").tobytes())


def order(groups: int = COLUMNS) -> Stored:
    permuted = np.random.default_rng(0).permutation(COLUMNS) // (COLUMNS // groups)
    return ("I32", (COLUMNS,), permuted.astype("<i4").tobytes())


def gptq(bits: int, layout: str = "gptq") -> tuple[dict[str, Stored], dict[str, Any]]:
    groups = COLUMNS // 32
    tensors = {
        ".qweight": noise("I32", COLUMNS * bits // 32, ROWS),
        ".qzeros": noise("I32", groups, ROWS * bits // 32),
        ".scales": numbers("F16", groups, ROWS),
        ".g_idx": order(groups),
    }
    return tensors, {"quant_method": "gptq", "bits": bits, "group_size": 32, "checkpoint_format": layout}


def exl2(bits: int) -> tuple[dict[str, Stored], dict[str, Any]]:
    groups = COLUMNS // 32
    pairs = np.array([[bits, bits * index] for index in range(groups)], "<i2")
    tensors = {
        ".q_weight": noise("I32", COLUMNS * bits // 32, ROWS),
        ".q_scale": noise("I32", groups, ROWS // 8),
        ".q_scale_max": numbers("F16", groups),
        ".q_groups": ("I16", (2 * groups,), pairs.tobytes()),
        ".q_invperm": order(),
    }
    return tensors, {"quant_method": "exl2"}


def exl3(bits: int) -> tuple[dict[str, Stored], dict[str, Any]]:
    tensors = {
        ".trellis": noise("I16", COLUMNS // 16, ROWS // 16, 16 * bits),
        ".suh": numbers("F16", COLUMNS),
        ".svh": numbers("F16", ROWS),
        ".mul1": ("I32", (), bytes(4)),
    }
    return tensors, {"quant_method": "exl3"}


def nf4() -> tuple[dict[str, Stored], dict[str, Any]]:
    blocks = ROWS * COLUMNS // 64
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [ROWS, COLUMNS]}
    text = json.dumps(state | {"nested_blocksize": 256, "nested_offset": 0.1}).encode()
    tensors = {
        ".weight": noise("U8", ROWS * COLUMNS // 2, 1),
        ".weight.absmax": noise("U8", blocks),
        ".weight.quant_map": numbers("F32", 16),
        ".weight.nested_absmax": numbers("F32", blocks // 256),
        ".weight.nested_quant_map": numbers("F32", 256),
        ".weight.quant_state.bitsandbytes__nf4": ("U8", (len(text),), text),
    }
    return tensors, {"quant_method": "bitsandbytes"}


def awq(version: str) -> tuple[dict[str, Stored], dict[str, Any]]:
    groups = COLUMNS // 128
    settings = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": version}
    if version == "gemv":
        tensors = {
            ".qweight": noise("I32", ROWS, COLUMNS // 8),
            ".qzeros": noise("I32", ROWS, groups // 8),
            ".scales": numbers("F16", ROWS, groups),
        }
    elif version == "gemv_fast":
        tensors = {
            ".qweight": noise("I16", ROWS // 4, COLUMNS),
            ".qzeros": numbers("F16", groups, ROWS),
            ".scales": numbers("F16", groups, ROWS),
        }
    else:
        tensors = {
            ".qweight": noise("I32", COLUMNS, ROWS // 8),
            ".qzeros": noise("I32", groups, ROWS // 8),
            ".scales": numbers("F16", groups, ROWS),
        }
    return tensors, settings


def words(bits: int) -> tuple[dict[str, Stored], dict[str, Any]]:
    groups = COLUMNS // 32
    tensors = {
        ".weight_packed": noise("I32", ROWS, COLUMNS * bits // 32),
        ".weight_scale": numbers("F32", ROWS, groups),
        ".weight_zero_point": noise("I32", ROWS * bits // 32, groups),
        ".weight_shape": ("I64", (2,), np.array([ROWS, COLUMNS], "<i8").tobytes()),
    }
    return tensors, {"quant_method": "compressed-tensors"}


def float8() -> tuple[dict[str, Stored], dict[str, Any]]:
    tensors = {".weight": noise("F8_E4M3", ROWS, COLUMNS), ".weight_scale_inv": numbers("F32", 16, 32)}
    return tensors, {"quant_method": "fp8", "weight_block_size": [128, 128]}


def int8() -> tuple[dict[str, Stored], dict[str, Any]]:
    return {".weight": noise("I8", ROWS, COLUMNS), ".SCB": numbers("F32", ROWS)}, {"quant_method": "bitsandbytes"}


def mxfp4() -> tuple[dict[str, Stored], dict[str, Any]]:
    tensors = {
        ".weight_packed": noise("U8", ROWS, COLUMNS // 2),
        ".weight_scale": noise("U8", ROWS, COLUMNS // 32),
    }
    return tensors, {"quant_method": "compressed-tensors"}


CASES = {
    **{f"gptq-{bits}": gptq(bits) for bits in (2, 3, 4, 8)},
    "gptq-planes": gptq(3, "gptq_p"),
    **{f"exl2-{bits}": exl2(bits) for bits in (2, 8)},
    **{f"exl3-{bits}": exl3(bits) for bits in (1, 8)},
    "awq-gemm": awq("gemm"),
    "awq-gemv": awq("gemv"),
    "awq-gemv-fast": awq("gemv_fast"),
    "nf4-nested": nf4(),
    "int8": int8(),
    **{f"words-{bits}": words(bits) for bits in (1, 2, 3, 8)},
    "float8": float8(),
    "mxfp4": mxfp4(),
}


@pytest.mark.parametrize("case", CASES)
def test_a_slab_takes_what_a_slab_takes(case: str, unpack: Unpacker) -> None:
    layer, settings = CASES[case]
    packing = next(it for it in PACKINGS if settings["quant_method"] in it.methods)
    tensor = unpack(packing, layer, settings).tensors["x.weight"]
    assert isinstance(tensor, Tensor)
    assert tensor.shape == (ROWS, COLUMNS)
    step = SLAB_WEIGHTS // COLUMNS
    tensor.read(0, 1)  # tables are made once
    tracemalloc.start()
    try:
        for start in range(0, ROWS, step):
            assert tensor.read(start, start + step).nbytes == tensor.nbytes * step // ROWS
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * SLAB
