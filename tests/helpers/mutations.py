"""Damage to files, where it hurts: lengths and counts blown up, stretches removed, repeated or taken from elsewhere, bits flipped, JSON bent.

Everything is drawn from one ``random.Random``, so a seed gives the same files again.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import struct
from collections.abc import Sequence
from typing import Any

NUMBERS = (
    *(0, 1, 2, 3, 7, 31, 0x7F, 0x80, 0xFF, 0xFFFF, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32),
    *(1 << 40, 1 << 61, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 7, 255, 65536, 1 << 31, 1 << 32, 1 << 53, 1 << 63, 1 << 64, 10**30, -(10**30)),
    *(0.0, 0.5, -0.0, 1e-320, 1e308, -1e308, float("inf"), float("nan")),
    *("", "x", "x" * 3000, "\ud800", "\x00", "../../../etc/passwd", "/etc/passwd", "-1", "1e99", "é", "NaN", "<0x-1>"),
    *([], {}, [[]], [None], {"a": {}}, ["a", "b"], [0] * 100, {"": ""}),
)
_DEEP = 3000  # brackets within each other
_MOST_PLACES = 4000


def length_fields(data: bytes, limit: int = _MOST_PLACES) -> list[int]:
    """Return places near the start that may hold a length or a count: a small number before at least as many bytes."""
    found = []
    for place in range(max(0, min(len(data) - 4, limit))):
        (number,) = struct.unpack_from("<I", data, place)
        if 0 < number <= len(data) - place and number < 1 << 16:
            found.append(place)
    return found or [0]


def mutate_bytes(data: bytes, places: Sequence[int], others: Sequence[bytes], source: random.Random) -> bytes:
    """Return ``data`` with one to four faults, most of them at ``places``; ``others`` are what stretches may come from."""
    out = bytearray(data)
    for _ in range(source.choice((1, 1, 1, 2, 2, 3, 4))):
        if not out:
            break
        place = source.choice(places) if source.random() < 0.85 else source.randrange(len(out))
        place = min(place, len(out) - 1)
        match source.randrange(9):
            case 0:
                out[place] ^= 1 << source.randrange(8)
            case 1:
                out[place] = source.randrange(256)
            case 2 | 3:  # a number of any width, also in the other byte order
                width, number = source.choice((1, 2, 4, 8)), source.choice(NUMBERS)
                order = source.choice("<<<>")
                raw = struct.pack(f"{order}Q", number)
                out[place : place + width] = raw[:width] if order == "<" else raw[-width:]
            case 4:  # a little more, a little less
                width = source.choice((2, 4, 8))
                number = int.from_bytes(out[place : place + width], "little") + source.choice((-2, -1, 1, 2, 8, 32))
                out[place : place + width] = (number % (1 << 8 * width)).to_bytes(width, "little")
            case 5:
                del out[place : place + source.choice((1, 2, 4, 8, 16, 100))]
            case 6:
                length = source.choice((1, 4, 8, 16, 64, 256))
                out[place:place] = source.choice((source.randbytes(length), bytes(length), out[place : place + length]))
            case 7:
                other = source.choice(others)
                start, length = source.randrange(len(other) or 1), source.choice((1, 4, 8, 16, 64, 1000))
                out[place : place + length] = other[start : start + length]
            case 8:
                if source.random() < 0.3:
                    del out[place:]
    return bytes(out)


def mutate_json(data: bytes, source: random.Random) -> bytes:
    """Return a JSON text with one to three values or keys changed, or with damaged text."""
    if source.random() < 0.15:
        return mutate_bytes(data, range(len(data) or 1), (data,), source)
    tree = json.loads(data)
    for _ in range(source.choice((1, 1, 2, 3))):
        parents = [it for it in _containers(tree) if it]
        if not parents:
            break
        parent = source.choice(parents)
        key = source.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        match source.randrange(8):
            case 0 | 1 | 2:
                parent[key] = copy.deepcopy(source.choice(ODD_VALUES))  # later changes must not reach the table
            case 3:
                del parent[key]
            case 4:
                parent[key] = copy.deepcopy(source.choice([it for other in parents for it in _values(other)]))
            case 5:
                parent[key] = _bent(parent[key], source)
            case 6:
                if isinstance(parent, dict):
                    new = source.choice(("", "x", key + "x", key[:-1], "\ud800", "__metadata__", "../x"))
                    parent[new] = parent.pop(key)
                else:
                    parent.extend(parent[: source.choice((1, 10, 200))])
            case 7:
                if source.random() < 0.1:
                    text = json.dumps(tree)
                    return (text[:-1] + ',"deep":' + "[" * _DEEP + "]" * _DEEP + "}").encode()
    text = json.dumps(tree, ensure_ascii=source.random() < 0.5)
    if source.random() < 0.05 and text.startswith("{"):
        text = text[:-1] + "," + text[1:]  # every key twice
    return text.encode("utf-8", "surrogatepass")


def mutate_safetensors(data: bytes, others: Sequence[bytes], source: random.Random) -> bytes:
    """Return a safetensors file with another header, its length told rightly, or with damaged bytes."""
    length = int.from_bytes(data[:8], "little")
    if source.random() < 0.3:
        return mutate_bytes(data, range(8 + length), others, source)
    header = mutate_json(data[8 : 8 + length], source)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def sign_compact_base(data: bytes) -> bytes:
    """Return a compact base of log-probabilities with the digest of what is in it, so that more than the digest is tested."""
    return data[:-32] + hashlib.sha256(data[:-32]).digest() if len(data) > 32 else data


def mutate_compact_base(data: bytes, source: random.Random) -> bytes:
    """Return a compact base with another header or other bytes, most often with the right digest."""
    length = int.from_bytes(data[8:12], "little")
    if source.random() < 0.6:
        header = mutate_json(data[12 : 12 + length], source)
        out = data[:8] + len(header).to_bytes(4, "little") + header + data[12 + length :]
    else:
        out = mutate_bytes(data, range(min(len(data), 12 + length + 64)), (data,), source)
    return sign_compact_base(out) if source.random() < 0.9 else out


def _containers(tree: Any) -> list[Any]:
    """Return every dictionary and list in a tree; of long lists only the first and last elements are looked into."""
    found, todo = [], [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, dict | list):
            found.append(node)
            values = _values(node)
            todo += values if len(values) < 50 else values[:10] + values[-10:]
    return found


def _values(node: Any) -> list[Any]:
    return list(node.values()) if isinstance(node, dict) else list(node)


def _bent(value: Any, source: random.Random) -> Any:
    """Return a value near another."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return value + source.choice((-1, 1, 2, value, -2 * value, 1 << 31)) if source.random() < 0.8 else float(value)
    if isinstance(value, float):
        return value * source.choice((-1, 0, 2, 1e300))
    if isinstance(value, str):
        place = source.randrange(len(value) + 1)
        return value[:place] + source.choice(("", "\x00", "é", "(", "x" * 50, "(a+)+$")) + value[place + 1 :]
    if isinstance(value, list):
        return value[: source.randrange(len(value) + 1)] if source.random() < 0.5 else value + value
    return dict(list(value.items())[: source.randrange(len(value) + 1)])
