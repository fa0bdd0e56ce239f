"""Damages files and reads them under limits of time and memory, and tells what came of it."""

from __future__ import annotations

import random
import signal
import time
import traceback
import tracemalloc
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from hostile_fixtures import Fixture, Reader

from qconv.errors import QconvError

SLOWEST = 2.0  # seconds of processor time
ROOM = 5 << 20  # bytes that a reader may take whatever the size of the file
FACTOR = 10  # and this many times the file
LARGE = 1 << 18  # bytes of files beside which what every reader takes is little


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


@dataclass(frozen=True)
class Outcome:
    """What came of reading one file.

    Attributes:
        failure: what went wrong, None where the reader accepted or refused the file.
        accepted: whether it was accepted.
        seconds: of processor time.
        peak: bytes that the reader held at most.
        size: bytes of the files.
    """

    failure: Failure | None
    accepted: bool
    seconds: float
    peak: int
    size: int


def watched(read: Callable[[], None], size: int) -> Outcome:
    """Run ``read`` on files of ``size`` bytes and tell what came of it. ``tracemalloc`` must be tracing."""
    signal.signal(signal.SIGPROF, _stop)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    started = time.process_time()
    failure, accepted = None, False
    try:
        signal.setitimer(signal.ITIMER_PROF, 2 * SLOWEST, 1)  # again, where a destructor swallows the first
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read()
        accepted = True
    except QconvError as error:
        if not str(error).strip():
            failure = Failure(type(error).__name__, _where(error), "an error without a message")
    except KeyboardInterrupt:
        raise
    except Hang as error:
        failure = Failure("hang", _where(error), f"stopped after {2 * SLOWEST} s")
    except BaseException as error:  # noqa: BLE001 - whatever a reader lets through is what is looked for
        failure = Failure(type(error).__name__, _where(error), str(error)[:200])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, signal.SIG_IGN)  # one that is under way must not end the process
    seconds = time.process_time() - started
    peak = tracemalloc.get_traced_memory()[1] - before
    if failure is None and seconds > SLOWEST:
        failure = Failure("hang", "", f"{seconds:.1f} s")
    if failure is None and peak > ROOM + FACTOR * size:
        failure = Failure("memory", "", f"{peak:,} bytes for files of {size:,}")
    return Outcome(failure, accepted, seconds, peak, size)


def _where(error: BaseException) -> str:
    """Name the last two lines of the package that the error passed through."""
    frames = [it for it in traceback.extract_tb(error.__traceback__) if "/tests/" not in it.filename]
    return " > ".join(f"{'/'.join(it.filename.split('/')[-3:])}:{it.lineno}" for it in frames[-2:])


@dataclass
class Tally:
    """What came of many files.

    Attributes:
        read: how many were read.
        accepted: how many were accepted.
        seconds: processor time of the slowest.
        peak: bytes held at most.
        share: the largest share of the permitted bytes that was held.
        factor: the largest number of times that files of :data:`LARGE` bytes or more were held.
        failures: how often each came, and in which case first.
    """

    read: int = 0
    accepted: int = 0
    seconds: float = 0.0
    peak: int = 0
    share: float = 0.0
    factor: float = 0.0
    failures: dict[Failure, tuple[int, int]] = field(default_factory=dict)

    @property
    def refused(self) -> int:
        """How many were refused."""
        return self.read - self.accepted - sum(count for count, _ in self.failures.values())

    def add(self, case: int, outcome: Outcome) -> bool:
        """Count an outcome; return whether it is a failure that was not seen before."""
        self.read += 1
        self.seconds = max(self.seconds, outcome.seconds)
        self.peak = max(self.peak, outcome.peak)
        self.share = max(self.share, outcome.peak / (ROOM + FACTOR * outcome.size))
        if outcome.size >= LARGE:
            self.factor = max(self.factor, outcome.peak / outcome.size)
        if outcome.failure is None:
            self.accepted += outcome.accepted
            return False
        failure = outcome.failure
        same = next((it for it in self.failures if (it.kind, it.where) == (failure.kind, failure.where)), failure)
        count, first = self.failures.get(same, (0, case))
        self.failures[same] = (count + 1, first)
        return count == 0


def fuzz(
    reader: Reader, work: Path, cases: Iterable[int], seed: int, keep: Path | None = None, tally: Tally | None = None
) -> Tally:
    """Read one damaged file for each number of ``cases`` and count what came of it, on top of ``tally`` if given.

    The seed and a number give the same file again. ``keep``: folder for the first file of each failure.
    """
    tally = Tally() if tally is None else tally
    folders = [_write(fixture, work / str(number)) for number, fixture in enumerate(reader.fixtures)]
    for fixture, folder in zip(reader.fixtures, folders, strict=True):  # sound files warm up what is loaded once
        reader.read(folder / fixture.entry)
    tracemalloc.start()
    try:
        for case in cases:
            source = random.Random(seed * 1_000_003 + case)
            number = source.randrange(len(folders))
            fixture, folder = reader.fixtures[number], folders[number]
            name = source.choice(fixture.targets)
            damaged = reader.damage(fixture, name, source)
            (folder / name).write_bytes(damaged)
            size = sum(map(len, fixture.files.values())) - len(fixture.files[name]) + len(damaged)
            outcome = watched(lambda path=folder / fixture.entry: reader.read(path), size)  # type: ignore[misc]  # bound now
            if tally.add(case, outcome) and keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{case}-{name}").write_bytes(damaged)
            (folder / name).write_bytes(fixture.files[name])
    finally:
        tracemalloc.stop()
    return tally


def _write(fixture: Fixture, folder: Path) -> Path:
    folder.mkdir()
    for name, content in fixture.files.items():
        (folder / name).write_bytes(content)
    return folder
