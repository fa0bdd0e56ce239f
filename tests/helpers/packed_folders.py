"""Packers written from the formats' definitions alone: loops over bits and weights, no array tricks, and what the packed weights must be.

A packer takes a matrix (out, in) and returns the stored tensors by suffix, as ``huggingface_folder`` writes them, and the weights that they stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_folder import (
    CONFIGS,
    Stored,
    architecture_named,
    hf_shapes,
    random_weights,
    stored,
    write_folder,
)
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class PackedLayer:
    """Tensors by suffix (``.qweight``), and the weights (out, in) that they stand for."""

    tensors: dict[str, Stored]
    weights: Floats


Packer = Callable[[Floats, np.random.Generator], PackedLayer]


def words_of(fields: Sequence[int], bits: int) -> list[int]:
    """Return 32-bit words that hold the fields one after another, the least significant bit first."""
    number = 0
    for index, value in enumerate(fields):
        assert 0 <= value < 1 << bits
        number |= int(value) << (index * bits)
    count, rest = divmod(len(fields) * bits, 32)
    assert rest == 0
    return [number >> (32 * index) & 0xFFFFFFFF for index in range(count)]


def planes_of(fields: Sequence[int], bits: int) -> list[int]:
    """Return the words of GPTQModel's planar form: per 32 fields, the words of the low plane first."""
    planes = {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}.get(bits, (bits,))
    words: list[int] = []
    for start in range(0, len(fields), 32):
        shift = 0
        for plane in planes:
            part = [int(value) >> shift & ((1 << plane) - 1) for value in fields[start : start + 32]]
            words += words_of(part, plane)
            shift += plane
    return words


def int32(columns: NDArray[np.uint32] | Sequence[Sequence[int]]) -> Stored:
    array = np.asarray(columns, np.uint32)
    return ("I32", array.shape, array.astype("<u4").tobytes())


def float16(values: NDArray[np.floating[Any]]) -> Stored:
    return ("F16", values.shape, values.astype("<f2").tobytes())


def gptq(
    bits: int,
    group_size: int,
    *,
    layout: str = "gptq",
    act_order: bool = False,
    with_g_idx: bool = True,
    sym: bool = False,
    scales_dtype: str = "F16",
    pad_rows: Any = None,
) -> Packer:
    """Return a packer of GPTQ; the codes are the nearest ones, which is all that a reader can tell."""

    def pack(weights: Floats, rng: np.random.Generator) -> PackedLayer:
        outputs, inputs = weights.shape
        size = inputs if group_size == -1 else group_size
        count = -(-inputs // size)
        of_input = np.arange(inputs) // size
        if act_order:
            of_input = of_input[rng.permutation(inputs)]
        top = (1 << bits) - 1
        scales = np.zeros((count, outputs), np.float32)
        zeros = np.zeros((count, outputs), int)
        codes = np.zeros((inputs, outputs), int)
        exact = np.zeros((outputs, inputs), np.float32)
        for n in range(outputs):
            for g in range(count):
                group = weights[n, of_input == g]
                low, high = min(group.min(), 0.0), max(group.max(), 0.0)
                if sym:
                    high = max(-low, high)
                    low = -high
                scale = _rounded(max(high - low, 1e-3) / top, scales_dtype)
                scales[g, n] = scale
                zeros[g, n] = (top + 1) // 2 if sym else min(top, max(0, round(-low / scale)))
            for k in range(inputs):
                g = of_input[k]
                codes[k, n] = min(top, max(0, round(float(weights[n, k]) / scales[g, n]) + zeros[g, n]))
                exact[n, k] = scales[g, n] * np.float32(codes[k, n] - zeros[g, n])
        stream = planes_of if layout == "gptq_p" else words_of
        kept = (zeros - 1) & top if layout == "gptq" else zeros
        tensors = {
            ".qweight": int32(np.array([stream(codes[:, n].tolist(), bits) for n in range(outputs)]).T),
            ".qzeros": int32([stream(kept[g].tolist(), bits) for g in range(count)]),
            ".scales": stored({"x": scales}, "F32" if scales_dtype == "F32" else "BF16")["x"]
            if scales_dtype != "F16"
            else float16(scales),
        }
        if with_g_idx:
            tensors[".g_idx"] = int32(of_input.astype(np.uint32))
        return PackedLayer(tensors, exact)

    return pack


def _rounded(value: float, dtype: str) -> np.float32:
    if dtype == "F16":
        return np.float32(np.float16(value))
    if dtype == "BF16":
        return np.array([value], np.float32).view(np.uint32).__and__(0xFFFF0000).view(np.float32)[0]
    return np.float32(value)


def is_linear(name: str) -> bool:
    """Whether quantizers pack the tensor: a projection of a layer."""
    return name.endswith("_proj.weight")


def packed_tensors(
    weights: Mapping[str, Floats], pack: Packer, chosen: Callable[[str], bool] = is_linear, seed: int = 5
) -> tuple[dict[str, Stored], dict[str, Floats]]:
    """Return a checkpoint's tensors with the chosen ones packed, and what every tensor's weights are then."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Stored] = {}
    truth: dict[str, Floats] = {}
    for name, array in weights.items():
        if chosen(name):
            layer = pack(array, rng)
            tensors |= {name.removesuffix(".weight") + suffix: value for suffix, value in layer.tensors.items()}
            truth[name] = layer.weights
        else:
            tensors |= stored({name: array})
            truth[name] = array
    return tensors, truth


SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "vocab_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def packed_model(
    folder: Path, pack: Packer, settings: Mapping[str, Any] | None, name: str = "llama", **config: Any
) -> dict[str, Floats]:
    """Write a small random model with its projections packed, ``settings`` under ``quantization_config``; return its weights."""
    full = CONFIGS[name] | SIZES | config
    weights = random_weights(hf_shapes(architecture_named(name), full))
    tensors, truth = packed_tensors(weights, pack)
    write_folder(folder, full | ({} if settings is None else {"quantization_config": dict(settings)}), tensors)
    return truth
