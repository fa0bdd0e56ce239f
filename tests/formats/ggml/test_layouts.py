"""Each old layout against the formula of its time, weight by weight in plain loops."""

from __future__ import annotations

import struct
from collections.abc import Callable

import gguf
import numpy as np
import pytest
from ggml_files import q4_0_rows, q4_1_rows, q8_0_rows
from numpy.typing import NDArray

from qconv.formats.ggml import blocks, superblocks
from qconv.formats.ggml.layouts import readings

Bytes = NDArray[np.uint8]
F = np.float32


def as_bytes(data: bytes, rows: int) -> Bytes:
    return np.frombuffer(data, np.uint8).reshape(rows, -1)


def sample(columns: int = 96, rows: int = 5) -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(size=(rows, columns)).astype(np.float32)


@pytest.mark.parametrize(
    ("convert", "order", "planar"),
    [
        (blocks.q4_0_interleaved, "interleaved", False),
        (blocks.q4_0_split, "split", False),
        (blocks.q4_0_planar, "interleaved", True),
    ],
)
def test_q4_0(convert: Callable[[Bytes], Bytes], order: str, planar: bool) -> None:
    data, decoded = q4_0_rows(sample(), order, planar)
    assert np.array_equal(convert(as_bytes(data, 5)).view("<f4"), decoded)


@pytest.mark.parametrize(
    ("convert", "order", "planar"),
    [
        (blocks.q4_1_interleaved, "interleaved", False),
        (blocks.q4_1_split, "split", False),
        (blocks.q4_1_planar, "interleaved", True),
    ],
)
def test_q4_1(convert: Callable[[Bytes], Bytes], order: str, planar: bool) -> None:
    data, decoded = q4_1_rows(sample(), order, planar)
    assert np.array_equal(convert(as_bytes(data, 5)).view("<f4"), decoded)


def test_q8_0() -> None:
    data, decoded = q8_0_rows(sample())
    assert np.array_equal(blocks.q8_0(as_bytes(data, 5)).view("<f4"), decoded)


def test_q4_2_and_q4_3() -> None:
    random = np.random.default_rng(4)
    packed = [random.integers(0, 256, 8, np.uint8).tobytes() for _ in range(6)]
    scales, minima = random.normal(size=(2, 6)).astype(np.float16)
    four_2 = b"".join(scale.tobytes() + codes for scale, codes in zip(scales, packed, strict=True))
    four_3 = b"".join(d.tobytes() + m.tobytes() + codes for d, m, codes in zip(scales, minima, packed, strict=True))
    codes = [[nibble for byte in block for nibble in (byte & 15, byte >> 4)] for block in packed]
    wanted_2 = [F(d) * F(q - 8) for d, block in zip(scales, codes, strict=True) for q in block]
    wanted_3 = [F(d) * F(q) + F(m) for d, m, block in zip(scales, minima, codes, strict=True) for q in block]
    assert np.array_equal(blocks.q4_2(as_bytes(four_2, 2)).view("<f4").reshape(-1), wanted_2)
    assert np.array_equal(blocks.q4_3(as_bytes(four_3, 2)).view("<f4").reshape(-1), wanted_3)


