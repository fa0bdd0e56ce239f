"""The files of an output while they are being made: temporary names, room on disk, seal.

A part is written as ``NAME.qconv-part`` beside its final name, at its full size from the start, so that a full disk shows before any
work is done. The parts of an output that is a folder are written into ``NAME.qconv-part/``, which the seal renames as a whole. A header stays zero until everything else is there: no state of a crash leaves a readable wrong file. The seal
writes the headers and records, waits until the disk has everything, and renames, the first part last.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

from ..errors import DiskFullError, OutputError
from ..formats.base import Layout, Part
from ..formats.positional import PositionalFile
from ..formats.whole_file import refuse_occupied, refuse_source
from .flush import Flusher
from .folders import check_folder, put_in_place, sync_folder
from .journal import Journal

__all__ = ["OutputFiles", "check_output", "finish_renames", "journal_path", "temporary_names", "temporary_path"]

_TEMPORARY = ".qconv-part"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BINARY = getattr(os, "O_BINARY", 0)
_MAX_CALL = 1 << 30  # Linux moves at most 2^31 - 4096 bytes per call
_UNCACHED_WRITE = 0x80  # RWF_DONTCACHE, Linux 6.14: written to disk at once, then forgotten
_CAN_WRITE_UNCACHED = sys.platform == "linux"
_PAGE_BYTES = 1 << 16  # the largest page of any system that we know
_CACHED_BYTES = 1 << 30  # a larger output would push the source, and what else the machine works with, out of memory
_SEEK_LOCK = threading.Lock()


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``; any thread may call it; raises OSError as the system does."""
    done = 0
    while done < len(data):
        piece = data[done : done + _MAX_CALL]
        if hasattr(os, "pwrite"):
            done += os.pwrite(descriptor, piece, offset + done)
        else:  # Windows: a seek and a write that no other thread may come between
            with _SEEK_LOCK:
                os.lseek(descriptor, offset + done, os.SEEK_SET)
                done += os.write(descriptor, piece)


def temporary_path(final: Path) -> Path:
    """Return the name under which a file or a folder is written."""
    return final.with_name(final.name + _TEMPORARY)


def temporary_paths(layout: Layout) -> list[Path]:
    """Return where each part is written: beside its final name, or in a folder beside the final one."""
    if layout.folder is None:
        return [temporary_path(part.path) for part in layout.parts]
    return [temporary_path(layout.folder) / part.path.relative_to(layout.folder) for part in layout.parts]


def temporary_names(layout: Layout) -> list[str]:
    """Return the names that the job adds to the folder of its output while it works."""
    if layout.folder is not None:
        return [temporary_path(layout.folder).name]
    return [path.name for path in temporary_paths(layout)]


def journal_path(layout: Layout) -> Path:
    """Return the name of the job's journal."""
    return layout.path.with_name(layout.path.name + ".qconv-journal")


def check_output(layout: Layout, sources: Sequence[Path], force: bool) -> None:
    """Refuse an output that is the input, exists (without ``force``), or does not fit the disk.

    Raises OutputExistsError, DiskFullError, or OutputError where the folder is missing.
    """
    folder = layout.path.parent
    if not folder.is_dir():
        raise OutputError("no such folder", path=folder, remedy="Create it first, or choose another output.")
    if layout.folder is not None:
        check_folder(layout, layout.folder, sources, force)
    for part in layout.parts if layout.folder is None else ():
        refuse_source(part.path, sources)
        refuse_occupied(part.path, force)
    taken = sum(map(_allocated, temporary_paths(layout)))
    free = shutil.disk_usage(folder).free
    if layout.size > free + taken:
        raise DiskFullError(
            f"the output takes {layout.size:,} bytes, {free:,} are free",
            path=folder,
            remedy="Free some space or choose a folder on another disk.",
        )


def _remove(path: Path) -> None:
    """Delete a temporary file or folder, and nothing that is called otherwise."""
    if not path.name.endswith(_TEMPORARY):
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _allocated(path: Path) -> int:
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0
    return getattr(status, "st_blocks", 0) * 512


def _finish_part(part: Part, path: Path, descriptor: int, digests: Mapping[str, str]) -> None:
    """Write what is written last, and wait for the disk."""
    for offset, record in ((0, part.header(digests)), *part.records):
        write_at(descriptor, memoryview(record), offset)
    if part.finish is not None:
        with closing(PositionalFile(path)) as written:
            for offset, record in part.finish(written.read):
                write_at(descriptor, memoryview(record), offset)
    os.fsync(descriptor)


