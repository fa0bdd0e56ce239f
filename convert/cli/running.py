"""Running results of long measurements, on standard error: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ..progress import Running, no_bar
from . import report

if TYPE_CHECKING:
    from ..measure import Subject

__all__ = ["identified", "running_bar", "tell_notes"]

_LINE_EVERY = 5.0  # seconds between plain lines
_LARGE = 256 << 20  # bytes that are digested in an instant, without a bar


@contextmanager
def running_bar(label: str, total: int, quiet: bool = False) -> Iterator[Running]:
    """Yield what is to be told of finished things, of ``total``, and of parts of unfinished ones. ``quiet`` prints nothing."""
    screen = report.console(stderr=True)
    if quiet:
        with no_bar(label, total) as silent:
            yield silent
    elif screen.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[done]}/{task.total:.0f}", style="progress.download"),
            TaskProgressColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[result]}", markup=False),
        )
        with Progress(*columns, console=screen, transient=True) as progress:
            task = progress.add_task(label, total=total, result="", done=0)
            yield _Shown(lambda moved, done, word: progress.update(task, completed=moved, done=done, result=word))
    else:
        yield _Shown(_lines(label, total))


class _Shown:
    """Keeps count; ``show`` is given how far the work is, in things, how many are finished, and the last result."""

    def __init__(self, show: Callable[[float, int, str], None]) -> None:
        self._show = show
        self._lock = threading.Lock()
        self._moved = 0.0
        self._done = 0
        self._result = ""

    def __call__(self, result: str) -> None:
        with self._lock:
            self._done, self._result = self._done + 1, result
            self._moved = max(self._moved, self._done)
            self._show(self._moved, self._done, result)

    def move(self, things: float) -> None:
        with self._lock:
            self._moved += things
            self._show(self._moved, self._done, self._result)


def _lines(label: str, total: int) -> Callable[[float, int, str], None]:
    started = last = time.monotonic()
    finished = 0

    def show(moved: float, done: int, result: str) -> None:
        nonlocal last, finished
        now = time.monotonic()
        if now - last < _LINE_EVERY and (done < total or done == finished):
            return
        last, finished = now, done
        left = (now - started) / max(moved, 1e-9) * max(0.0, total - moved)
        share = f" ({100 * min(1.0, moved / total):.0f} %)" if total and done < total else ""
        words = f"{label}: {done} of {total}{share}, {left:.0f} s left" + (f", {result}" if result else "")
        print(words, file=sys.stderr, flush=True)

    return show


def tell_notes(*subjects: Subject, context: int = 0) -> None:
    """Print what the user should know of the way in which models are run, with windows of ``context`` tokens."""
    notes = [note for subject in subjects for note in subject.network.notes]
    for trained in (subject.network.configuration.context for subject in subjects):
        if trained and context > trained:
            notes.append(f"the model was trained for {trained:,} tokens, and is given {context:,}")
    for text in dict.fromkeys(notes):
        report.note(text)


def identified(subject: Subject, quiet: bool = False) -> Subject:
    """Return a subject whose identity is known, having read every byte of it; with progress, where there are many."""
    from ...runtime.measuring.identity import identify_model

    total = sum(tensor.nbytes for tensor in subject.model.tensors.values())
    with report.progress_bar(f"digest {subject.model.path.name}", total, quiet or total < _LARGE) as progress:
        return replace(subject, known_identity=identify_model(subject.model, progress=progress))
