"""Running results of long measurements, on standard error: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from . import report

__all__ = ["running_bar"]

_LINE_EVERY = 5.0  # seconds between plain lines


@contextmanager
def running_bar(label: str, total: int, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Yield a function to call with the result so far, once per finished thing of ``total``. ``quiet`` prints nothing."""
    screen = report.console(stderr=True)
    if quiet:
        yield lambda result: None
    elif screen.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[result]}"),
        )
        with Progress(*columns, console=screen, transient=True) as progress:
            task = progress.add_task(label, total=total, result="")
            yield lambda result: progress.update(task, advance=1, result=result)
    else:
        yield _plain(label, total)


def _plain(label: str, total: int) -> Callable[[str], None]:
    started = last = time.monotonic()
    done = 0

    def advance(result: str) -> None:
        nonlocal done, last
        done += 1
        now = time.monotonic()
        if now - last < _LINE_EVERY and done < total:
            return
        last = now
        left = (now - started) / done * (total - done)
        words = f"{label}: {done} of {total}, {left:.0f} s left" + (f", {result}" if result else "")
        print(words, file=sys.stderr, flush=True)

    return advance
