"""``params.json``: numbers of a file that is not believed, with errors that name the key and the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ModelError
from .huggingface.json_files import finite_number

__all__ = ["INTEGER_MAX", "ParametersFile"]

INTEGER_MAX = (1 << 31) - 1


@dataclass(frozen=True)
class ParametersFile:
    """The keys of ``params.json``, or of an object in it.

    Attributes:
        values: by key.
        path: the file.
        place: what stands before a key in messages: ``moe.`` for the keys of an inner object.
    """

    values: Mapping[str, Any]
    path: Path
    place: str = ""

    def fail(self, key: str, wanted: str) -> NoReturn:
        """Raise ModelError: ``key``, which may be absent, must be ``wanted``."""
        shown = repr(self.values.get(key))
        shown = shown if len(shown) < 80 else f"{shown[:80]}…"
        found = f"has {self.place}{key}: {shown}" if key in self.values else f"lacks {self.place}{key}"
        raise ModelError(
            f"{found}, which must be {wanted}",
            path=self.path,
            remedy="Restore the original params.json.",
        )

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.values.get(key) is not None

    def integer(self, key: str, default: int | None = None, limit: int = INTEGER_MAX, least: int = 1) -> int:
        """Return a whole number from ``least`` to ``limit``; raises ModelError, also where it is absent and has no default."""
        value = self.values.get(key)
        value = default if value is None else value
        number = finite_number(value)
        if number is None or not number.is_integer() or not least <= number <= limit:
            self.fail(key, f"a whole number from {least} to {limit}")
        return int(number)

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number above 0; raises ModelError, also where it is absent and has no default."""
        value = self.values.get(key)
        value = default if value is None else value
        number = finite_number(value)
        if number is None or number <= 0:
            self.fail(key, "a number above 0")
        return number

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false; raises ModelError for anything else."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fail(key, "true or false")
        return value

    def inner(self, key: str) -> ParametersFile | None:
        """Return the object under a key, None where there is none; raises ModelError for another value."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fail(key, "an object")
        return ParametersFile(value, self.path, f"{self.place}{key}.")
