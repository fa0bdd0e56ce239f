"""Work that several threads need the result of: whoever comes takes a part of it, and nobody does anything twice."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

__all__ = ["LastUsed", "SharedWork"]

Value = TypeVar("Value")


class SharedWork:
    """Work in parts.

    Args:
        begin: called once; returns the parts, which may be done in any order, by any threads. What they raise, every caller of
            :meth:`finish` gets.
    """

    def __init__(self, begin: Callable[[], Sequence[Callable[[], None]]]) -> None:
        self._begin = begin
        self._parts: Sequence[Callable[[], None]] | None = None
        self._taken = self._done = 0
        self._error: BaseException | None = None
        self._starting = threading.Lock()
        self._condition = threading.Condition()

    def finish(self) -> None:
        """Do parts that nobody has taken, and wait for the others."""
        with self._starting:
            if self._parts is None and self._error is None:
                self._guarded(self._start)
        while (part := self._take()) is not None:
            self._guarded(part)
            with self._condition:
                self._done += 1
                self._condition.notify_all()
        with self._condition:
            while self._error is None and self._done < len(self._parts or ()):
                self._condition.wait()
            if self._error is not None:
                raise self._error

    def _start(self) -> None:
        self._parts = self._begin()

    def _take(self) -> Callable[[], None] | None:
        with self._condition:
            if self._error is not None or self._parts is None or self._taken == len(self._parts):
                return None
            self._taken += 1
            return self._parts[self._taken - 1]

    def _guarded(self, part: Callable[[], None]) -> None:
        try:
            part()
        except BaseException as error:
            with self._condition:
                self._error = error
                self._condition.notify_all()
            raise


class LastUsed(Generic[Value]):
    """The last few things that were made, by key; any thread may ask, and nothing is made by two at once."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._known: OrderedDict[Hashable, Value] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return what is kept under ``key``; where nothing is, what ``make`` returns."""
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._known:  # another thread was quicker
                    return self._known[key]
            value = make()
            with self._lock:
                self._known[key] = value
                self._making.pop(key, None)
                while len(self._known) > self._kept:
                    self._known.popitem(last=False)
        return value

    def forget(self, key: Hashable) -> None:
        """Let go of what is kept under ``key``."""
        with self._lock:
            self._known.pop(key, None)
