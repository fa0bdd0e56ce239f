"""Damage to checkpoints, at random and where it hurts: numbers of headers and instructions of pickles are hit as often as weights."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from qconv.errors import QconvError
from qconv.formats.pickles import is_pickled_checkpoint, read_pickled_checkpoint
from qconv.formats.pickles.allowed import ITEM_BYTES
from qconv.formats.positional import PositionalFile
from qconv.formats.stored import read_rows

NUMBERS = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0xFFFF,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 61,
    (1 << 63) - 1,
    (1 << 64) - 1,
)
OPCODES = b"\x80\x95N\x88\x89JKM\x8aG\x8cX}])(t\x85\x86\x87aesubqr\x94hjc\x93RQ.iIo\x81\x82PB2\x300\x8b"
SLOWEST = 2.0  # seconds
ROWS = 64  # read of every tensor


def interesting_places(content: bytes) -> list[int]:
    """Return positions of headers and pickles, which are few beside the weights."""
    places = list(range(min(len(content), 3000)))
    for magic in (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7"):
        start = content.find(magic)
        while start >= 0:
            places += range(start, min(start + 64, len(content)))
            start = content.find(magic, start + 1)
    return places


def mutate(content: bytes, places: list[int], source: random.Random) -> bytes:
    """Return the content with one to four faults."""
    out = bytearray(content)
    for _ in range(source.randint(1, 4)):
        place = source.choice(places) if source.random() < 0.9 else source.randrange(len(content))
        place = min(place, len(out) - 1)
        match source.randrange(8):
            case 0:
                out[place] = source.randrange(256)
            case 1:
                out[place] = source.choice(OPCODES)
            case 2:
                out[place] ^= 1 << source.randrange(8)
            case 3:
                width = source.choice((1, 2, 4, 8))
                out[place : place + width] = struct.pack("<Q", source.choice(NUMBERS))[:width]
            case 4:
                del out[place : place + source.choice((1, 2, 4, 16, 100))]
            case 5:
                out[place:place] = source.choice(
                    (source.randbytes(source.randint(1, 8)), bytes([source.choice(OPCODES)]))
                )
            case 6:
                other, length = source.choice(places), source.randint(1, 64)
                out[place : place + length] = content[other : other + length]
            case 7:
                if source.random() < 0.2:
                    del out[place:]
        if not out:
            out = bytearray(b"\0")
    return bytes(out)


def survive(path: Path, content: bytes) -> bool:
    """Read a damaged file; return whether it was refused. Raises AssertionError for a hang, a hunger or another kind of error."""
    path.write_bytes(content)
    begin = time.perf_counter()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    refused = False
    try:
        is_pickled_checkpoint(path)
        file = PositionalFile(path)
        try:
            for stored in read_pickled_checkpoint(file).tensors.values():
                rows = 1
                for size in stored.shape[:-1]:
                    rows *= size
                width = (stored.shape[-1] if stored.shape else 1) * ITEM_BYTES[stored.dtype]
                read_rows(stored, ITEM_BYTES[stored.dtype], 0, min(rows, ROWS, 1 + (1 << 20) // max(1, width)))
        finally:
            file.close()
    except QconvError as error:
        assert str(error)
        refused = True
    elapsed = time.perf_counter() - begin
    peak = tracemalloc.get_traced_memory()[1] - before
    assert elapsed < SLOWEST, f"{elapsed:.1f} s"
    assert peak < (5 << 20) + 10 * len(content), f"{peak} bytes for a file of {len(content)}"
    return refused


def attack(
    path: Path, contents: list[bytes], cases: int, seed: int, report: Callable[[bytes], None] | None = None
) -> int:
    """Read ``cases`` damaged files; return how many were refused."""
    source = random.Random(seed)
    places = [interesting_places(content) for content in contents]
    tracemalloc.start()
    refused = 0
    try:
        for _ in range(cases):
            which = source.randrange(len(contents))
            damaged = mutate(contents[which], places[which], source)
            try:
                refused += survive(path, damaged)
            except BaseException:
                if report is not None:
                    report(damaged)
                raise
    finally:
        tracemalloc.stop()
    return refused
