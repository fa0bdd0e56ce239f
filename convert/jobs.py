"""A conversion from a path to a path: open, plan, execute, seal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import MissingFileError, QconvError, UnknownFormatError
from ..formats.base import Format, Layout, Model
from ..plugins.manager import Registries
from .execute import execute
from .journal import Journal
from .output import OutputFiles, check_output, finish_renames, journal_path, temporary_path
from .plan import Plan

__all__ = ["Result", "detect", "open_model", "run_plan"]


@dataclass(frozen=True)
class Result:
    """What a finished conversion leaves.

    Attributes:
        paths: the output's files.
        digests: SHA-256 of every tensor's bytes by name.
        seconds: wall time of execution and seal.
        resumed: number of tensors taken over from an earlier, interrupted run.
        replaced: weights that were not finite and became zero, by tensor.
    """

    paths: tuple[Path, ...]
    digests: dict[str, str]
    seconds: float
    resumed: int
    replaced: dict[str, int]


def detect(path: Path, registries: Registries) -> Format:
    """Return the format of ``path``, judged by content; raises MissingFileError or UnknownFormatError."""
    if not path.exists():
        raise MissingFileError("no such file or folder", path=path)
    for candidate in registries.formats.values():
        if candidate.detect(path):
            return candidate
    raise UnknownFormatError(
        "no reader recognises this " + ("folder" if path.is_dir() else "file"),
        path=path,
        remedy="Readable formats: " + ", ".join(registries.formats) + ".",
    )


@contextmanager
def open_model(
    path: Path,
    registries: Registries,
    architecture: str | None = None,
    pre_tokenizer: str | None = None,
    vocabulary_only: bool = False,
    expected: str | None = None,
) -> Iterator[Model]:
    """Open ``path`` with the reader that recognises it, and close it afterwards.

    A folder that none recognises is given to the reader ``expected``, which can say what it lacks.
    """
    try:
        reader = detect(path, registries)
    except UnknownFormatError:
        if expected is None or not path.is_dir():
            raise
        reader = registries.formats[expected]
    if reader.open is None:
        raise UnknownFormatError(f"{reader.name} files can be written but not read", path=path)
    with reader.open(path, registries.open_context(architecture, pre_tokenizer, vocabulary_only)) as model:
        yield model


def run_plan(
    plan: Plan,
    force: bool,
    progress: Callable[[int], None],
    certify: Callable[[Plan, OutputFiles, Mapping[str, str]], Layout] | None = None,
) -> Result:
    """Carry a plan out: nothing appears under the final name before it is whole.

    An interrupted run (Ctrl-C, a kill, a power cut) is continued by the next with the same plan; a failed one leaves nothing.
    ``certify``, given the written tensors and their digests, returns the layout whose headers are to be sealed.
    Raises OutputExistsError, DiskFullError, BusyError, NonFiniteError, or what the source's reader raises.
    """
    started = time.monotonic()
    names = [temporary_path(part.path).name for part in plan.layout.parts]
    folder = plan.layout.parts[0].path.parent
    if not folder.is_dir():
        check_output(plan.layout, plan.model.files, force)
    journal = Journal(journal_path(plan.layout), plan.fingerprint(), names)
    paths = tuple(part.path for part in plan.layout.parts)
    if journal.sealed:  # killed between the seal and the last rename
        digests = dict(journal.digests)
        finish_renames(plan.layout)
        journal.remove()
        return Result(paths, digests, time.monotonic() - started, len(digests), {})
    try:
        check_output(plan.layout, plan.model.files, force)
        files = OutputFiles(plan.layout, journal)
    except QconvError:
        if journal.resumed:
            journal.close()
        else:
            journal.remove()
        raise
    try:
        done = execute(plan, files, progress)
        layout = None if certify is None else certify(plan, files, done.digests)
    except QconvError:
        files.discard()
        raise
    except BaseException:
        files.keep()
        raise
    files.seal(done.digests, layout)
    return Result(paths, done.digests, time.monotonic() - started, done.resumed, done.replaced)
