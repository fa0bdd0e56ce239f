"""The journal: what is done of an output, so that a killed job continues where it stopped.

One JSON object per line. The first states the fingerprint of the job (sources, plan, options, version of qconv) and the files that
it writes; then one line per finished tensor with the SHA-256 of its bytes; at last ``{"sealed": true}``, with the names that the parts
are to get, when every part is on disk and only the renames are left. A line cut short by a crash is ignored. The file is locked while a job runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from .locking import open_locked

__all__ = ["Journal"]


class Journal:
    """An open, locked journal.

    Attributes:
        digests: SHA-256 by tensor name, of the tensors that an earlier run finished.
        sealed: whether an earlier run had finished everything but the renames.
        names: where it had, the names of the parts; empty for those of the layout.
        resumed: whether the journal of an earlier run with the same fingerprint was found.
        abandoned: files that another job of an earlier run was writing, which nobody will continue.
    """

    def __init__(self, path: Path, fingerprint: str, files: Sequence[str]) -> None:
        self.path = path
        self.abandoned: tuple[str, ...] = ()
        self._start: dict[str, object] = {"fingerprint": fingerprint, "files": list(files)}
        self._file = open_locked(path)
        self.digests: dict[str, str] = {}
        self.sealed = False
        self.names: tuple[str, ...] = ()
        self.resumed = False
        lines = _parse(self._file.read())
        if lines and lines[0].get("fingerprint") == fingerprint:
            self.resumed = True
            for line in lines[1:]:
                if "tensor" in line:
                    self.digests[str(line["tensor"])] = str(line["sha256"])
                if line.get("sealed"):
                    names = line.get("names")
                    self.sealed = True
                    self.names = tuple(str(name) for name in names) if isinstance(names, list) else ()
        else:
            before = lines[0].get("files") if lines else None
            self.abandoned = tuple(str(name) for name in before) if isinstance(before, list) else ()
            self.restart()

    def restart(self) -> None:
        """Forget what an earlier run did."""
        self.digests, self.sealed, self.names, self.resumed = {}, False, (), False
        self._file.seek(0)
        self._file.truncate()
        self._append(self._start)

    def finish(self, tensor: str, digest: str) -> None:
        """Record that every byte of ``tensor`` was handed to the system."""
        self._append({"tensor": tensor, "sha256": digest})

    def seal(self, names: Sequence[str] = ()) -> None:
        """Record, durably, that every part is whole and on disk under its temporary name, and which ``names`` they are to get."""
        self.names = tuple(names)
        self._append({"sealed": True, "names": list(names)})
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Release the lock and keep the file for a later run."""
        self._file.close()

    def remove(self) -> None:
        """Delete the file: the job is done, or cannot be continued."""
        self.path.unlink(missing_ok=True)
        self._file.close()

    def _append(self, line: dict[str, object]) -> None:
        self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def _parse(text: str) -> list[dict[str, object]]:
    lines: list[dict[str, object]] = []
    for line in text.split("\n")[:-1]:  # what follows the last newline was cut short
        try:
            value = json.loads(line)
        except ValueError:
            break
        if not isinstance(value, dict):
            break
        lines.append(value)
    return lines
