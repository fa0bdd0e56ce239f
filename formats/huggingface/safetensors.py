"""The safetensors container: a checked header, and rows read at their place.

A file is an unsigned 64-bit little-endian length N, N bytes of JSON (name to dtype, shape and data offsets), then the data. Nothing in the
header is believed before it is checked: tensors must follow one another from byte 0 of the data to the end of the file, without holes or overlaps,
each with the number of bytes that its shape and dtype ask for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any

from ...errors import FormatError, TruncatedError
from ..positional import PositionalFile
from ..stored import StoredTensor, lazy_tensor

__all__ = ["StoredTensor", "lazy_tensor", "read_header"]

HEADER_MAX = 100_000_000  # bytes of JSON, as in the reference reader
TENSORS_MAX = 1 << 20
NAME_MAX = 1 << 10  # characters
DIMENSIONS_MAX = 8
ELEMENTS_MAX = 1 << 62

# dtype to bits per element; some can be described but not read as weights
_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
_LFS_POINTER = b"version https://git-lfs"


def read_header(file: PositionalFile) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Return the tensors in the order of their data, and the file's ``__metadata__``; raises FormatError or TruncatedError."""
    if file.size < 8:
        raise TruncatedError(
            f"{file.size} bytes are too few for a safetensors file",
            path=file.path,
            offset=0,
            remedy="Download the file again.",
        )
    length = int.from_bytes(file.read(0, 8), "little")
    if length > HEADER_MAX or length > file.size - 8:
        _refuse_length(file, length)
    raw = file.read(8, length)
    header = _parse(file, raw)
    metadata = _metadata(file, header.pop("__metadata__", None))
    if len(header) > TENSORS_MAX:
        raise _wrong(file, f"{len(header)} tensors are more than the {TENSORS_MAX} that qconv accepts")
    tensors = [_tensor(file, name, value, 8 + length) for name, value in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_contiguous(file, tensors, 8 + length)
    return {tensor.name: tensor for tensor in tensors}, metadata


def _refuse_length(file: PositionalFile, length: int) -> None:
    head = file.read(0, min(file.size, 32))
    if head.startswith(_LFS_POINTER):
        raise FormatError(
            "this is a Git LFS pointer, not the weights",
            path=file.path,
            remedy="Run 'git lfs pull' in the folder, or download the file itself.",
        )
    if length > HEADER_MAX:
        raise _wrong(file, f"the header claims {length} bytes, more than the format's limit of {HEADER_MAX}", 0)
    raise TruncatedError(
        f"the header claims {length} bytes, the file has {file.size - 8} after its length",
        path=file.path,
        offset=0,
        remedy="The file is cut short or no safetensors file; download it again.",
    )


def _wrong(file: PositionalFile, problem: str, offset: int | None = 8, tensor: str | None = None) -> FormatError:
    return FormatError(
        problem,
        path=file.path,
        offset=offset,
        tensor=tensor,
        remedy="The file is damaged or no safetensors file; download or export it again.",
    )


def _parse(file: PositionalFile, raw: bytes) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        raise _wrong(file, "the header does not start with '{'")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise _wrong(file, f"the header has the key {key!r} twice in one object")
            found[key] = value
        return found

    def refuse(text: str) -> None:
        raise _wrong(file, f"the header has the number {text}, where only integers belong")

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_float=refuse, parse_constant=refuse)
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise _wrong(file, f"the header is no JSON ({error})") from error
    assert isinstance(header, dict)  # it starts with '{'
    return header


def _metadata(file: PositionalFile, value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise _wrong(file, "__metadata__ must map strings to strings")
    return value


def _tensor(file: PositionalFile, name: str, value: object, data: int) -> StoredTensor:
    if not name or len(name) > NAME_MAX:
        raise _wrong(file, f"a tensor's name has {len(name)} characters, 1 to {NAME_MAX} are accepted")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _wrong(file, "its entry must have dtype, shape and data_offsets, and nothing else", 8, name)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    bits = _BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise _wrong(file, f"its dtype {dtype!r} is unknown", 8, name)
    if not isinstance(shape, list) or len(shape) > DIMENSIONS_MAX or not all(_is_count(size) for size in shape):
        raise _wrong(file, f"its shape must be at most {DIMENSIONS_MAX} non-negative integers", 8, name)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(item) for item in offsets):
        raise _wrong(file, "its data_offsets must be two non-negative integers", 8, name)
    begin, end = offsets
    elements = prod(shape)
    if prod(size for size in shape if size) > ELEMENTS_MAX:
        raise _wrong(file, f"its shape {shape} has more elements than any file holds", 8, name)
    nbytes, odd = divmod(elements * bits, 8)
    if odd or end - begin != nbytes:
        size = f"{elements * bits} bits" if odd else f"{nbytes} bytes"
        raise _wrong(
            file, f"shape {shape} and dtype {dtype} take {size}, the offsets give {end - begin} bytes", 8, name
        )
    return StoredTensor(name, dtype, tuple(shape), data + begin, nbytes, file)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _check_contiguous(file: PositionalFile, tensors: list[StoredTensor], data: int) -> None:
    expected = data
    for tensor in tensors:
        if tensor.offset != expected:
            kind = "a hole before it" if tensor.offset > expected else "an overlap with the tensor before it"
            raise _wrong(file, f"its data starts at byte {tensor.offset}, which leaves {kind}", 8, tensor.name)
        expected += tensor.nbytes
    if expected > file.size:
        raise TruncatedError(
            f"the tensors end at byte {expected}, the file at {file.size}",
            path=file.path,
            offset=file.size,
            remedy="The download broke off; download the file again.",
        )
    if expected < file.size:
        raise _wrong(file, f"{file.size - expected} bytes follow the last tensor", expected)
