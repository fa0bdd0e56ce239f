"""What people see: progress, plans, summaries; and the JSON twin of each."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = [
    "counted",
    "counter_bar",
    "error",
    "human_bytes",
    "human_seconds",
    "listed",
    "note",
    "paragraph",
    "print_json",
    "print_table",
    "progress_bar",
    "warning",
]

_LINE_EVERY = 10.0  # seconds between plain progress lines


def human_bytes(count: float) -> str:
    """Return ``count`` in binary units with three significant digits.

    >>> human_bytes(7351392)
    '7.01 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}" if count < 1000 else f"{count:,.0f} {unit}"


def human_seconds(seconds: float) -> str:
    """Return a duration with as many digits as tell something.

    >>> human_seconds(0.0349), human_seconds(2.31), human_seconds(154)
    ('0.035 s', '2.3 s', '154 s')
    """
    return f"{seconds:.0f} s" if seconds >= 100 else f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2g} s"


def counted(number: int, thing: str) -> str:
    """Return a number with what it counts.

    >>> counted(1, "chunk"), counted(2048, "chunk")
    ('1 chunk', '2,048 chunks')
    """
    return f"{number:,} {thing}{'s' * (number != 1)}"


def listed(numbers: Sequence[int], most: int = 8) -> str:
    """Return numbers, cut where there are many.

    >>> listed([3, 5, 8], most=2)
    '3, 5 and 1 more'
    """
    words = ", ".join(map(str, numbers[:most]))
    return words + (f" and {len(numbers) - most} more" if len(numbers) > most else "")


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on standard output, in ASCII where the output's encoding lacks a character."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)
    sys.stdout.write(text + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print a table on standard output; ``right`` names the columns to align right."""
    table = Table(
        title=title or None,
        title_justify="left",
        header_style="bold",
        box=None,
        pad_edge=False,
        show_header=any(columns),
    )
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    screen = console()
    if screen.is_terminal:
        screen.print(table)
        return
    with screen.capture() as printed:
        screen.print(table)
    for line in printed.get().splitlines():  # rich fills the last column with spaces
        sys.stdout.write(line.rstrip() + "\n")


def console(stderr: bool = False) -> Console:
    """Return a console that prints text as it is: without highlights, markup and emoji, and in pipes without breaks."""
    target = Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=False)
    if not target.is_terminal:
        target.width = 200
    return target


def paragraph(text: str) -> None:
    """Print a sentence or a list on standard output: broken between words on a terminal, in one line elsewhere."""
    _print_words(console(), Text(text))


def note(text: str) -> None:
    """Print a remark on standard error."""
    _print_words(console(stderr=True), Text(f"note: {text}", style="yellow"))


def error(text: str, label: str = "error") -> None:
    """Print on standard error what is wrong."""
    _print_words(console(stderr=True), Text.assemble((f"{label}:", "bold red"), f" {text}"))


def warning(text: str) -> None:
    """Print on standard error what may be wrong."""
    _print_words(console(stderr=True), Text.assemble(("warning:", "bold yellow"), f" {text}"))


def _print_words(screen: Console, text: Text) -> None:
    screen.print(text, soft_wrap=not screen.is_terminal)


@contextmanager
def progress_bar(label: str, total: int, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with finished bytes.

    On a terminal it draws a bar with rate and time left, elsewhere it prints a line every ten seconds; both on standard error.
    ``quiet`` prints nothing.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    screen = console(stderr=True)
    if quiet:
        yield lambda count: None
    elif screen.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TextColumn("{task.fields[rate]}", style="progress.data.speed"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=screen, transient=True) as progress:
            task = progress.add_task(label, total=total, rate="")

            def advance(count: int) -> None:
                progress.advance(task, count)
                speed = progress.tasks[0].speed
                # in the units of the size beside it
                progress.update(task, rate="" if speed is None else f"{human_bytes(speed)}/s")

            yield advance
    else:
        yield _plain_progress(label, total)


@contextmanager
def counter_bar(label: str, total: int, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Yield a function to call with the name of each thing as it starts; for work that is counted in things, not bytes."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn  # slow, and many commands show none

    columns, screen = (
        (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()),
        console(stderr=True),
    )
    silent = quiet or not screen.is_terminal  # elsewhere rich would print an empty line
    with Progress(*columns, console=screen, transient=True, disable=silent) as progress:
        task = progress.add_task(label, total=total)
        started = 0

        def start(name: str) -> None:
            nonlocal started
            progress.update(task, description=f"{label} {name}", completed=started)
            started += 1

        yield start


def _plain_progress(label: str, total: int) -> Callable[[int], None]:
    started = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last < _LINE_EVERY:
            return
        last = now
        rate = done / max(now - started, 1e-9)
        left = (total - done) / rate if rate else 0.0
        percent = 100 * done / total if total else 100.0
        print(f"{label}: {percent:.0f} %, {human_bytes(rate)}/s, {left:.0f} s left", file=sys.stderr, flush=True)

    return advance
