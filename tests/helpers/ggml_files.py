"""Files of the ggml family put together by hand, sound or hostile, without qconv's own writer.

A small Llama: 64 columns, 4 heads, 1 layer, 192 feed-forward columns, 268 tokens. Types are written block by block in plain Python loops.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MAGICS = {"ggml": b"lmgg", "ggmf": b"fmgg", "ggjt": b"tjgg"}
EMBEDDING, HEADS, FEED_FORWARD, VOCABULARY = 64, 4, 192, 268

# Meta's names, with shapes in NumPy order
SHAPES: dict[str, tuple[int, ...]] = {
    "tok_embeddings.weight": (VOCABULARY, EMBEDDING),
    "norm.weight": (EMBEDDING,),
    "output.weight": (VOCABULARY, EMBEDDING),
    "layers.0.attention.wq.weight": (EMBEDDING, EMBEDDING),
    "layers.0.attention.wk.weight": (EMBEDDING, EMBEDDING),
    "layers.0.attention.wv.weight": (EMBEDDING, EMBEDDING),
    "layers.0.attention.wo.weight": (EMBEDDING, EMBEDDING),
    "layers.0.attention_norm.weight": (EMBEDDING,),
    "layers.0.feed_forward.w1.weight": (FEED_FORWARD, EMBEDDING),
    "layers.0.feed_forward.w2.weight": (EMBEDDING, FEED_FORWARD),
    "layers.0.feed_forward.w3.weight": (FEED_FORWARD, EMBEDDING),
    "layers.0.ffn_norm.weight": (EMBEDDING,),
}
GGUF_NAMES = {
    "tok_embeddings.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "output.weight": "output.weight",
    "layers.0.attention.wq.weight": "blk.0.attn_q.weight",
    "layers.0.attention.wk.weight": "blk.0.attn_k.weight",
    "layers.0.attention.wv.weight": "blk.0.attn_v.weight",
    "layers.0.attention.wo.weight": "blk.0.attn_output.weight",
    "layers.0.attention_norm.weight": "blk.0.attn_norm.weight",
    "layers.0.feed_forward.w1.weight": "blk.0.ffn_gate.weight",
    "layers.0.feed_forward.w2.weight": "blk.0.ffn_down.weight",
    "layers.0.feed_forward.w3.weight": "blk.0.ffn_up.weight",
    "layers.0.ffn_norm.weight": "blk.0.ffn_norm.weight",
}
COLUMN_SPLIT = ("tok_embeddings.weight", "attention.wo.weight", "feed_forward.w2.weight")

Token = tuple[bytes, float]


def vocabulary(pieces: Sequence[bytes] = (b" ", b"e", b"t", b" t", b"he", b" the", b"a", b"o", b" a")) -> list[Token]:
    """Unknown, start and end, the 256 bytes, then ``pieces`` by rank."""
    special = [(b" \xe2\x81\x87 ", 0.0), (b"", 0.0), (b"", 0.0)]
    return special + [(bytes([i]), 0.0) for i in range(256)] + [(piece, -float(i)) for i, piece in enumerate(pieces)]


@dataclass(frozen=True)
class Record:
    """One tensor record; any field may lie."""

    name: str | bytes
    extents: tuple[int, ...]
    kind: int
    data: bytes
    dimensions: int | None = None
    name_length: int | None = None

    def build(self, position: int, aligned: bool) -> bytes:
        name = self.name.encode() if isinstance(self.name, str) else self.name
        dimensions = len(self.extents) if self.dimensions is None else self.dimensions
        length = len(name) if self.name_length is None else self.name_length
        head = struct.pack(f"<3I{len(self.extents)}I", dimensions, length, self.kind, *self.extents) + name
        padding = -(position + len(head)) % 32 if aligned else 0
        return head + bytes(padding) + self.data


@dataclass(frozen=True)
class Craft:
    """A whole file; ``numbers`` are the seven of the header."""

    container: str = "ggjt"
    version: int = 3
    numbers: tuple[int, ...] = (VOCABULARY, EMBEDDING, 192, HEADS, 1, EMBEDDING // HEADS, 0)
    tokens: Sequence[Token] = field(default_factory=vocabulary)
    records: Sequence[Record] = ()
    tail: bytes = b""

    def build(self) -> bytes:
        out = bytearray(MAGICS[self.container])
        if self.container != "ggml":
            out += struct.pack("<I", self.version)
        out += struct.pack(f"<{len(self.numbers)}I", *self.numbers)
        for text, score in self.tokens:
            out += struct.pack("<I", len(text)) + text
            if self.container != "ggml":
                out += struct.pack("<f", score)
        for record in self.records:
            out += record.build(len(out), self.container == "ggjt")
        return bytes(out + self.tail)

    def write(self, path: Path) -> Path:
        path.write_bytes(self.build())
        return path

    def but(self, **changes: object) -> Craft:
        """Return a copy with other fields."""
        return replace(self, **changes)  # type: ignore[arg-type]  # names and types are those of the fields


def weights(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random weights by Meta's names; vectors near one."""
    random = np.random.default_rng(seed)
    return {
        name: (random.normal(size=shape) * 0.1 + (len(shape) == 1)).astype(np.float32) for name, shape in SHAPES.items()
    }


