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
    safetensors_bytes,
    stored,
    write_folder,
)
from numpy.typing import NDArray
from qconv_encodings import ENCODINGS

from qconv.formats.base import Tensor
from qconv.formats.huggingface.safetensors import read_header
from qconv.formats.packed import Packing, Unpacked
from qconv.formats.positional import PositionalFile
from qconv.formats.stored import StoredTensor

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
        return np.float32((np.array([value], np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)[0])
    return np.float32(value)


AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column of each nibble of a word


def _affine(weights: Floats, group_size: int, top: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats, Floats]:
    """Return codes (out, in), zero points and float16 scales (out, groups), and the weights that they stand for."""
    outputs, inputs = weights.shape
    count = -(-inputs // group_size)
    codes = np.zeros(weights.shape, np.int64)
    zeros, scales = np.zeros((outputs, count), np.int64), np.zeros((outputs, count), np.float32)
    exact = np.zeros(weights.shape, np.float32)
    for n in range(outputs):
        for g in range(count):
            part = slice(g * group_size, (g + 1) * group_size)
            low, high = min(weights[n, part].min(), 0.0), max(weights[n, part].max(), 0.0)
            scale = np.float32(np.float16(max(high - low, 1e-3) / top))
            scales[n, g], zeros[n, g] = scale, min(top, max(0, round(-low / scale)))
            for k in range(part.start, min(part.stop, inputs)):
                codes[n, k] = min(top, max(0, round(float(weights[n, k]) / scale) + zeros[n, g]))
                exact[n, k] = scale * np.float32(codes[n, k] - zeros[n, g])
    return codes, zeros, scales, exact


def awq_gemm(group_size: int) -> Packer:
    """Return a packer of AWQ's version gemm: eight outputs in a word, evens before odds."""

    def words(rows: NDArray[np.int64]) -> list[list[int]]:
        return [
            [
                sum(int(row[start + column]) << (4 * nibble) for nibble, column in enumerate(AWQ_ORDER))
                for start in range(0, len(row), 8)
            ]
            for row in rows
        ]

    def pack(weights: Floats, rng: np.random.Generator) -> PackedLayer:
        codes, zeros, scales, exact = _affine(weights, group_size, 15)
        tensors = {".qweight": int32(words(codes.T)), ".qzeros": int32(words(zeros.T)), ".scales": float16(scales.T)}
        return PackedLayer(tensors, exact)

    return pack


def awq_gemv(group_size: int) -> Packer:
    """Return a packer of AWQ's version gemv: eight inputs in a word, and a padded number of groups."""

    def pack(weights: Floats, rng: np.random.Generator) -> PackedLayer:
        codes, zeros, scales, exact = _affine(weights, group_size, 15)
        outputs, count = zeros.shape
        zero_words = -(-count // 8)
        if group_size < 128:
            zero_words = -(-zero_words // (128 // group_size)) * (128 // group_size)
        padded_zeros = np.concatenate([zeros, rng.integers(0, 16, (outputs, zero_words * 8 - count))], axis=1)
        padded_scales = np.full((outputs, zero_words * 8), np.nan, np.float32)
        padded_scales[:, :count] = scales
        tensors = {
            ".qweight": int32([words_of(row.tolist(), 4) for row in codes]),
            ".qzeros": int32([words_of(row.tolist(), 4) for row in padded_zeros]),
            ".scales": float16(padded_scales),
        }
        return PackedLayer(tensors, exact)

    return pack


def awq_gemv_fast(group_size: int) -> Packer:
    """Return a packer of AWQ's version gemv_fast; scales are exact in float16, zero points times scales too."""

    def pack(weights: Floats, rng: np.random.Generator) -> PackedLayer:
        outputs, inputs = weights.shape
        groups = inputs // group_size
        rows = -(-groups // 8) * 8
        codes = rng.integers(0, 16, (outputs, inputs))
        scales = np.full((rows, outputs), np.float16(9.0))
        scales[:groups] = 2.0 ** rng.integers(-6, -2, (groups, outputs))
        zeros = (-scales.astype(np.float32) * rng.integers(0, 16, scales.shape)).astype(np.float16)
        words = np.zeros((outputs // 4, inputs), np.uint16)
        exact = np.zeros((outputs, inputs), np.float32)
        for n in range(outputs):
            for block in range(inputs // 64):
                for place in range(64):
                    half, inside = divmod(place, 32)
                    eighth, stored = divmod(inside, 8)
                    source = 8 * eighth + (0, 2, 4, 6, 1, 3, 5, 7)[stored]  # in the order of pairs from each quarter
                    k = 32 * half + 8 * (source // 2 % 4) + 2 * (source // 8) + source % 2
                    word = 64 * block + 16 * (n % 4) + place // 4
                    words[n // 4, word] |= int(codes[n, 64 * block + k]) << (4 * (place % 4))
            for k in range(inputs):
                g = k // group_size
                exact[n, k] = np.float32(codes[n, k]) * np.float32(scales[g, n]) + np.float32(zeros[g, n])
        tensors = {
            ".qweight": ("I16", words.shape, words.astype("<u2").tobytes()),
            ".qzeros": float16(zeros),
            ".scales": float16(scales),
        }
        return PackedLayer(tensors, exact)

    return pack


def marlin(group_size: int) -> Packer:
    """Return a packer of Marlin's form; scales are powers of two."""

    def pack(weights: Floats, rng: np.random.Generator) -> PackedLayer:
        outputs, inputs = weights.shape
        groups = 1 if group_size == -1 else inputs // group_size
        codes = rng.integers(0, 16, (inputs, outputs))
        scales = 2.0 ** rng.integers(-6, -2, (groups, outputs))
        words = np.zeros((inputs // 16, 2 * outputs), np.uint32)
        for k in range(inputs):
            for n in range(outputs):
                block, inside = divmod(n, 64)
                tile, column = divmod(inside, 16)
                row = k % 16
                thread = 4 * (column % 8) + row % 8 // 2
                place = (row % 2) + 2 * (row // 8) + 4 * (column // 8)
                nibble = (0, 4, 1, 5, 2, 6, 3, 7)[place]
                words[k // 16, 128 * block + 4 * thread + tile] |= np.uint32(int(codes[k, n]) << (4 * nibble))
        kept = np.zeros((groups, outputs), np.float32)
        for n in range(outputs):
            if groups == 1:
                block, inside = divmod(n, 32)
                kept[:, 32 * block + 8 * (inside % 8 // 2) + 2 * (inside // 8) + inside % 2] = scales[:, n]
            else:
                block, inside = divmod(n, 64)
                kept[:, 64 * block + 8 * (inside % 8) + inside // 8] = scales[:, n]
        exact = (codes - 8) * np.repeat(scales, inputs // groups, axis=0)
        return PackedLayer({".B": int32(words), ".s": float16(kept)}, exact.T.astype(np.float32))

    return pack


def exl2(groups: Callable[[int], Sequence[tuple[int, int]]], scale: float = 1.0) -> Packer:
    """Return a packer of EXL2; ``groups`` gives (bits, inputs) of each group for a number of inputs.

    ``scale`` multiplies the largest scales: small ones make the float16 steps subnormal. Outputs are padded to 32.
    """

    def pack(weights: Floats, rng: np.random.Generator) -> PackedLayer:
        outputs, inputs = weights.shape
        padded = -(-outputs // 32) * 32
        perm = rng.permutation(inputs)
        words: list[list[int]] = []
        pairs, roots, largest = [], [], []
        values = np.zeros((inputs, padded), np.float16)  # in packed order
        done = 0
        for bits, size in groups(inputs):
            pairs += [bits, len(words)]
            half = 1 << (bits - 1)
            maximum = np.float16(scale * rng.uniform(0.5, 1.0) / half)
            step = np.float16(float(maximum) / 256)
            root = rng.integers(0, 16, padded)
            codes = rng.integers(0, 2 * half, (size, padded))
            codes[:, outputs:] = half
            for n in range(padded):
                factor = np.float16(float((int(root[n]) + 1) ** 2) * float(step))
                for k in range(size):
                    values[done + k, n] = np.float16(float(int(codes[k, n]) - half) * float(factor))
            words += np.array([words_of(codes[:, n].tolist(), bits) for n in range(padded)]).T.tolist()
            roots.append(words_of(root.tolist(), 4))
            largest.append(maximum)
            done += size
        assert done == inputs
        inverse = [0] * inputs
        for row, original in enumerate(perm):
            inverse[original] = row
        exact = np.zeros((outputs, inputs), np.float32)
        for k in range(inputs):
            exact[:, k] = values[inverse[k], :outputs]
        tensors = {
            ".q_weight": int32(words),
            ".q_scale": int32(roots),
            ".q_scale_max": float16(np.array(largest, np.float16)),
            ".q_groups": ("I16", (len(pairs),), np.array(pairs, "<i2").tobytes()),
            ".q_invperm": int32(np.array(inverse, np.uint32)),
        }
        return PackedLayer(tensors, exact)

    return pack


def exl3(bits: float, codebook: str = "", *, signs: bool = False) -> Packer:
    """Return a packer of EXL3 with random states; ``codebook`` is ``mcg`` or ``mul1``, ``signs`` the form of older files. Both sides are padded to 128."""

    def pack(weights: Floats, rng: np.random.Generator) -> PackedLayer:
        outputs, inputs = (-(-size // 128) * 128 for size in weights.shape)
        tiles = rng.integers(0, 1 << 16, (inputs // 16, outputs // 16, int(16 * bits)), np.uint16)
        values = np.zeros((inputs, outputs), np.float16)
        for k in range(inputs // 16):
            for n in range(outputs // 16):
                words = tiles[k, n].reshape(-1, 2)
                ring = "".join(f"{int(high):016b}{int(low):016b}" for low, high in words)
                end = 0
                for t in range(256):
                    end += int(bits) + (t % 2 if bits % 1 else 0)
                    state = int((ring + ring)[len(ring) + end - 16 : len(ring) + end], 2)
                    row = 2 * (t // 8 % 4) + t % 2 + 8 * (t // 2 % 2)
                    column = t // 32 + 8 * (t // 4 % 2)
                    values[16 * k + row, 16 * n + column] = trellis_number(state, codebook)
        sides = [np.where(rng.random(size) < 0.5, -1, 1).astype(np.float16) for size in (inputs, outputs)]
        if not signs:
            sides = [(side * rng.uniform(0.01, 0.1, side.size)).astype(np.float16) for side in sides]
        turn = np.array([[(-1.0) ** (i & j).bit_count() for j in range(128)] for i in range(128)]) / 128**0.5
        left = (turn @ values.astype(np.float64).reshape(-1, 128, outputs)).reshape(inputs, outputs).astype(np.float16)
        left = (left.astype(np.float64) * sides[0].astype(np.float64)[:, None]).astype(np.float16)
        right = (left.astype(np.float64).reshape(inputs, -1, 128) @ turn).reshape(inputs, outputs).astype(np.float16)
        exact = (right.astype(np.float64) * sides[1].astype(np.float64)).astype(np.float16)
        tensors: dict[str, Stored] = {".trellis": ("I16", tiles.shape, tiles.astype("<u2").tobytes())}
        for letter, side in zip("uv", sides, strict=True):
            if signs:
                words_ = np.packbits(side < 0, bitorder="little").view("<i2")
                tensors[f".s{letter}"] = ("I16", words_.shape, words_.tobytes())
            else:
                tensors[f".s{letter}h"] = float16(side)
        if codebook:
            tensors[f".{codebook}"] = ("I32", (), bytes(4))
        return PackedLayer(tensors, exact.T[: weights.shape[0], : weights.shape[1]].astype(np.float32))

    return pack


def trellis_number(state: int, codebook: str) -> np.float16:
    """Return the number of a state by integer arithmetic, one step after another."""
    if codebook == "mul1":
        total = sum((state * 0x83DCD12D & 0xFFFFFFFF).to_bytes(4, "little"))
        step, bias = (float(np.array(word, np.uint16).view(np.float16)) for word in (0x1EEE, 0xC931))
        return np.float16((1024 + total) * step + bias)
    product = state * 0xCBAC1FED if codebook == "mcg" else state * 89226354 + 64248484
    mixed = product & 0x8FFF8FFF ^ 0x3B603B60
    low, high = (float(np.array(word, np.uint16).view(np.float16)) for word in (mixed & 0xFFFF, mixed >> 16))
    return np.float16(low + high)


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


class Unpacker:
    """Unpacks layers that it writes to a folder: ``unpack(PACKING, {".qweight": …}, settings).tensors["x.weight"]``."""

    encodings = ENCODINGS

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: list[PositionalFile] = []

    def checkpoint(self, tensors: Mapping[str, Stored]) -> dict[str, StoredTensor]:
        """Write the tensors to a file of their own and open it."""
        path = self._folder / f"{len(self._files)}.safetensors"
        path.write_bytes(safetensors_bytes(tensors))
        self._files.append(PositionalFile(path))
        return read_header(self._files[-1])[0]

    def __call__(self, packing: Packing, layer: Mapping[str, Stored], settings: Mapping[str, Any]) -> Unpacked:
        """Return what the packing makes of the one layer ``x``, given by suffix."""
        tensors = self.checkpoint({f"x{suffix}": value for suffix, value in layer.items()})
        return packing.unpack(tensors, {"quantization_config": dict(settings)}, ENCODINGS)

    def close(self) -> None:
        """Close and remove every file."""
        for file in self._files:
            file.close()
            file.path.unlink()
        self._files.clear()


def rows_of(tensor: Tensor | StoredTensor, start: int = 0, stop: int | None = None) -> Floats:
    """Return rows of an unpacked tensor."""
    assert isinstance(tensor, Tensor)
    return tensor.rows(start, tensor.row_count if stop is None else stop)
