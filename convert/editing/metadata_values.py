"""Metadata values between files, the command line, JSON and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import numpy as np

from ...errors import MissingFileError, UsageError
from ...formats.gguf import detect_gguf
from ...formats.gguf.header import parse_header
from ...formats.metadata import Field, ValueType, string
from ...formats.positional import PositionalFile
from ...formats.summary import plain_value, printable
from ...plugins.manager import Registries
from ..opening import open_model
from ..overrides import TYPES, parse_override, type_name
from .edit_metadata import recover

__all__ = [
    "as_json",
    "as_text",
    "element_text",
    "finite",
    "keys_to_copy",
    "matching",
    "parse_assignments",
    "read_metadata",
    "type_and_length",
]

_FIRST: Final = 4  # elements of an array that are shown
_SHORT: Final = 16  # elements that JSON shows in any case
_LONGEST: Final = 80  # characters of a string that are shown
_LONGEST_ELEMENT: Final = 16  # characters of a string in an array
_COPIED: Final = ("general.*", "tokenizer.*")
_OF_THE_WEIGHTS: Final = ("general.architecture", "general.type", "general.alignment", "general.file_type")


def read_metadata(path: Path, registries: Registries) -> Mapping[str, Field]:
    """Return the metadata of a model of any format, of a GGUF file every key that it holds; finishes an edit that was interrupted.

    Raises FormatError or ModelError for what cannot be read.
    """
    if path.is_file() and detect_gguf(path):
        recover(path.resolve())
        file = PositionalFile(path)
        try:
            return parse_header(file, registries.encodings).metadata
        finally:
            file.close()
    with open_model(path, registries, vocabulary_only=True) as model:
        return model.metadata


def matching(metadata: Mapping[str, Field], globs: Sequence[str] | None) -> dict[str, Field]:
    """Return the keys that match one of ``globs``; all, where there are none."""
    return {
        key: field
        for key, field in metadata.items()
        if not globs or any(fnmatchcase(key, pattern) for pattern in globs)
    }


def keys_to_copy(metadata: Mapping[str, Field], globs: Sequence[str] | None, source: Path) -> dict[str, Field]:
    """Return the keys of ``source`` to be copied; without ``globs`` those that describe it, whatever its weights. Raises UsageError for none."""
    found = matching(metadata, globs or _COPIED)
    if not globs:
        found = {
            key: field
            for key, field in found.items()
            if key not in _OF_THE_WEIGHTS and not key.startswith("general.quantiz")
        }
    if not found:
        raise UsageError(f"{source} has no key like {', '.join(globs or _COPIED)}")
    return found


def parse_assignments(
    assignments: Sequence[str], files: Sequence[str], present: Mapping[str, Field]
) -> dict[str, Field]:
    """Return the keys of ``KEY=TYPE:VALUE`` (``KEY=VALUE`` keeps the type that ``present`` has) and of ``KEY=PATH`` for strings in files.

    Raises UsageError for another form, MissingFileError for a file that is not there.
    """
    found: dict[str, Field] = {}
    for text in assignments:
        key, _, rest = text.partition("=")
        kind = rest.partition(":")[0].removesuffix("[]")
        if kind not in (*TYPES, "int") and key and "=" in text and key not in present:
            raise UsageError(
                f"there is no key {key!r} yet, so it needs a type",
                remedy=f"Write {key}=TYPE:{rest}, such as {key}=str:{rest}, or correct the key.",
            )
        if kind not in (*TYPES, "int") and key in present:
            text = f"{key}={type_name(present[key])}:{rest}"
        found.update([parse_override(text, "")])
    for text in files:
        key, equals, name = text.partition("=")
        if not key or not equals or not name:
            raise UsageError(f"--file {text!r} has not the form KEY=PATH")
        if not Path(name).is_file():
            raise MissingFileError("there is no such file", path=name)
        try:
            found[key] = string(Path(name).read_bytes().decode())
        except UnicodeDecodeError as error:
            raise UsageError(f"{name} is not UTF-8 ({error})") from error
    return found


def type_and_length(field: Field) -> str:
    """Return ``u32``, or ``str[4096]`` for an array."""
    name = type_name(field)
    return name if isinstance(field.value, bool | int | float | str) else f"{name[:-1]}{len(field.value)}]"


def as_json(field: Field, full: bool) -> dict[str, object]:
    """Return type and value; of a longer array, without ``full``, its length and first elements."""
    value = field.value
    if isinstance(value, bool | int | float | str):
        return {"type": type_name(field), "value": finite(plain_value(field))}
    whole = full or len(value) <= _SHORT
    shown = [finite(plain_value(Field(field.element or field.type, it))) for it in _elements(field, whole)]
    return {"type": type_name(field), "length": len(value), "value" if whole else "first": shown}


def as_text(field: Field, full: bool) -> str:
    """Return a value for people: on one line and shortened, or, with ``full``, as it is."""
    value = field.value
    if isinstance(value, str):
        return printable(value) if full else _line(value, _LONGEST)
    if isinstance(value, bool | int | float):
        return _word(plain_value(field))
    shown = _elements(field, full)
    words = [
        f'"{printable(it) if full else _line(it, _LONGEST_ELEMENT)}"' if isinstance(it, str) else _word(it)
        for it in shown
    ]
    return ", ".join(words) + (", …" if len(value) > len(shown) else "")


def _elements(field: Field, full: bool) -> list[bool | int | float | str]:
    value = field.value
    if isinstance(value, bool | int | float | str):
        return [value]
    shown = value if full else value[:_FIRST]
    if isinstance(shown, np.ndarray):
        as_stored = shown.astype(str) if field.element is ValueType.FLOAT32 else None  # 0.1, not the float64 beside it
        return shown.tolist() if as_stored is None else [float(it) for it in as_stored]
    return list(shown)


def _line(text: str, longest: int) -> str:
    line = printable(text).replace("\n", "\\n").replace("\t", "\\t")
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def element_text(field: Field, index: int) -> str:
    """Return one element of an array for people, ``nothing`` where it is shorter."""
    value = field.value
    if isinstance(value, bool | int | float | str) or index >= len(value):
        return "nothing"
    element = value[index]
    return f'"{_line(element, _LONGEST)}"' if isinstance(element, str) else _word(element)


def finite(value: object) -> object:
    """Return the value as JSON has it, which knows no NaN."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
