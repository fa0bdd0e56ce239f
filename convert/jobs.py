"""Carrying a plan out: execute, certify, seal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import QconvError
from ..formats.base import Layout
from .execute import execute
from .journal import Journal
from .output import OutputFiles, check_output, finish_renames, journal_path, temporary_names
from .plan import Plan

__all__ = ["Result", "run_plan"]


@dataclass(frozen=True)
class Result:
    """What a finished conversion leaves.

    Attributes:
        paths: the output's files, or its folder; where ``certify`` gave them other names, these.
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


def run_plan(
    plan: Plan,
    force: bool,
    progress: Callable[[int], None],
    certify: Callable[[Plan, OutputFiles, Mapping[str, str]], Layout] | None = None,
) -> Result:
    """Carry a plan out: nothing appears under the final name before it is whole.

    An interrupted run (Ctrl-C, a kill, a power cut) is continued by the next with the same plan; a failed one leaves nothing.
    ``certify``, given the written tensors and their digests, returns the layout whose headers are to be sealed, and whose names the files get.
    Raises OutputExistsError, DiskFullError, BusyError, NonFiniteError, or what the source's reader raises.
    """
    started = time.monotonic()
    layout = plan.layout
    if not layout.path.parent.is_dir():
        check_output(layout, plan.model.files, force)
    journal = Journal(journal_path(layout), plan.fingerprint(), temporary_names(layout))
    if journal.sealed:  # killed between the seal and the last rename
        digests = dict(journal.digests)
        finish_renames(layout, journal.names)
        journal.remove()
        return Result(_paths(layout, journal.names), digests, time.monotonic() - started, len(digests), {})
    try:
        check_output(layout, plan.model.files, force)
        files = OutputFiles(layout, journal)
    except QconvError:
        if journal.resumed:
            journal.close()
        else:
            journal.remove()
        raise
    try:
        done = execute(plan, files, progress)
        certified = None if certify is None else certify(plan, files, done.digests)
    except QconvError:
        files.discard()
        raise
    except BaseException:
        files.keep()
        raise
    files.seal(done.digests, certified)
    return Result(
        _paths(layout if certified is None else certified),
        done.digests,
        time.monotonic() - started,
        done.resumed,
        done.replaced,
    )


def _paths(layout: Layout, names: Sequence[str] = ()) -> tuple[Path, ...]:
    if layout.folder is not None:
        return (layout.folder,)
    found = tuple(part.path for part in layout.parts)
    return tuple(path.with_name(name) for path, name in zip(found, names, strict=True)) if names else found
