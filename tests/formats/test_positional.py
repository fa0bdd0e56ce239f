"""Reads at any offset, with and without the system's positional read."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qconv.errors import FormatError, MissingFileError, TruncatedError
from qconv.formats.positional import PositionalFile


@pytest.fixture(params=["positional", "seek"])
def file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PositionalFile:
    """A file of the bytes 0 to 255, read as Unix does and as Windows has to."""
    if request.param == "seek":
        monkeypatch.delattr(os, "preadv")
    (tmp_path / "bytes").write_bytes(bytes(range(256)))
    return PositionalFile(tmp_path / "bytes")


def test_many_threads_read_what_they_ask_for(file: PositionalFile) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda offset: file.read(offset % 250, 6), range(2000)))
    assert found == [bytes(range(n % 250, n % 250 + 6)) for n in range(2000)]
    file.close()
    file.close()


def test_a_short_file_is_named_with_the_offset(file: PositionalFile) -> None:
    with pytest.raises(TruncatedError, match=r"bytes: .*at byte 256") as caught:
        file.read(250, 10)
    assert caught.value.offset == 256
    file.close()


def test_what_is_no_readable_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="there is no such file"):
        PositionalFile(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(MissingFileError, match="there is no such file"):
        PositionalFile(tmp_path / "file" / "below")
    with pytest.raises(FormatError, match="no regular file"):
        PositionalFile(tmp_path)