Packer = Callable[[NDArray[np.float32]], bytes]


def floats(rows: NDArray[np.float32]) -> bytes:
    return rows.astype("<f4").tobytes()


def halves(rows: NDArray[np.float32]) -> bytes:
    return rows.astype("<f2").tobytes()


def records(
    matrices: Mapping[str, NDArray[np.float32]], kinds: Mapping[str, tuple[int, Packer]] | tuple[int, Packer]
) -> list[Record]:
    """Return records of ``matrices``: vectors as F32, matrices by ``kinds`` (type number and packer, perhaps by name)."""
    found = []
    for name, values in matrices.items():
        number, pack = kinds if isinstance(kinds, tuple) else kinds[name]
        if values.ndim == 1:
            number, pack = 0, floats
        found.append(Record(name, tuple(reversed(values.shape)), number, pack(values)))
    return found


def q4_0_block(values: Sequence[float], order: str) -> tuple[float, bytes, list[float]]:
    """Return the scale, 16 bytes of nibbles and the decoded weights of 32 ``values``; ``order`` interleaved or split."""
    scale = float(np.float32(max(abs(v) for v in values) / 7))
    codes = [round(v / scale) + 8 if scale else 8 for v in values]
    return scale, nibbles(codes, order), [float(np.float32(scale) * np.float32(q - 8)) for q in codes]


def nibbles(codes: Sequence[int], order: str) -> bytes:
    half = len(codes) // 2
    if order == "interleaved":
        return bytes(codes[2 * j] | codes[2 * j + 1] << 4 for j in range(half))
    return bytes(codes[j] | codes[j + half] << 4 for j in range(half))


def q4_0_rows(
    values: NDArray[np.float32], order: str = "interleaved", planar: bool = False
) -> tuple[bytes, NDArray[np.float32]]:
    """Return Q4_0 with float32 scales and what it decodes to."""
    data, decoded = bytearray(), []
    for row in values.tolist():
        blocks = [q4_0_block(row[i : i + 32], order) for i in range(0, len(row), 32)]
        scales = [struct.pack("<f", scale) for scale, _, _ in blocks]
        packed = [codes for _, codes, _ in blocks]
        pieces = [*scales, *packed] if planar else [x for pair in zip(scales, packed, strict=True) for x in pair]
        data += b"".join(pieces)
        decoded.append([weight for _, _, block in blocks for weight in block])
    return bytes(data), np.array(decoded, np.float32)


def q4_1_rows(
    values: NDArray[np.float32], order: str = "interleaved", planar: bool = False
) -> tuple[bytes, NDArray[np.float32]]:
    """Return Q4_1 with float32 scale and minimum and what it decodes to; planar rows have all minima, then all scales."""
    data, decoded = bytearray(), []
    for row in values:
        scales, minima, packed, out = [], [], [], []
        for start in range(0, len(row), 32):
            block = row[start : start + 32]
            least = block.min()
            scale = np.float32((block.max() - least) / np.float32(15))
            codes = [round(float((v - least) / scale)) if scale else 0 for v in block]
            scales.append(struct.pack("<f", scale))
            minima.append(struct.pack("<f", least))
            packed.append(nibbles(codes, order))
            out += [np.float32(np.float32(q) * scale) + least for q in codes]
        mixed = [x for three in zip(scales, minima, packed, strict=True) for x in three]
        data += b"".join([*minima, *scales, *packed] if planar else mixed)
        decoded.append(out)
    return bytes(data), np.array(decoded, np.float32)


def q8_0_rows(values: NDArray[np.float32]) -> tuple[bytes, NDArray[np.float32]]:
    """Return Q8_0 with float32 scales and what it decodes to."""
    data, decoded = bytearray(), []
    for row in values:
        out: list[np.float32] = []
        for start in range(0, len(row), 32):
            block = row[start : start + 32]
            scale = np.float32(abs(block).max() / np.float32(127))
            codes = [round(float(v / scale)) for v in block]
            data += struct.pack("<f32b", scale, *codes)
            out += [np.float32(q) * scale for q in codes]
        decoded.append(out)
    return bytes(data), np.array(decoded, np.float32)


def sound(
    container: str = "ggjt", version: int = 3, number: int = 0, pack: Packer = floats, file_type: int = 0, seed: int = 0
) -> Craft:
    """A file that every reader of its time accepts."""
    numbers = (VOCABULARY, EMBEDDING, 192, HEADS, 1, EMBEDDING // HEADS, file_type)
    return Craft(container, version, numbers, vocabulary(), records(weights(seed), (number, pack)))


def part_slices(values: Mapping[str, NDArray[np.float32]], part: int, parts: int) -> dict[str, NDArray[np.float32]]:
    """Return what part ``part`` of ``parts`` holds of each matrix."""
    found = {}
    for name, matrix in values.items():
        axis = 1 if name.endswith(COLUMN_SPLIT) else 0
        found[name] = matrix if matrix.ndim == 1 else np.split(matrix, parts, axis=axis)[part]
    return found
