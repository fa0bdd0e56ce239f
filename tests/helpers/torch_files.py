"""Checkpoints of torch's forms made without torch: instructions of a pickle, zip archives with any fault, the form before torch 1.6."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

PROTOCOL = b"\x80\x02"
LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
STORAGES = {
    "<f4": "Float",
    "<f2": "Half",
    "<u2": "BFloat16",
    "<f8": "Double",
    "<i8": "Long",
    "<i4": "Int",
    "|u1": "Byte",
}


# --- instructions


def name(module: str, function: str) -> bytes:
    return b"c" + module.encode() + b"\n" + function.encode() + b"\n"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def items(*values: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(values) + b"t"


def counts(values: Sequence[int]) -> bytes:
    return items(*map(integer, values))


def dictionary(entries: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


ORDERED = name("collections", "OrderedDict") + b")R"


def storage(key: str, kind: str, length: int, *view: bytes) -> bytes:
    identity = text("storage"), name("torch", f"{kind}Storage"), text(key), text("cpu"), integer(length), *view
    return items(*identity) + b"Q"


def tensor(stored: bytes, offset: int, shape: Sequence[int], strides: Sequence[int]) -> bytes:
    arguments = stored, integer(offset), counts(shape), counts(strides), b"\x89", ORDERED
    return name("torch._utils", "_rebuild_tensor_v2") + items(*arguments) + b"R"


def pickled(value: bytes) -> bytes:
    return PROTOCOL + value + b"."


def plain_tensors(
    arrays: Mapping[str, NDArray[Any]], first_key: int = 0, *view: bytes
) -> tuple[bytes, dict[str, bytes]]:
    """Return the instructions for a dictionary of arrays (uint16 means BF16), and each one's bytes by storage key."""
    entries, data = {}, {}
    for key, (label, array) in enumerate(arrays.items(), first_key):
        strides = [step // array.itemsize for step in array.copy(order="C").strides]
        kind = STORAGES[array.dtype.str]
        entries[label] = tensor(storage(str(key), kind, array.size, *view), 0, array.shape, strides)
        data[str(key)] = array.tobytes()
    return dictionary(entries), data


# --- zip archives


@dataclass
class Entry:
    """A member of an archive; ``local`` and ``central`` overrule fields of its two headers."""

    label: bytes
    data: bytes
    local: dict[str, Any] = field(default_factory=dict)
    central: dict[str, Any] = field(default_factory=dict)


def archive(entries: Sequence[Entry], *, long: bool = False, end: Mapping[str, int] = {}, tail: bytes = b"") -> bytes:
    """Return an archive as torch writes it: stored members on multiples of 64; ``long`` uses the 64-bit fields everywhere."""
    body, directory = b"", b""
    for entry in entries:
        values: dict[str, Any] = {
            "flags": 0x800,
            "method": 0,
            "crc": zlib.crc32(entry.data),
            "packed": len(entry.data),
            "plain": len(entry.data),
            "label": entry.label,
            "offset": len(body),
        }
        local, central = values | entry.local, values | entry.central
        padding = -(len(body) + 30 + len(local["label"]) + (20 if long else 0) + 4) % 64
        extra = _long(local, ("plain", "packed")) if long else b""
        extra += struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        body += struct.pack("<4s5H3I2H", b"PK\3\4", 0, local["flags"], local["method"], 0, 0, *_sizes(local, long), len(local["label"]), len(extra))  # fmt: skip
        body += local["label"] + extra + entry.data
        extra = _long(central, ("plain", "packed", "offset")) if long else b""
        offset = 0xFFFFFFFF if long else central["offset"]
        directory += struct.pack("<4s6H3I5H2I", b"PK\1\2", 0, 0, central["flags"], central["method"], 0, 0, *_sizes(central, long), len(central["label"]), len(extra), 0, 0, 0, 0, offset)  # fmt: skip
        directory += central["label"] + extra
    values = {"disk": 0, "count": len(entries), "size": len(directory), "start": len(body)} | dict(end)
    records = b""
    if long:
        position = len(body) + len(directory)
        records = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 0, 0, values["disk"], 0, values["count"], values["count"], values["size"], values["start"])  # fmt: skip
        records += struct.pack("<4sIQI", b"PK\6\7", 0, position, 1)
        values = {"disk": 0, "count": 0xFFFF, "size": 0xFFFFFFFF, "start": 0xFFFFFFFF}
    records += struct.pack("<4s4H2IH", b"PK\5\6", values["disk"], 0, values["count"], values["count"], values["size"], values["start"], len(tail))  # fmt: skip
    return body + directory + records + tail


def _sizes(values: Mapping[str, Any], long: bool) -> tuple[int, int, int]:
    return (values["crc"], 0xFFFFFFFF, 0xFFFFFFFF) if long else (values["crc"], values["packed"], values["plain"])


def _long(values: Mapping[str, Any], names: Sequence[str]) -> bytes:
    return struct.pack(f"<2H{len(names)}Q", 1, 8 * len(names), *(values[key] for key in names))


def members(pickle: bytes, data: Mapping[str, bytes], prefix: str = "archive") -> list[Entry]:
    """Return what torch puts into an archive."""
    found = [Entry(f"{prefix}/data.pkl".encode(), pickle), Entry(f"{prefix}/byteorder".encode(), b"little")]
    found += [Entry(f"{prefix}/data/{key}".encode(), content) for key, content in data.items()]
    return [*found, Entry(f"{prefix}/version".encode(), b"3\n")]


def zip_checkpoint(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return a checkpoint of arrays in the form of torch 1.6 and later."""
    value, data = plain_tensors(arrays)
    return archive(members(pickled(value), data))


def legacy_file(value: bytes, keys: Sequence[str], data: Sequence[tuple[int, bytes]], little: bytes = b"\x88") -> bytes:
    """Return a file of the form before torch 1.6; ``data`` are lengths in elements, and bytes."""
    system = dictionary({"protocol_version": integer(1001), "little_endian": little, "type_sizes": b"}"})
    listed = b"](" + b"".join(map(text, keys)) + b"e"
    parts = [LEGACY_MAGIC, pickled(integer(1001)), pickled(system), pickled(value), pickled(listed)]
    return b"".join(parts) + b"".join(struct.pack("<q", length) + content for length, content in data)


def legacy_checkpoint(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return a checkpoint of arrays in the form before torch 1.6."""
    value, data = plain_tensors(arrays, 94_000_000_000_000, b"N")
    sizes = [(array.size, content) for array, content in zip(arrays.values(), data.values(), strict=True)]
    return legacy_file(value, list(data), sizes)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