class OutputFiles:
    """The open temporary files of a layout. ``fresh`` says that nothing of an earlier run can be used."""

    def __init__(self, layout: Layout, journal: Journal) -> None:
        self.layout = layout
        self.journal = journal
        self._paths = temporary_paths(layout)
        sizes_fit = all(
            path.exists() and path.stat().st_size == part.size
            for path, part in zip(self._paths, layout.parts, strict=True)
        )
        self.fresh = not (journal.resumed and sizes_fit)
        if self.fresh:
            for name in journal.abandoned:
                _remove(layout.path.with_name(Path(name).name))
            if layout.folder is not None:
                _remove(temporary_path(layout.folder))
            journal.restart()
        self._descriptors: list[int] = []
        self._flusher = Flusher(self._descriptors)
        self._writing = threading.Lock()  # the system lets one writer into a file; another would spin for its turn
        self._uncached = layout.size > _CACHED_BYTES and _CAN_WRITE_UNCACHED
        try:
            for path, part in zip(self._paths, layout.parts, strict=True):
                if layout.folder is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                flags = os.O_RDWR | os.O_CREAT | _BINARY | (os.O_TRUNC if self.fresh else 0)
                self._descriptors.append(os.open(path, flags, 0o666))
                if self.fresh:
                    _reserve(self._descriptors[-1], part.size)
        except OSError as error:
            self.discard()
            raise output_error(error, path) from error
        self._where = {
            placement.tensor.name: (index, placement.offset)
            for index, part in enumerate(layout.parts)
            for placement in part.placements
        }

    def write(self, tensor: str, offset: int, data: memoryview) -> None:
        """Write bytes of ``tensor`` from ``offset`` bytes after its start; any thread may call it."""
        part, start = self._where[tensor]
        try:
            if self._uncached:
                self._write_uncached(self._descriptors[part], data, start + offset)
            else:
                write_at(self._descriptors[part], data, start + offset)
                self._flusher.add(self._descriptors[part], start + offset, len(data))
        except OSError as error:
            raise output_error(error, self.layout.parts[part].path) from error

    def copy(self, tensor: str, offset: int, source: PositionalFile, start: int, count: int) -> bool:
        """Have the system copy ``count`` bytes of ``source``, from ``start`` on, to ``offset`` bytes after the start of ``tensor``.

        Any thread may call it. Returns whether the system could; if not, what it may have copied is to be written over.
        """
        part, first = self._where[tensor]
        try:
            copied = source.copy_into(self._descriptors[part], first + offset, start, count)
        except OSError as error:
            raise output_error(error, self.layout.parts[part].path) from error
        if copied:
            self._flusher.add(self._descriptors[part], first + offset, count)
        return copied

    def _write_uncached(self, descriptor: int, data: memoryview, offset: int) -> None:
        """Write whole pages without leaving them in the page cache, where the system can.

        The pages at both ends are shared with a neighbour: forgotten, they would have to be read back for its share.
        """
        first, last = -offset % _PAGE_BYTES, len(data) - (offset + len(data)) % _PAGE_BYTES
        done = first
        try:
            while done < last:
                with self._writing:
                    done += os.pwritev(descriptor, [data[done:last][:_MAX_CALL]], offset + done, _UNCACHED_WRITE)
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
                raise
            self._uncached = False
        if done > first:
            write_at(descriptor, data[:first], offset)
            write_at(descriptor, data[done:], offset + done)
        else:
            write_at(descriptor, data, offset)

    def reader(self, tensor: str) -> tuple[PositionalFile, int]:
        """Return a file open for reading what was written of ``tensor``, and the tensor's offset in it."""
        part, start = self._where[tensor]
        return PositionalFile(self._paths[part]), start

    def seal(self, digests: Mapping[str, str], layout: Layout | None = None) -> None:
        """Write headers and records, make everything durable, and put each part under its final name.

        Headers, records and the names of the files are those of ``layout``, if given.
        """
        parts = (self.layout if layout is None else layout).parts
        try:
            self._flusher.close()
            for part, path, descriptor in zip(parts, self._paths, self._descriptors, strict=True):
                _finish_part(part, path, descriptor, digests)
        except OSError as error:
            self.discard()
            raise output_error(error, self.layout.path) from error
        self._close()
        try:
            self.journal.seal(() if layout is None else _names(layout))
            finish_renames(self.layout, self.journal.names)
        except BaseException:
            self.journal.close()  # a rerun finds the seal, and finishes the renames
            raise
        self.journal.remove()

    def keep(self) -> None:
        """Close everything and leave it for a later run."""
        self._close()
        self.journal.close()

    def discard(self) -> None:
        """Delete everything: the job failed in a way that a rerun would repeat."""
        self._close()
        for name in temporary_names(self.layout):
            _remove(self.layout.path.with_name(name))
        self.journal.remove()

    def _close(self) -> None:
        with suppress(OSError):  # nothing of it is to be sealed any more, or the seal has raised it
            self._flusher.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []


def finish_renames(layout: Layout, names: Sequence[str] = ()) -> None:
    """Give every sealed part its final name, the first one last, or the folder its own; what an earlier run renamed is left alone.

    ``names``, if any, are given to the parts instead of their own.
    """
    if layout.folder is None:
        for part, name in reversed(list(zip(layout.parts, names or _names(layout), strict=True))):
            temporary = temporary_path(part.path)
            if temporary.exists():
                temporary.replace(part.path.with_name(name))
    else:
        put_in_place(temporary_path(layout.folder), layout.folder)
    sync_folder(layout.path.parent)


def _names(layout: Layout) -> list[str]:
    return [part.path.name for part in layout.parts]


def output_error(error: OSError, path: Path) -> OutputError:
    """Translate an operating system's refusal into ours."""
    if error.errno in _FULL:
        return DiskFullError(
            f"no room for the output ({error.strerror})",
            path=path,
            remedy="Nothing was left behind; free some space, or choose a folder on another disk.",
        )
    return OutputError(
        f"cannot be written ({error.strerror})",
        path=path,
        remedy="Choose another output, or change the permissions there.",
    )


def _reserve(descriptor: int, size: int) -> None:
    """Give the file its full size with real blocks behind it, where the file system can."""
    os.ftruncate(descriptor, size)
    if hasattr(os, "posix_fallocate") and size:
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
                raise
