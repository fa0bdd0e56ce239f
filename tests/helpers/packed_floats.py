"""Packers of bitsandbytes, compressed-tensors, FP8 and four-bit floats, by the formats' definitions: loops over weights, no array tricks."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache

import numpy as np
from huggingface_folder import Stored
from packed_folders import Floats, PackedLayer, Packer, int32

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = tuple(
    sign * value for sign in (1, -1) for value in (0.0, 0.0052083, 0.6666667, 1.0, 0.3333333, 0.5, 0.1666667, 0.25)
)
E2M1 = tuple(sign * value for sign in (1.0, -1.0) for value in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0))


def float8(code: int, exponent_bits: int = 4) -> float:
    """Return the number of an E4M3 or E5M2 code."""
    mantissa_bits = 7 - exponent_bits
    bias = 2 ** (exponent_bits - 1) - 1
    sign = -1.0 if code >= 128 else 1.0
    exponent, mantissa = (code % 128) >> mantissa_bits, code % (1 << mantissa_bits)
    top = 2**exponent_bits - 1
    if exponent_bits == 4 and code % 128 == 127:
        return math.nan
    if exponent_bits == 5 and exponent == top:
        return math.nan if mantissa else sign * math.inf
    if exponent == 0:
        return sign * mantissa / (1 << mantissa_bits) * math.ldexp(1, 1 - bias)
    return sign * (1 + mantissa / (1 << mantissa_bits)) * math.ldexp(1, exponent - bias)


E4M3 = tuple(float8(code) for code in range(256))


@cache
def _ascending(table: Sequence[float]) -> list[tuple[float, int]]:
    return sorted((value, code) for code, value in enumerate(table) if not math.isnan(value))


def nearest(table: tuple[float, ...], value: float) -> int:
    """Return the code of the number nearest to ``value``."""
    ascending = _ascending(table)
    place = bisect_left(ascending, (value, -1))
    return min(ascending[max(0, place - 1) : place + 1], key=lambda pair: abs(pair[0] - value))[1]


def f32(values: Floats) -> Stored:
    return ("F32", values.shape, values.astype("<f4").tobytes())


def bf16(values: Floats) -> Stored:
    """Store values that BF16 holds exactly."""
    bits = values.astype("<f4").view("<u4")
    assert not (bits & 0xFFFF).any()
    return ("BF16", values.shape, (bits >> 16).astype("<u2").tobytes())


def to_bf16(value: float) -> float:
    """Round to BF16, ties to even, on numbers and not on bits."""
    if value == 0:
        return value
    mantissa, exponent = math.frexp(value)  # 0.5 <= |mantissa| < 1, of which 8 bits stay
    return math.ldexp(round(math.ldexp(mantissa, 8)), exponent - 8)


def octets(values: Sequence[int], *shape: int, dtype: str = "U8") -> Stored:
    return (dtype, shape or (len(values),), bytes(value % 256 for value in values))


# --- bitsandbytes ------------------------------------------------------------------------------------------------------------------


def bitsandbytes_4bit(
    kind: str = "nf4", block: int = 64, dtype: str = "bfloat16", nested: int | None = None, storage: str = "U8"
) -> Packer:
    """Return a packer of NF4 or FP4; ``nested`` is the number of blocks whose scales share a scale."""
    table = tuple(float(np.float32(value)) for value in (NF4 if kind == "nf4" else FP4))

    def pack(weights: Floats, rng: np.random.Generator) -> PackedLayer:
        flat = [float(value) for value in weights.reshape(-1)]
        state = {"quant_type": kind, "blocksize": block, "dtype": dtype, "shape": list(weights.shape)}
        absmax = [max(abs(value) for value in flat[start : start + block]) for start in range(0, len(flat), block)]
        tensors: dict[str, Stored] = {}
        if nested is None:
            scales = [np.float32(value) for value in absmax]
            tensors[".weight.absmax"] = f32(np.array(scales, np.float32))
        else:
            offset = np.float32(sum(absmax) / len(absmax))
            grid = np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
            centred = [value - float(offset) for value in absmax]
            outer = [
                np.float32(max(abs(value) for value in centred[start : start + nested]) or 1.0)
                for start in range(0, len(centred), nested)
            ]
            codes = [
                nearest(tuple(grid.tolist()), value / float(outer[i // nested])) for i, value in enumerate(centred)
            ]
            scales = [np.float32(np.float32(grid[code] * outer[i // nested]) + offset) for i, code in enumerate(codes)]
            tensors[".weight.absmax"] = octets(codes)
            tensors[".weight.nested_absmax"] = f32(np.array(outer, np.float32))
            tensors[".weight.nested_quant_map"] = f32(grid)
            state |= {"nested_blocksize": nested, "nested_dtype": "float32", "nested_offset": float(offset)}
        chosen = [nearest(table, value / float(scales[i // block])) for i, value in enumerate(flat)]
        exact = [float(np.float32(table[code]) * scales[i // block]) for i, code in enumerate(chosen)]
        if dtype == "bfloat16":
            exact = [to_bf16(value) for value in exact]
        elif dtype == "float16":
            exact = [float(np.float16(value)) for value in exact]
        chosen += [0] * (len(chosen) % 2)
        packed = [chosen[i] * 16 + chosen[i + 1] for i in range(0, len(chosen), 2)]
        size = {"U8": 1, "BF16": 2, "F32": 4}[storage]
        tensors[".weight"] = octets(packed, len(packed) // size, 1, dtype=storage)
        tensors[".weight.quant_map"] = f32(np.array(table, np.float32))
        description = json.dumps(state).encode()
        tensors[f".weight.quant_state.bitsandbytes__{kind}"] = octets(list(description))
        return PackedLayer(tensors, np.array(exact, np.float32).reshape(weights.shape))

    return pack


def bitsandbytes_int8(weights: Floats, rng: np.random.Generator) -> PackedLayer:
    """Pack rows of 8-bit integers."""
    rows, columns = weights.shape
    scales = [np.float32(max(abs(float(value)) for value in row)) for row in weights]
    codes = [[round(float(weights[n, k]) / float(scales[n]) * 127) for k in range(columns)] for n in range(rows)]
    exact = [
        [np.float32(np.float32(codes[n][k]) * scales[n]) * np.float32(1 / 127) for k in range(columns)]
        for n in range(rows)
    ]
    tensors = {
        ".weight": octets([code for row in codes for code in row], rows, columns, dtype="I8"),
        ".SCB": f32(np.array(scales, np.float32)),
        ".weight_format": ("U8", (), b"\0"),
    }
    return PackedLayer(tensors, np.array(exact, np.float32))


# --- compressed-tensors ------------------------------------------------------------------------------------------------------------


def fields_to_words(fields: Sequence[int], bits: int, dense: bool) -> list[int]:
    """Return 32-bit words: a stream of fields, or whole fields only in each word."""
    words = [0] * (-(-len(fields) * bits // 32) if dense else -(-len(fields) // (32 // bits)))
    for index, field in enumerate(fields):
        for bit in range(bits):
            place = index * bits + bit if dense else index // (32 // bits) * 32 + index % (32 // bits) * bits + bit
            words[place // 32] |= (field >> bit & 1) << (place % 32)
    return words


def word_integers(
    bits: int, group: int | None, symmetric: bool = True, dense: bool = True, act_order: bool = False
) -> Packer:
    """Return a packer of pack-quantized with BF16 scales, whose products are rounded to BF16."""

    def pack(weights: Floats, rng: np.random.Generator) -> PackedLayer:
        rows, columns = weights.shape
        size = group or columns
        count = columns // size
        of_column = [k // size for k in range(columns)]
        if act_order:
            of_column = [of_column[k] for k in rng.permutation(columns)]
        half, top = 1 << bits - 1, (1 << bits) - 1
        scales, zeros = np.zeros((rows, count), np.float32), np.full((rows, count), half, int)
        codes, exact = np.zeros((rows, columns), int), np.zeros((rows, columns), np.float32)
        for n in range(rows):
            for g in range(count):
                members = [float(weights[n, k]) for k in range(columns) if of_column[k] == g]
                low, high = min(*members, 0.0), max(*members, 0.0)
                spread = 2 * max(-low, high) if symmetric else high - low
                scales[n, g] = to_bf16(max(spread, 1e-3) / top)
                if not symmetric:
                    zeros[n, g] = min(top, max(0, round(-low / float(scales[n, g]))))
            for k in range(columns):
                g = of_column[k]
                codes[n, k] = min(top, max(0, round(float(weights[n, k]) / float(scales[n, g])) + zeros[n, g]))
                exact[n, k] = to_bf16(float(scales[n, g]) * int(codes[n, k] - zeros[n, g]))
        tensors = {
            ".weight_packed": int32([fields_to_words(row.tolist(), bits, dense) for row in codes]),
            ".weight_scale": bf16(scales),
            ".weight_shape": ("I64", (2,), np.array([rows, columns], "<i8").tobytes()),
        }
        if not symmetric:
            down = [fields_to_words(zeros[:, g].tolist(), bits, dense) for g in range(count)]
            tensors[".weight_zero_point"] = int32(np.array(down, np.uint32).T)
        if act_order:
            tensors[".weight_g_idx"] = int32(np.array(of_column, np.uint32))
        return PackedLayer(tensors, exact)

    return pack


# --- 8-bit floats --------------------------------------------------------------------------------------------------------------------


def float8_blocks(block: tuple[int, int], suffix: str = ".weight_scale_inv", dtype: str = "F32") -> Packer:
    """Return a packer of E4M3 with a scale for each block; blocks larger than the matrix give one for the tensor."""

    def pack(weights: Floats, rng: np.random.Generator) -> PackedLayer:
        rows, columns = weights.shape
        grid = (-(-rows // block[0]), -(-columns // block[1]))
        scales, powers = np.zeros(grid, np.float32), np.zeros(grid, np.uint8)
        codes, exact = [], np.zeros((rows, columns), np.float32)
        for i in range(grid[0]):
            for j in range(grid[1]):
                part = weights[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
                scale = float(np.abs(part).max()) / 448
                powers[i, j] = max(0, math.ceil(math.log2(scale)) + 127)
                scales[i, j] = (
                    scale if dtype == "F32" else to_bf16(scale) if dtype == "BF16" else 2.0 ** (int(powers[i, j]) - 127)
                )
        for n in range(rows):
            for k in range(columns):
                scale = scales[n // block[0], k // block[1]]
                codes.append(nearest(E4M3, float(weights[n, k]) / float(scale)))
                exact[n, k] = np.float32(E4M3[codes[-1]]) * scale
        held = {
            "F32": f32(scales),
            "BF16": None,
            "F8_E8M0": ("F8_E8M0", grid, powers.tobytes()),
            "U8": ("U8", grid, powers.tobytes()),
        }
        if dtype == "BF16":
            held["BF16"] = bf16(scales)
        chosen = held[dtype]
        assert chosen is not None
        return PackedLayer({".weight": octets(codes, rows, columns, dtype="F8_E4M3"), suffix: chosen}, exact)

    return pack


# --- four-bit floats -----------------------------------------------------------------------------------------------------------------


def nvfp4(layout: str = "modelopt", with_scale: bool = True) -> Packer:
    """Return a packer of NVFP4 as ``modelopt`` or ``compressed-tensors`` lays it out.

    The weights are those of the blocks, without the scale of the whole tensor.
    """

    def pack(weights: Floats, rng: np.random.Generator) -> PackedLayer:
        rows, columns = weights.shape
        whole = np.float32(np.abs(weights).max() / (6 * 448)) if with_scale else np.float32(1)
        packed, scales, exact = [], [], np.zeros((rows, columns), np.float32)
        for n in range(rows):
            codes = []
            for start in range(0, columns, 16):
                group = [float(weights[n, k]) / float(whole) for k in range(start, start + 16)]
                scale = max(1, nearest(E4M3[:127], max(abs(value) for value in group) / 6))
                scales.append(scale)
                for k, value in enumerate(group, start):
                    codes.append(nearest(E2M1, value / E4M3[scale]))
                    exact[n, k] = E2M1[codes[-1]] * E4M3[scale]
            packed += [codes[k] + 16 * codes[k + 1] for k in range(0, columns, 2)]
        tensors = {".weight_scale": octets(scales, rows, columns // 16, dtype="F8_E4M3")}
        if layout == "modelopt":
            tensors[".weight"] = octets(packed, rows, columns // 2)
            tensors[".input_scale"] = ("F32", (), np.float32(0.01).tobytes())
            if with_scale:
                tensors[".weight_scale_2"] = ("F32", (), whole.tobytes())
        else:
            tensors[".weight_packed"] = octets(packed, rows, columns // 2)
            tensors[".weight_global_scale"] = f32(np.array([1 / whole], np.float32))
        return PackedLayer(tensors, exact)

    return pack


def mxfp4_codes(weights: Floats) -> tuple[list[int], list[int], Floats]:
    """Return the codes' bytes, lower half first, the E8M0 scales, one for 32 weights of a row, and the weights that they stand for."""
    packed, scales, exact = [], [], np.zeros(weights.size, np.float32)
    flat = weights.reshape(-1)
    for start in range(0, flat.size, 32):
        group = [float(value) for value in flat[start : start + 32]]
        power = math.floor(math.log2(max(abs(value) for value in group))) - 2
        scales.append(power + 127)
        codes = [nearest(E2M1, value / 2.0**power) for value in group]
        exact[start : start + 32] = [E2M1[code] * 2.0**power for code in codes]
        packed += [codes[k] + 16 * codes[k + 1] for k in range(0, 32, 2)]
    return packed, scales, exact.reshape(weights.shape)


def mxfp4(weights: Floats, rng: np.random.Generator) -> PackedLayer:
    """Pack a matrix as compressed-tensors lays MXFP4 out."""
    packed, scales, exact = mxfp4_codes(weights)
    rows, columns = weights.shape
    tensors = {
        ".weight_packed": octets(packed, rows, columns // 2),
        ".weight_scale": octets(scales, rows, columns // 32),
    }
    return PackedLayer(tensors, exact)


def mxfp4_experts(weights: Floats, rng: np.random.Generator) -> PackedLayer:
    """Pack a matrix as two experts' as gpt-oss has them; the tensor is ``.weight``, as a suffix of a module."""
    packed, scales, exact = mxfp4_codes(weights)
    rows, columns = weights.shape
    tensors = {
        ".weight_blocks": octets(packed, 2, rows // 2, columns // 32, 16),
        ".weight_scales": octets(scales, 2, rows // 2, columns // 32),
    }
    return PackedLayer(tensors, exact)