@pytest.mark.parametrize(("size", "kind"), [(22, "Q5_0"), (24, "Q5_1")])
def test_q5_becomes_ggufs(size: int, kind: str) -> None:
    """Weights 2j and 2j + 1 in byte j go to bytes j and j - 16; scales and fifth bits stay."""
    random = np.random.default_rng(5)
    data = random.integers(0, 256, (3, 4 * size), np.uint8)
    heads = random.normal(size=(3, 4, 2)).astype("<f2").view(np.uint8).reshape(3, 4, 4)
    data.reshape(3, 4, size)[..., : size - 20] = heads[..., : size - 20]
    convert = blocks.q5_0_reordered if kind == "Q5_0" else blocks.q5_1_reordered
    found = gguf.dequantize(convert(data), gguf.GGMLQuantizationType[kind]).reshape(-1, 32)
    for block, weights in zip(data.reshape(-1, size), found, strict=True):
        raw = block.tobytes()
        scale = F(np.frombuffer(raw, "<f2", 1)[0])
        least = F(np.frombuffer(raw, "<f2", 2)[1]) if kind == "Q5_1" else None
        (fifth,) = struct.unpack_from("<I", raw, size - 20)
        for i in range(32):
            code = (raw[size - 16 + i // 2] >> 4 * (i % 2) & 15) | (fifth >> i & 1) << 4
            assert weights[i] == (F(code) * scale + least if least is not None else F(code - 16) * scale)


def signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def half(raw: bytes, offset: int) -> np.float32:
    return F(np.frombuffer(raw, "<f2", 1, offset)[0])


def small_q2_k(raw: bytes, e: int) -> np.float32:
    scales, codes = raw[:4], raw[4:20]
    q = codes[e % 16] >> 2 * (e // 16) & 3
    return half(raw, 20) * F(scales[e // 16] & 15) * F(q) - half(raw, 22) * F(scales[e // 16] >> 4)


def small_q3_k(raw: bytes, e: int) -> np.float32:
    high, codes, scales = raw[:8], raw[8:24], raw[24:26]
    s = e // 16
    scale = (scales[s // 2] >> 4 * (s % 2) & 15) - 8
    q = (codes[e % 16] >> 2 * s & 3) - (0 if high[e % 8] >> e // 8 & 1 else 4)
    return half(raw, 26) * F(scale) * F(q)


def small_q4_k(raw: bytes, e: int) -> np.float32:
    scales, codes = raw[4:6], raw[6:38]
    q = codes[e] & 15 if e < 32 else codes[e - 32] >> 4
    return half(raw, 0) * F(scales[e // 32] & 15) * F(q) - half(raw, 2) * F(scales[e // 32] >> 4)


def small_q5_k(raw: bytes, e: int) -> np.float32:
    scales, high, codes = raw[2:6], raw[6:14], raw[14:46]
    q = (codes[e] & 15 if e < 32 else codes[e - 32] >> 4) - (0 if high[e % 8] >> e // 8 & 1 else 16)
    return half(raw, 0) * F(signed(scales[e // 16])) * F(q)


def small_q6_k(raw: bytes, e: int) -> np.float32:
    low, high, scales = raw[:32], raw[32:48], raw[48:52]
    q = (low[e] & 15 if e < 32 else low[e - 32] >> 4) | (high[e % 16] >> 2 * (e // 16) & 3) << 4
    return half(raw, 52) * F(signed(scales[e // 16])) * F(q - 32)


@pytest.mark.parametrize(
    ("convert", "weight", "size", "halves"),
    [
        (superblocks.q2_k, small_q2_k, 24, (20, 22)),
        (superblocks.q3_k, small_q3_k, 28, (26,)),
        (superblocks.q4_k, small_q4_k, 38, (0, 2)),
        (superblocks.q5_k, small_q5_k, 46, (0,)),
        (superblocks.q6_k, small_q6_k, 54, (52,)),
    ],
)
def test_super_blocks_of_64(
    convert: Callable[[Bytes], Bytes], weight: Callable[[bytes, int], np.float32], size: int, halves: tuple[int, ...]
) -> None:
    random = np.random.default_rng(size)
    data = random.integers(0, 256, (4, 2, size), np.uint8)
    for offset in halves:
        data[..., offset : offset + 2] = random.normal(size=(4, 2, 1)).astype("<f2").view(np.uint8)
    found = convert(data.reshape(4, -1)).view("<f4").reshape(-1, 64)
    wanted = [[weight(block.tobytes(), e) for e in range(64)] for block in data.reshape(-1, size)]
    assert np.array_equal(found, np.array(wanted, np.float32))


def test_every_type_takes_any_number_of_rows_and_blocks() -> None:
    """What a reader relies on: whole rows in, whole rows of the stated encoding out."""
    sizes = {"F32": (1, 4), "Q5_0": (32, 22), "Q5_1": (32, 24)}
    for container, version in (("ggml", 0), ("ggmf", 1), ("ggjt", 1), ("ggjt", 2), ("ggjt", 3)):
        for reading in readings(container, version):
            for kind in reading.types.values():
                if kind.convert is None:
                    continue
                block, nbytes = sizes[kind.encoding]
                for rows, blocks_per_row in ((0, 4), (1, 4), (3, 8)):
                    columns = kind.weights * blocks_per_row
                    data = np.zeros((rows, kind.row_bytes(columns)), np.uint8)
                    assert kind.convert(data).shape == (rows, columns // block * nbytes), (reading.name, kind.name)
