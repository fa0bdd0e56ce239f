"""File names of split models, as llama.cpp forms them: ``prefix-00001-of-00003.gguf``, counted from one."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["part_path", "split_name"]

_PART = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def split_name(path: Path) -> tuple[str, int, int] | None:
    """Return prefix, number (from one) and count of a part's name, or None for any other name."""
    found = _PART.fullmatch(path.name)
    return None if found is None else (found["prefix"], int(found["number"]), int(found["count"]))


def part_path(path: Path, number: int, count: int) -> Path:
    """Return the path of part ``number`` of ``count`` beside ``path``, which is any part or ``prefix.gguf``."""
    named = split_name(path)
    prefix = path.name.removesuffix(".gguf") if named is None else named[0]
    return path.with_name(f"{prefix}-{number:05d}-of-{count:05d}.gguf")
