"""What long work tells whoever shows its progress: things that are finished, with a word on them, and parts of things that are not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

__all__ = ["Bar", "Running", "no_bar"]


class Running(Protocol):
    """A display of things that are worked on one after another."""

    def __call__(self, result: str) -> None:
        """Take note that one more thing is finished; ``result`` is how it stands so far."""
        ...

    def move(self, things: float) -> None:
        """Take note of a part of what is being worked on: so many things more are as good as done, though not finished."""
        ...


Bar = Callable[[str, int], AbstractContextManager[Running]]
"""Given a label and a number of things, opens a display."""


class _Silent:
    """Shows nothing."""

    def __call__(self, result: str) -> None:
        pass

    def move(self, things: float) -> None:
        pass


def no_bar(label: str, total: int) -> AbstractContextManager[Running]:
    """Show nothing."""
    return nullcontext(_Silent())
