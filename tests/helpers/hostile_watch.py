"""Damages files and reads them under limits of time and memory, and tells what failed, if anything did."""

from __future__ import annotations

import random
import signal
import time
import traceback
import tracemalloc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hostile_fixtures import Fixture, Reader

from qconv.errors import QconvError

SLOWEST = 2.0  # seconds of processor time
ROOM = 5 << 20  # bytes that a reader may take whatever the size of the file
FACTOR = 10  # and this many times the file


@dataclass(frozen=True)
class Failure:
    """What a reader must not do.

    Attributes:
        kind: name of the exception, ``hang`` or ``memory``.
        where: the innermost lines of qconv's that were running, file and number.
        message: what was said.
    """

    kind: str
    where: str
    message: str


class Hang(BaseException):
    """Raised in a reader that takes too long; no reader catches it."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise Hang


def watched(read: Callable[[], None], size: int) -> bool | Failure:
    """Run ``read`` on files of ``size`` bytes; return whether they were accepted, or the failure. ``tracemalloc`` must be tracing."""
    signal.signal(signal.SIGPROF, _stop)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    started = time.process_time()
    accepted = False
    try:
        signal.setitimer(signal.ITIMER_PROF, 2 * SLOWEST, 1)  # again, where a destructor swallows the first
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read()
        accepted = True
    except QconvError as error:
        if not str(error).strip():
            return Failure(type(error).__name__, _where(error), "an error without a message")
    except KeyboardInterrupt:
        raise
    except Hang as error:
        return Failure("hang", _where(error), f"stopped after {2 * SLOWEST} s")
    except BaseException as error:  # noqa: BLE001 - whatever a reader lets through is what is looked for
        return Failure(type(error).__name__, _where(error), str(error)[:200])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, signal.SIG_IGN)  # one that is under way must not end the process
    elapsed = time.process_time() - started
    peak = tracemalloc.get_traced_memory()[1] - before
    if elapsed > SLOWEST:
        return Failure("hang", "", f"{elapsed:.1f} s")
    if peak > ROOM + FACTOR * size:
        return Failure("memory", "", f"{peak:,} bytes for files of {size:,}")
    return accepted


def _where(error: BaseException) -> str:
    """Name the last two lines of the package that the error passed through."""
    frames = [it for it in traceback.extract_tb(error.__traceback__) if "/tests/" not in it.filename]
    return " > ".join(f"{'/'.join(it.filename.split('/')[-3:])}:{it.lineno}" for it in frames[-2:])


def fuzz(
    reader: Reader, work: Path, mutations: int, seed: int, keep: Path | None = None
) -> tuple[int, dict[Failure, tuple[int, int]]]:
    """Read ``mutations`` damaged files; return how many were accepted, and per failure how often it came and in which case first."""
    folders = [_write(fixture, work / str(number)) for number, fixture in enumerate(reader.fixtures)]
    for fixture, folder in zip(reader.fixtures, folders, strict=True):  # sound files warm up what is loaded once
        reader.read(folder / fixture.entry)
    accepted = 0
    failures: dict[Failure, tuple[int, int]] = {}
    tracemalloc.start()
    try:
        for case in range(mutations):
            source = random.Random(seed * 1_000_003 + case)  # any case can be run alone
            number = source.randrange(len(folders))
            fixture, folder = reader.fixtures[number], folders[number]
            name = source.choice(fixture.targets)
            damaged = reader.damage(fixture, name, source)
            (folder / name).write_bytes(damaged)
            size = sum(map(len, fixture.files.values())) - len(fixture.files[name]) + len(damaged)
            result = watched(lambda path=folder / fixture.entry: reader.read(path), size)  # type: ignore[misc]  # bound now
            if isinstance(result, Failure):
                same = next((it for it in failures if (it.kind, it.where) == (result.kind, result.where)), result)
                count, first = failures.get(same, (0, case))
                failures[same] = (count + 1, first)
                if keep is not None and count == 0:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{case}-{name}").write_bytes(damaged)
            else:
                accepted += result
            (folder / name).write_bytes(fixture.files[name])
    finally:
        tracemalloc.stop()
    return accepted, failures


def _write(fixture: Fixture, folder: Path) -> Path:
    folder.mkdir()
    for name, content in fixture.files.items():
        (folder / name).write_bytes(content)
    return folder
