"""Rows of large packed layers are read in memory that grows with the rows asked for, not with the layer."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from huggingface_folder import Stored
from packed_folders import Unpacker, float16, int32

from qconv.formats.base import Tensor
from qconv.formats.packed import PACKINGS

INPUTS, OUTPUTS, SIZE = 2048, 8192, 128
GROUPS = INPUTS // SIZE
RNG = np.random.default_rng(0)


def words(*shape: int) -> Stored:
    return ("I32", shape, RNG.bytes(4 * int(np.prod(shape))))


def scales(*shape: int) -> Stored:
    return float16(RNG.uniform(0.5, 1, shape).astype(np.float32))


def order() -> Stored:
    return int32(RNG.permutation(INPUTS).astype(np.uint32))


LAYERS: dict[str, tuple[str, dict[str, Stored], dict[str, Any]]] = {
    "gptq": (
        "gptq",
        {
            ".qweight": words(INPUTS // 8, OUTPUTS),
            ".qzeros": words(GROUPS, OUTPUTS // 8),
            ".scales": scales(GROUPS, OUTPUTS),
            ".g_idx": int32((RNG.permutation(INPUTS) // SIZE).astype(np.uint32)),
        },
        {"bits": 4, "group_size": SIZE},
    ),
    "awq-gemm": (
        "awq",
        {
            ".qweight": words(INPUTS, OUTPUTS // 8),
            ".qzeros": words(GROUPS, OUTPUTS // 8),
            ".scales": scales(GROUPS, OUTPUTS),
        },
        {"group_size": SIZE},
    ),
    "awq-gemv": (
        "awq",
        {
            ".qweight": words(OUTPUTS, INPUTS // 8),
            ".qzeros": words(OUTPUTS, GROUPS // 8),
            ".scales": scales(OUTPUTS, GROUPS),
        },
        {"group_size": SIZE, "version": "gemv"},
    ),
    "exl2": (
        "exl2",
        {
            ".q_weight": words(INPUTS // 8, OUTPUTS),
            ".q_scale": words(GROUPS, OUTPUTS // 8),
            ".q_scale_max": scales(GROUPS),
            ".q_groups": (
                "I16",
                (2 * GROUPS,),
                np.array([(4, group * SIZE // 8) for group in range(GROUPS)], "<i2").tobytes(),
            ),
            ".q_invperm": order(),
        },
        {},
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_slab_takes_its_own_size_and_little_more(name: str, unpack: Unpacker) -> None:
    packing, layer, settings = LAYERS[name]
    found = next(item for item in PACKINGS if item.name == packing)
    tensor = unpack(found, layer, settings).tensors["x.weight"]
    assert isinstance(tensor, Tensor)
    assert tensor.shape == (OUTPUTS, INPUTS)
    for count in (64, 1024):
        tensor.read(5, 6)  # imports
        tracemalloc.start()
        result = tensor.read(4096, 4096 + count)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # the rows, their codes, and pieces of at most 4 MiB
        assert peak < 1.5 * result.nbytes + (12 << 20)
