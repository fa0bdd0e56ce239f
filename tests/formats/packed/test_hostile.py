"""Packed layers that lie: thousands of mutations of tensors and settings.

Only qconv's own errors may come out, naming a tensor or a key of the settings, soon, and without allocating what a number merely claims.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import numpy as np
import packed_floats as floats
import pytest
from huggingface_folder import Stored
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from packed_folders import Packer, Unpacker, awq_gemm, awq_gemv, awq_gemv_fast, exl2, exl3, gptq, marlin

from qconv.convert.execute import SLAB_WEIGHTS
from qconv.errors import FormatError, ModelError, NonFiniteError, QconvError, TruncatedError
from qconv.formats.base import Tensor
from qconv.formats.packed import PACKINGS, Packing

BY_NAME: dict[str, Packing] = {packing.name: packing for packing in PACKINGS}
SLAB = 4 * SLAB_WEIGHTS  # bytes
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32}
BNB = {"quant_method": "bitsandbytes"}
CT = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
CASES: dict[str, tuple[str, Packer, dict[str, Any]]] = {
    "gptq": ("gptq", gptq(4, 32, act_order=True), GPTQ),
    "gptq-planes": ("gptq", gptq(3, 32, layout="gptq_p"), GPTQ | {"bits": 3, "checkpoint_format": "gptq_p"}),
    "gptq-symmetric": ("gptq", gptq(8, 32, sym=True), GPTQ | {"bits": 8, "sym": True, "dynamic": {"x": {}}}),
    "awq-gemm": ("awq", awq_gemm(32), AWQ),
    "awq-gemv": ("awq", awq_gemv(32), AWQ | {"version": "gemv"}),
    "awq-gemv-fast": ("awq", awq_gemv_fast(64), {"quant_method": "awq", "group_size": 64, "version": "gemv_fast"}),
    "marlin": ("marlin", lambda it, rng: marlin(32)(it.repeat(2, axis=0), rng), {"quant_method": "marlin"}),
    "exl3": ("exl3", exl3(1.5, "mul1"), {"quant_method": "exl3"}),
    "exl2": ("exl2", exl2(lambda inputs: [(5, 32), (2, inputs - 32)]), {"quant_method": "exl2"}),
    "nf4": ("bitsandbytes", floats.bitsandbytes_4bit(nested=4, dtype="float16"), BNB),
    "int8": ("bitsandbytes", floats.bitsandbytes_int8, BNB),
    "words": ("compressed-tensors", floats.word_integers(3, 32, symmetric=False, act_order=True), CT),
    "ct-fp8": ("compressed-tensors", floats.float8_blocks((16, 16), ".weight_scale", "BF16"), CT),
    "ct-nvfp4": ("compressed-tensors", floats.nvfp4("compressed-tensors"), CT),
    "ct-mxfp4": ("compressed-tensors", floats.mxfp4, CT),
    "modelopt": ("modelopt", floats.nvfp4(), {"quant_method": "modelopt"}),
    "experts": ("mxfp4", floats.mxfp4_experts, {"quant_method": "mxfp4"}),
    "fp8": ("fp8", floats.float8_blocks((16, 16)), {"quant_method": "fp8", "weight_block_size": [16, 16]}),
    "fp8-powers": ("fp8", floats.float8_blocks((16, 16), ".scale", "F8_E8M0"), {"quant_method": "fp8"}),
}
WEIGHTS = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
LAYERS = {name: pack(WEIGHTS, np.random.default_rng(0)).tensors for name, (_, pack, _) in CASES.items()}
ITEMS = {
    "U8": 1,
    "I8": 1,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "F32": 4,
    "I64": 8,
    "F64": 8,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E8M0": 1,
}
KEYS = (
    "bits",
    "w_bit",
    "group_size",
    "q_group_size",
    "checkpoint_format",
    "format",
    "version",
    "sym",
    "dynamic",
    "is_marlin_format",
    "weight_block_size",
    "config_groups",
    "sparsity_config",
)

BLOCKS: tuple[Any, ...] = ("8x8", [0, 1], {}, "x", "9" * 99 + "x1")
sizes = st.integers(0, 3) | st.sampled_from([8, 16, 31, 32, 33, 64, 128, 1000])
shapes = st.lists(sizes, max_size=4).map(tuple).filter(lambda shape: prod(shape) <= 1 << 16)
values = (
    st.none()
    | st.booleans()
    | st.integers(-2, 130)
    | st.sampled_from([10**30, -(10**30), 1 << 31, 1 << 63])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["gptq", "gptq_v2", "gptq_p", "gemm", "gemv", "marlin", [], {}, {"bits": 4}, [[]]])
    | st.lists(st.integers(-1, 200), min_size=1, max_size=3)
    | st.sampled_from([{"g": {"weights": {"num_bits": bits, "group_size": 32}}} for bits in (0, 3, 4, -1, 10**30, "4")])
    | st.sampled_from([{"g": {"weights": {"block_structure": block}}} for block in BLOCKS])
)
Mutation = Callable[[dict[str, Stored], dict[str, Any]], None]


def reshaped(suffix: str, shape: tuple[int, ...], dtype: str | None, seed: int) -> Mutation:
    def mutate(tensors: dict[str, Stored], given: dict[str, Any]) -> None:
        if suffix in tensors:
            kind = dtype or tensors[suffix][0]
            data = np.random.default_rng(seed).bytes(prod(shape) * ITEMS[kind])
            tensors[suffix] = (kind, shape, data)

    return mutate


def patched(suffix: str, position: int, data: bytes) -> Mutation:
    def mutate(tensors: dict[str, Stored], given: dict[str, Any]) -> None:
        if suffix in tensors and tensors[suffix][2]:
            dtype, shape, old = tensors[suffix]
            new = bytearray(old)
            start = position % len(new)
            new[start : start + len(data)] = data[: len(new) - start]
            tensors[suffix] = (dtype, shape, bytes(new))

    return mutate


def removed(suffix: str) -> Mutation:
    def mutate(tensors: dict[str, Stored], given: dict[str, Any]) -> None:
        tensors.pop(suffix, None)

    return mutate


def configured(key: str, value: Any) -> Mutation:
    return lambda tensors, given: given.__setitem__(key, value)


def mutations(case: str) -> st.SearchStrategy[list[Mutation]]:
    suffixes = st.sampled_from([*LAYERS[case], ".weight", ".bias", ".act.scales"])
    dtypes = st.none() | st.sampled_from(sorted(ITEMS))
    one = (
        st.builds(reshaped, suffixes, shapes, dtypes, st.integers(0, 9))
        | st.builds(patched, suffixes, st.integers(0, 1 << 12), st.binary(min_size=1, max_size=64))
        | st.builds(removed, suffixes)
        | st.builds(configured, st.sampled_from(KEYS), values)
    )
    return st.lists(one, min_size=1, max_size=3)


def slabs(tensor: Tensor) -> Iterator[NDArray[np.uint8]]:
    """Read all rows as a conversion does."""
    step = max(1, SLAB_WEIGHTS // tensor.columns)
    for start in range(0, tensor.row_count, step):
        yield tensor.read(start, min(tensor.row_count, start + step))


def survive(unpack: Unpacker, case: str, changes: list[Mutation]) -> None:
    """Unpack and read everything; a qconv error that says where is the only one allowed."""
    name, _, usual = CASES[case]
    tensors, given = dict(LAYERS[case]), dict(usual)
    for change in changes:
        change(tensors, given)
    stored = unpack.checkpoint({f"x{suffix}": value for suffix, value in tensors.items()})
    config = {"quantization_config": given}
    total = sum(item.nbytes for item in stored.values())
    tracemalloc.start()
    begin = time.process_time()
    try:
        if BY_NAME[name].recognises(config, stored):
            for tensor in BY_NAME[name].unpack(stored, config, unpack.encodings).tensors.values():
                if isinstance(tensor, Tensor):
                    assert sum(len(rows) for rows in slabs(tensor)) == tensor.row_count
    except QconvError as error:
        assert isinstance(error, FormatError | ModelError | NonFiniteError)
        assert error.tensor is not None or "quantization_config has" in error.message
        assert error.remedy
    finally:
        elapsed = time.process_time() - begin
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        unpack.close()
    assert elapsed < 2
    assert peak < SLAB + 10 * total


@pytest.mark.parametrize("case", CASES)
def test_mutations(case: str, unpack: Unpacker) -> None:
    @settings(
        max_examples=200,
        deadline=2000,
        derandomize=True,
        suppress_health_check=[HealthCheck.filter_too_much],
        database=None,
    )
    @given(mutations(case))
    def run(changes: list[Mutation]) -> None:
        survive(unpack, case, changes)

    run()


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_has_become_shorter(case: str, unpack: Unpacker) -> None:
    name, _, usual = CASES[case]
    stored = unpack.checkpoint({f"x{suffix}": value for suffix, value in LAYERS[case].items()})
    found = BY_NAME[name].unpack(stored, {"quantization_config": usual}, unpack.encodings)
    path = next(iter(stored.values())).file.path
    with path.open("r+b") as file:
        file.truncate(min(item.offset for item in stored.values()))
    with pytest.raises(TruncatedError, match=r"tensor x\.") as caught:
        tensor = found.tensors["x.weight"]
        assert isinstance(tensor, Tensor)
        tensor.read(0, 32)
    assert caught.value.path == path


@pytest.mark.parametrize("name", [packing.name for packing in PACKINGS])
def test_recognition_never_raises(name: str, unpack: Unpacker) -> None:
    suffixes = [suffix for layer in LAYERS.values() for suffix in layer]

    @settings(max_examples=200, deadline=2000, derandomize=True, database=None)
    @given(
        st.dictionaries(st.sampled_from(suffixes), shapes),
        st.dictionaries(st.sampled_from((*KEYS, "quant_method")), values),
    )
    def run(layer: dict[str, tuple[int, ...]], given: dict[str, Any]) -> None:
        stored = unpack.checkpoint({f"x{suffix}": ("U8", shape, bytes(prod(shape))) for suffix, shape in layer.items()})
        unpack.close()
        assert BY_NAME[name].recognises({"quantization_config": given}, stored) in (True, False)

    run()
