"""Standard input for commands run inside the test's process."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import NoReturn

import pytest


class _Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def pipe(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Let standard input be a pipe with ``data``."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def terminal(monkeypatch: pytest.MonkeyPatch, lines: Sequence[str | type[BaseException]] = ()) -> None:
    """Let standard input be a terminal where somebody types ``lines`` (or causes an exception), then Ctrl-D."""
    waiting = list(lines)

    def type_line(prompt: str = "") -> str:
        sys.stdout.write(prompt)
        found = waiting.pop(0) if waiting else EOFError
        return found if isinstance(found, str) else _raise(found)

    monkeypatch.setattr(sys, "stdin", _Terminal(io.BytesIO(b""), encoding="utf-8"))
    monkeypatch.setattr("builtins.input", type_line)


def _raise(kind: type[BaseException]) -> NoReturn:
    raise kind
