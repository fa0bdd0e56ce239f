"""Big-endian files of every tensor type: blocks declared as ggml's structures, and swapped by NumPy."""

from __future__ import annotations

from pathlib import Path

import gguf
import gguf_files as crafted
import numpy as np
import pytest
from gguf_files import CONTEXT, Craft, Record, Style, scalar
from qconv_encodings import ENCODINGS

from qconv.formats.gguf import open_gguf

# ggml-common.h: fields in order, with what ggml takes them for; "n*t" is an array
STRUCTURES = {
    "F32": "f4",
    "F16": "f2",
    "BF16": "u2",
    "F64": "f8",
    "I8": "i1",
    "I16": "i2",
    "I32": "i4",
    "I64": "i8",
    "Q4_0": "f2 16*u1",
    "Q4_1": "f2 f2 16*u1",
    "Q5_0": "f2 u4 16*u1",
    "Q5_1": "f2 f2 u4 16*u1",
    "Q8_0": "f2 32*i1",
    "Q8_1": "f2 f2 32*i1",
    "Q2_K": "16*u1 64*u1 f2 f2",
    "Q3_K": "32*u1 64*u1 12*u1 f2",
    "Q4_K": "f2 f2 12*u1 128*u1",
    "Q5_K": "f2 f2 12*u1 32*u1 128*u1",
    "Q6_K": "128*u1 64*u1 16*i1 f2",
    "Q8_K": "f4 256*i1 16*i2",
    "IQ1_S": "f2 32*u1 8*u2",
    "IQ1_M": "32*u1 16*u1 4*u2",
    "IQ2_XS": "f2 32*u2 8*u1",
    "IQ2_S": "f2 64*u1 8*u1 8*u1",
    "IQ3_XXS": "f2 64*u1 8*u4",
    "IQ3_S": "f2 64*u1 8*u1 32*u1 4*u1",
    "IQ4_NL": "f2 16*u1",
    "IQ4_XS": "f2 u2 4*u1 128*u1",
    "TQ1_0": "48*u1 4*u1 f2",
    "TQ2_0": "64*u1 f2",
    "MXFP4": "u1 16*u1",
    "NVFP4": "4*u1 32*u1",
    "Q1_0": "f2 16*u1",
    "Q2_0": "f2 16*u1",
}


def structure(kind: str, order: str) -> np.dtype[np.void]:
    fields = []
    for number, field in enumerate(STRUCTURES[kind].split()):
        count, _, code = field.rpartition("*")
        fields.append((f"f{number}", order + code, (int(count),) if count else ()))
    return np.dtype(fields)


def big_endian(kind: str, data: bytes) -> bytes:
    """Return blocks as a big-endian machine holds them."""
    return np.frombuffer(data, structure(kind, "<")).byteswap().tobytes()


@pytest.mark.parametrize("kind", STRUCTURES)
def test_every_type(tmp_path: Path, kind: str) -> None:
    encoding = ENCODINGS[kind]
    assert encoding.type_id is not None
    assert structure(kind, "<").itemsize == encoding.block_bytes
    columns, rows = 2 * max(encoding.block_size, 32), 3
    data = np.random.default_rng(encoding.type_id).bytes(rows * encoding.row_bytes(columns))
    style = Style(order=">")
    entries: list[tuple[str | bytes, bytes]] = [
        ("general.architecture", scalar(crafted.STRING, "llama", style)),
        ("llama.block_count", scalar(crafted.UINT32, 1, style)),
    ]
    record = Record("blk.0.ffn_up.weight", (columns, rows), encoding.type_id, big_endian(kind, data))
    path = Craft(entries, [record], style=style).write(tmp_path / "m.gguf")
    with open_gguf(path, CONTEXT) as model:
        assert model.container["byte_order"] == "big"
        tensor = model.tensors["blk.0.ffn_up.weight"]
        assert (tensor.encoding.name, tensor.shape) == (kind, (rows, columns))
        assert tensor.read(0, rows).tobytes() == data
        assert tensor.read(1, 2).tobytes() == data[len(data) // 3 : len(data) // 3 * 2]


def test_all_types_are_here() -> None:
    """But for IQ2_XXS, whose words ggml writes as numbers and reads as bytes."""
    assert {kind.name for kind in gguf.GGMLQuantizationType} - set(STRUCTURES) == {"IQ2_XXS"}


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q4_K", "Q6_K", "MXFP4", "NVFP4"])
def test_ggufs_own_converter_swaps_alike(kind: str) -> None:
    """The types that it knows; it works on the data of a tensor, one block at a time."""
    from gguf.scripts.gguf_convert_endian import byteswap_tensors

    class Tensor:
        data = np.random.default_rng(1).integers(0, 256, 3 * ENCODINGS[kind].block_bytes, np.uint8)

    before = Tensor.data.tobytes()
    for block in range(3):
        byteswap_tensors[gguf.GGMLQuantizationType[kind]](Tensor, block * ENCODINGS[kind].block_bytes)
    assert Tensor.data.tobytes() == big_endian(kind, before)
