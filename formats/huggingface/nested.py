"""Keys of ``config.json`` that lie in an object of it: ``linear_attn_config.head_dim`` is the key ``head_dim`` of the object ``linear_attn_config``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["has_key", "look_up_key", "set_key"]


def look_up_key(config: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key, None where it, or the object that it lies in, is absent.

    >>> look_up_key({"inner": {"size": 3}}, "inner.size")
    3
    """
    outer, _, rest = key.partition(".")
    found = config.get(outer)
    if not rest:
        return found
    return look_up_key(found, rest) if isinstance(found, Mapping) else None


def has_key(config: Mapping[str, Any], key: str) -> bool:
    """Whether a key is there, whatever it holds."""
    outer, _, rest = key.partition(".")
    found = config.get(outer)
    return outer in config and (not rest or (isinstance(found, Mapping) and has_key(found, rest)))


def set_key(config: dict[str, Any], key: str, value: object) -> None:
    """Set a key; the object that it lies in is replaced by a copy, or made.

    >>> found = {}
    >>> set_key(found, "inner.size", 3)
    >>> found
    {'inner': {'size': 3}}
    """
    outer, _, rest = key.partition(".")
    if not rest:
        config[outer] = value
        return
    known = config.get(outer)
    inner: dict[str, Any] = dict(known) if isinstance(known, Mapping) else {}
    set_key(inner, rest, value)
    config[outer] = inner
