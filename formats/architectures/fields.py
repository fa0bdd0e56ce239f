"""Checked access to a JSON object: each key is taken once by type, and what is left over is refused."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from ...errors import PluginError

__all__ = ["Fields"]


class Fields:
    """The keys of one JSON object, with where it stands, for messages.

    >>> fields = Fields({"name": "llama"}, "the file")
    >>> fields.text("name")
    'llama'
    >>> fields.finish()
    """

    def __init__(self, value: object, where: str, path: Path | None = None) -> None:
        self._where = where
        self._path = path
        if not isinstance(value, dict):
            self.fail(f"must be a JSON object, not {_kind(value)}")
        self._left: dict[str, Any] = dict(value)
        self._known: list[str] = []

    def fail(self, problem: str, remedy: str | None = None) -> NoReturn:
        """Raise PluginError with the position."""
        raise PluginError(f"{self._where} {problem}", path=self._path, remedy=remedy)

    def __contains__(self, key: str) -> bool:
        """Whether the object has ``key`` (and nobody took it yet)."""
        self._known.append(key)
        return key in self._left

    def take(self, key: str) -> Any:
        """Return any value; raises PluginError where it is absent."""
        self._known.append(key)
        if key not in self._left:
            self.fail(f"lacks the key {key!r}")
        return self._left.pop(key)

    def text(self, key: str) -> str:
        """Return a string that is not empty."""
        value = self.take(key)
        if not isinstance(value, str) or not value:
            self.fail(f"has {key!r}: {value!r}, which must be a string")
        return value

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        """Return one of ``allowed``."""
        value = self.take(key)
        if value not in allowed:
            self.fail(f"has {key!r}: {value!r}, which must be one of {', '.join(allowed)}")
        return str(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return a truth value."""
        if key not in self:
            return default
        value = self.take(key)
        if not isinstance(value, bool):
            self.fail(f"has {key!r}: {value!r}, which must be true or false")
        return value

    def number(self, key: str) -> float:
        """Return a number as float."""
        value = self.take(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(f"has {key!r}: {value!r}, which must be a number")
        return float(value)

    def texts(self, key: str) -> tuple[str, ...]:
        """Return one string or a list of them, as a tuple; an absent key gives an empty one."""
        if key not in self:
            return ()
        value = self.take(key)
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) and item for item in values):
            self.fail(f"has {key!r}: {value!r}, which must be a string or a list of strings")
        return tuple(values)

    def scalars(self, key: str) -> dict[str, bool | int | float | str]:
        """Return an object of scalars; an absent key gives an empty one."""
        if key not in self:
            return {}
        value = self.take(key)
        if not isinstance(value, dict) or not all(
            isinstance(item, bool | int | float | str) for item in value.values()
        ):
            self.fail(f"has {key!r}: {value!r}, which must be an object of strings, numbers and truth values")
        return dict(value)

    def items(self, key: str) -> list[Any]:
        """Return a list; an absent key gives an empty one."""
        if key not in self:
            return []
        value = self.take(key)
        if not isinstance(value, list):
            self.fail(f"has {key!r}, which must be a list, not {_kind(value)}")
        return value

    def object(self, key: str) -> Mapping[str, Any]:
        """Return an object; an absent key gives an empty one."""
        if key not in self:
            return {}
        value = self.take(key)
        if not isinstance(value, dict):
            self.fail(f"has {key!r}, which must be an object, not {_kind(value)}")
        return value

    def finish(self) -> None:
        """Refuse the keys that nobody took; raises PluginError."""
        if self._left:
            key = next(iter(self._left))
            close = get_close_matches(key, self._known, n=1)
            self.fail(
                f"has the unknown key {key!r}",
                remedy=f"Did you mean {close[0]!r}?"
                if close
                else f"Known keys: {', '.join(dict.fromkeys(self._known))}.",
            )


def _kind(value: object) -> str:
    return {type(None): "null", bool: "a truth value", str: "a string", list: "a list", dict: "an object"}.get(
        type(value), "a number"
    )
