"""The JSON files of a Hugging Face folder: bounded, and with an error that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import FormatError, MissingFileError

__all__ = ["finite_number", "read_json", "read_json_object"]

_FLOAT32_MAX = (2 - 2**-23) * 2.0**127
JSON_MAX = 256 << 20  # bytes; the largest tokenizer.json known has some 40 million


def read_json_object(path: Path, purpose: str) -> dict[str, Any]:
    """Return the object in a JSON file; raises as :func:`read_json`, and FormatError for another value."""
    value = read_json(path, purpose)
    if not isinstance(value, dict):
        raise FormatError(f"must hold a JSON object with {purpose}", path=path, remedy="Download it again.")
    return value


def read_json(path: Path, purpose: str) -> Any:
    """Return the value in a JSON file; raises MissingFileError or FormatError, with ``purpose`` in the message.

    ``purpose`` completes "the file holds ...".
    """
    try:
        size = path.stat().st_size
        text = path.read_text(encoding="utf-8-sig") if size <= JSON_MAX else ""
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError(
            f"no such file, and it holds {purpose}", path=path, remedy="Copy it from where the model came from."
        ) from error
    except OSError as error:
        raise FormatError(f"cannot be read ({error.strerror})", path=path, remedy="Check its permissions.") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"is no UTF-8 text ({error})", path=path, remedy="Download it again.") from error
    if size > JSON_MAX:
        raise FormatError(f"{size} bytes are too many for {purpose}", path=path, remedy="Is this the right file?")
    if text.startswith("version https://git-lfs"):
        raise FormatError(
            "this is a Git LFS pointer, not the file", path=path, remedy="Run 'git lfs pull' in the folder."
        )
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"is no valid JSON ({error})", path=path, remedy="Download it again, or mend it by hand."
        ) from error


def finite_number(value: object) -> float | None:
    """Return a JSON number as float; None for anything else, for NaN, and beyond the range of float32, in which GGUF keeps such numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) <= _FLOAT32_MAX else None
