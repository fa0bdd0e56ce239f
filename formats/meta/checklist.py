"""``checklist.chk``: the MD5 (or SHA-256) of a checkpoint's files, one line each, as ``md5sum`` writes and checks them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from ...errors import FormatError, MissingFileError

__all__ = ["NAME", "check_small_files", "read_checklist", "verify_checklist"]

NAME = "checklist.chk"
LIST_MAX = 1 << 20  # bytes
SMALL_MAX = 1 << 20  # bytes of a file that is checked whenever a checkpoint is opened

_CHUNK = 4 << 20
_LINE = re.compile(r"(?P<digest>[0-9a-fA-F]{32}|[0-9a-fA-F]{64}) [ *](?P<name>[^\s/\\:\0][^/\\:\0]*)")


def read_checklist(folder: Path) -> Mapping[str, str]:
    """Return lower-case digests by file name, empty where the folder has no list; raises FormatError for a malformed one."""
    path = folder / NAME
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        data = file.read(LIST_MAX + 1)
    found: dict[str, str] = {}
    offset = 0
    for line in data.split(b"\n"):
        text = line.decode("utf-8", errors="replace").rstrip("\r")
        if text:
            match = _LINE.fullmatch(text)
            if match is None or match["name"] in found or len(data) > LIST_MAX:
                raise FormatError(
                    "a line is not a digest, two spaces and the name of another file of the folder",
                    path=path,
                    offset=offset,
                    remedy="Download it again, or remove it to go without.",
                )
            found[match["name"]] = match["digest"].lower()
        offset += len(line) + 1
    return found


def check_small_files(folder: Path) -> tuple[str, ...]:
    """Return a note for every small file of the list that has changed, as after an edit; weights are left to :func:`verify_checklist`."""
    notes = []
    for name, digest in read_checklist(folder).items():
        path = folder / name
        if path.is_file() and path.stat().st_size <= SMALL_MAX and _digest(path, len(digest)) != digest:
            notes.append(f"{name} is not the file that {NAME} describes: it was edited or damaged")
    return tuple(notes)


def verify_checklist(folder: Path, progress: Callable[[int], None] = lambda count: None) -> dict[str, bool]:
    """Read every file of the list and return whether it is as the list says, by name.

    ``progress`` is called with the number of bytes that were read. Raises MissingFileError where the list or one of its files is absent.
    """
    digests = read_checklist(folder)
    if not digests:
        raise MissingFileError(
            f"the folder has no {NAME} to compare with",
            path=folder,
            remedy="GGUF files are verified by the digests in them; of folders, those of Meta's models by their list.",
        )
    absent = [name for name in digests if not (folder / name).is_file()]
    if absent:
        raise MissingFileError(
            f"{NAME} names files that are missing: {', '.join(absent[:20])}",
            path=folder / absent[0],
            remedy="Download them into the folder.",
        )
    return {name: _digest(folder / name, len(digest), progress) == digest for name, digest in digests.items()}


def _digest(path: Path, length: int, progress: Callable[[int], None] = lambda count: None) -> str:
    """Return the digest that has ``length`` hexadecimal digits; MD5 guards against damage here, not against malice."""
    state = hashlib.md5(usedforsecurity=False) if length == 32 else hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
            progress(len(chunk))
    return state.hexdigest()
