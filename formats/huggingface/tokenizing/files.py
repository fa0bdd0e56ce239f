"""The tokenizer's files in a Hugging Face folder, read with caps and checked to be what they claim."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ....errors import FormatError, MissingFileError
from ..json_files import read_json_object

__all__ = [
    "MAX_FILE_BYTES",
    "TokenizerFiles",
    "expect",
    "find_tokenizer_files",
    "read_bytes",
    "read_text",
]

MAX_FILE_BYTES = 1 << 28
"""Largest tokenizer file that is read, in bytes; the largest in use (multilingual tokenizer.json files) have about 35 MB."""

_T = TypeVar("_T")

_PURPOSE = "a part of the tokenizer"

_CONFIGURATIONS = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "added_tokens.json")
_VOCABULARIES = ("tokenizer.model", "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt")
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_TEMPLATE_FOLDER = "additional_chat_templates"


@dataclass(frozen=True)
class TokenizerFiles:
    """What a folder holds about its tokenizer.

    Attributes:
        folder: the model's folder.
        paths: the files that are there, by name (additional templates as ``additional_chat_templates/NAME.jinja``).
        tokenizer_config: ``tokenizer_config.json``, like the next three empty where it is absent.
        special_tokens_map: ``special_tokens_map.json``.
        generation_config: ``generation_config.json``.
        added_tokens: ``added_tokens.json``.
        tokenizer: ``tokenizer.json``, or None.
    """

    folder: Path
    paths: Mapping[str, Path]
    tokenizer_config: Mapping[str, Any]
    special_tokens_map: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    added_tokens: Mapping[str, Any]
    tokenizer: Mapping[str, Any] | None


def find_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Return the tokenizer's files of ``folder``; raises FormatError for JSON that is broken or no object."""
    names = (*_VOCABULARIES, *_CONFIGURATIONS, *_TEMPLATES)
    paths = {name: folder / name for name in names if (folder / name).is_file()}
    additional = folder / _TEMPLATE_FOLDER
    if additional.is_dir():
        paths |= {f"{_TEMPLATE_FOLDER}/{path.name}": path for path in sorted(additional.glob("*.jinja"))}
    objects = {name: read_json_object(paths[name], _PURPOSE) if name in paths else {} for name in _CONFIGURATIONS}
    return TokenizerFiles(
        folder=folder,
        paths=paths,
        tokenizer_config=objects["tokenizer_config.json"],
        special_tokens_map=objects["special_tokens_map.json"],
        generation_config=objects["generation_config.json"],
        added_tokens=objects["added_tokens.json"],
        tokenizer=read_json_object(paths["tokenizer.json"], _PURPOSE) if "tokenizer.json" in paths else None,
    )


def expect(value: object, kind: type[_T], what: str, path: Path) -> _T:
    """Return ``value`` if it is a ``kind`` (a truth value is no integer); raises FormatError naming ``what`` otherwise."""
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    names = {dict: "an object", list: "a list", str: "a string", int: "an integer", bool: "true or false"}
    raise FormatError(f"{what} should be {names[kind]}, but is {json.dumps(value)[:60]}", path=path)


def read_bytes(path: Path) -> bytes:
    """Return the contents of ``path``; raises MissingFileError, or FormatError where it exceeds MAX_FILE_BYTES."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise FormatError(f"no tokenizer file may exceed {MAX_FILE_BYTES} bytes", path=path)
        data = path.read_bytes()
    except FileNotFoundError:
        raise MissingFileError("there is no such file", path=path) from None
    if data.startswith(b"version https://git-lfs"):
        raise FormatError(
            "this is a Git LFS pointer, not the file", path=path, remedy="Run 'git lfs pull' in the folder."
        )
    return data


def read_text(path: Path) -> str:
    """Return ``path`` as UTF-8 text without a byte-order mark; raises as :func:`read_bytes`, FormatError for other bytes."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError("this is no UTF-8 text", path=path, offset=error.start) from None
