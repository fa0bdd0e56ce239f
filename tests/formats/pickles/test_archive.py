"""The zip directory: what torch and Python write is read, every oddity is refused."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
from torch_files import Entry, archive

from qconv.errors import FormatError, TruncatedError
from qconv.formats.pickles.archive import Member, read_archive
from qconv.formats.positional import PositionalFile

ENTRIES = [Entry(b"a/data.pkl", b"first"), Entry(b"a/data/0", bytes(range(100))), Entry(b"a/empty", b"")]


def members(path: Path, content: bytes | None = None) -> dict[str, Member]:
    if content is not None:
        path.write_bytes(content)
    file = PositionalFile(path)
    try:
        return read_archive(file)
    finally:
        file.close()


def read(path: Path, content: bytes | None = None) -> dict[str, bytes]:
    found = members(path, content)
    data = path.read_bytes()
    return {name: data[member.offset : member.offset + member.size] for name, member in found.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.pth"


@pytest.mark.parametrize("long", [False, True])
def test_reads_members(path: Path, long: bool) -> None:
    content = archive(ENTRIES, long=long)
    assert read(path, content) == {entry.label.decode(): entry.data for entry in ENTRIES}
    with zipfile.ZipFile(path) as other:  # the made archive is one for others too
        assert other.testzip() is None


def test_reads_what_python_writes(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as made:
        for entry in ENTRIES:
            made.writestr(entry.label.decode(), entry.data)
        made.writestr("a/größe", b"text")
        with made.open("a/long", "w", force_zip64=True) as member:
            member.write(b"x" * 10)
    expected = {entry.label.decode(): entry.data for entry in ENTRIES}
    assert read(path) == expected | {"a/größe": b"text", "a/long": b"x" * 10}


def test_sizes_behind_the_data(path: Path) -> None:
    """Torch leaves sizes and checksum of the local header zero, and writes them behind the data."""
    empty = {"flags": 0x808, "crc": 0, "packed": 0, "plain": 0}
    content = archive([Entry(entry.label, entry.data, empty, {"flags": 0x808}) for entry in ENTRIES])
    assert read(path, content) == {entry.label.decode(): entry.data for entry in ENTRIES}


def changed(index: int = 1, long: bool = False, local: dict[str, Any] | None = None, **central: Any) -> bytes:
    entries = list(ENTRIES)
    entries[index] = Entry(entries[index].label, entries[index].data, {**central, **(local or {})}, central)
    return archive(entries, long=long)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (changed(flags=0x801), "is encrypted"),
        (changed(flags=0x840), "has the flags 0x0840"),
        (changed(flags=0x2800), "has the flags 0x2800"),
        (changed(method=8), "is compressed"),
        (changed(packed=99), "two sizes, 100 and 99"),
        (changed(label=b"a/data.pkl"), "is there twice"),
        (changed(label=b"a/\xff\xfe"), "is no text"),
        (changed(local={"label": b"a/data/1"}), "differs from the directory"),
        (changed(local={"flags": 0}), "differs from the directory"),
        (changed(local={"flags": 0x801}), "differs from the directory"),
        (changed(local={"method": 8}), "differs from the directory"),
        (changed(local={"plain": 99}), "another size or checksum"),
        (changed(local={"packed": 99}), "another size or checksum"),
        (changed(local={"crc": 1}), "another size or checksum"),
        (changed(local={"plain": 99}, long=True), "another size or checksum"),
        (changed(2, packed=1 << 20, plain=1 << 20), "reaches into the directory"),
        (changed(packed=1 << 62, plain=1 << 62, long=True), "overlaps the one before it|reaches into the directory"),
        (changed(packed=200, plain=200), "reaches into the directory"),
        (changed(offset=0), "overlaps|differs"),
        (changed(offset=1 << 20), "is said to be at byte"),
        (changed(offset=1 << 62, long=True), "is said to be at byte"),
        (archive(ENTRIES[1:], end={"disk": 1}), "part of several"),
        (archive(ENTRIES, end={"count": 4}), "claims 4 entries in 163 bytes"),
        (archive(ENTRIES, end={"count": 2}), "follow the last entry"),
        (changed(0, packed=80, plain=80), "overlaps the one before it"),
        (archive(ENTRIES, end={"start": len(archive(ENTRIES)) - 22 - 162, "size": 162}), "does not start as one"),
        (archive(ENTRIES, end={"count": 65534}), "claims 65534 entries"),
        (archive(ENTRIES, end={"count": 1 << 40}, long=True), "more than any checkpoint needs"),
        (archive(ENTRIES, end={"size": 1 << 40}, long=True), "more than any checkpoint needs"),
        (archive(ENTRIES, end={"start": 0}), "is said to be at bytes"),
        (archive(ENTRIES, end={"start": 1 << 62}, long=True), "is said to be at bytes"),
    ],
)
def test_oddities(path: Path, content: bytes, problem: str) -> None:
    with pytest.raises(FormatError, match=problem) as caught:
        members(path, content)
    assert caught.value.path == path
    assert caught.value.offset is not None
    assert caught.value.remedy


@pytest.mark.parametrize("long", [False, True])
def test_bytes_around_the_archive(path: Path, long: bool) -> None:
    content = archive(ENTRIES, long=long)
    for bad in (b"MZ" + content, content + b"\0", content + content):
        with pytest.raises(FormatError):
            members(path, bad)
    with pytest.raises(TruncatedError, match="does not end with its directory"):
        members(path, archive(ENTRIES, tail=b"a comment"))


def test_two_records_of_the_directory_that_differ(path: Path) -> None:
    content = bytearray(archive(ENTRIES, long=True))
    struct.pack_into("<H", content, len(content) - 14, 7)  # number of entries on this disk
    with pytest.raises(FormatError, match="two records of the directory differ"):
        members(path, bytes(content))


def test_every_cut_is_noticed(path: Path) -> None:
    for long in (False, True):
        content = archive(ENTRIES, long=long)
        for length in range(0, len(content), 7):
            with pytest.raises(FormatError):
                members(path, content[:length])


def test_hidden_bytes_between_directory_and_end(path: Path) -> None:
    content = archive(ENTRIES)
    with pytest.raises(FormatError, match="is said to be at bytes"):
        members(path, content[:-22] + b"hidden" + content[-22:])
