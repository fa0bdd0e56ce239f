"""Which format an output is to have: by name, or by the name of the output."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path

from ..errors import UsageError
from ..formats.base import Format
from ..plugins.manager import Registries

__all__ = ["PACKED", "find_target"]

PACKED = ("exl2", "gptq", "awq")
"""Hugging Face folders with packed matrices, which have ways of their own: :mod:`.exl2.folder` and :mod:`.packed.folder`."""

_ENDING = re.compile(r"\.[A-Za-z]\w*")  # ".bin", ".q8_0"; not the ".2-1B" of a model's name


def find_target(output: Path, name: str | None, registries: Registries) -> Format:
    """Return the format called ``name``, else the one that the name of ``output`` tells.

    An ending tells a format of files; an existing folder, or a name without ending, is a Hugging Face folder.
    Raises UsageError, which lists the formats that can be written.
    """
    writers = [it for it in registries.formats.values() if it.lay_out is not None]
    listed = f"Formats that can be written: {', '.join([*map(_label, writers), *PACKED])}."
    if name is not None:
        wanted = name.strip().lower()
        for each in writers:
            if wanted in (each.name, *each.aliases):
                return each
        known = [word for each in writers for word in (each.name, *each.aliases)]
        close = get_close_matches(wanted, known, n=1)
        problem = "can be read but not written" if wanted in registries.formats else "is no format"
        raise UsageError(
            f"{name!r} {problem}{f'; did you mean {close[0]!r}?' if close else ''}",
            remedy=listed,
        )
    for each in writers:
        if any(output.name.lower().endswith(ending) for ending in each.suffixes) and not output.is_dir():
            return each
    if output.is_dir() or not _ENDING.fullmatch(output.suffix):
        return registries.formats["huggingface"]
    raise UsageError(f"{output} does not tell which format it is to have", remedy=f"Say so with --to. {listed}")


def _label(each: Format) -> str:
    return f"{each.name} ({', '.join(each.aliases)})" if each.aliases else each.name
