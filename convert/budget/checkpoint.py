"""Sensitivities on disk as they are measured, so that a run that is killed after hours goes on where it was.

They lie beside the output as ``OUT.qconv-costs``: a line of JSON that says what was measured on what, then one per tensor. A file of another job, or what
follows a damaged line, is not used.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ... import __version__
from ...errors import OutputError
from ...runtime.measuring.identity import ModelIdentity
from ...runtime.measuring.windows import Windows, token_digest
from .rounding import Rounding

__all__ = ["Checkpoint", "checkpoint_path", "forget", "job_digest"]


def checkpoint_path(output: Path) -> Path:
    """Return where the sensitivities for an output lie."""
    return output.with_name(output.name + ".qconv-costs")


def forget(output: Path) -> None:
    """Remove the sensitivities for an output, if there are any."""
    checkpoint_path(output).unlink(missing_ok=True)


def job_digest(model: ModelIdentity, windows: Windows, rounding: Rounding) -> str:
    """Return a digest of all that sensitivities depend on."""
    entries = {} if rounding.importance is None else rounding.importance.entries
    importance = hashlib.sha256()
    for name in sorted(entries):
        importance.update(name.encode() + entries[name].sums.tobytes() + entries[name].counts.tobytes())
    factors = rounding.factors
    moments = None if factors is None else [factors.facts.job, factors.damping, factors.activation_order]
    text = [token_digest(windows), windows.context, windows.bos, windows.first_scored]
    parts = [__version__, model.digest, text, repr(rounding.options), importance.hexdigest(), moments]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Checkpoint:
    """The sensitivities of one job that are known so far.

    Args:
        output: what the conversion will write.
        job: of :func:`job_digest`.

    Raises OutputError where the folder cannot be written to.

    Attributes:
        known: sensitivity by tensor and the encoding that it was measured with.
    """

    def __init__(self, output: Path, job: str) -> None:
        self._path = checkpoint_path(output)
        self._head = {"job": job}
        self.known: dict[tuple[str, str], float] = {}
        self._read()
        lines = [self._head, *(_line(*key, value) for key, value in self.known.items())]
        try:
            self._path.write_text("".join(json.dumps(it) + "\n" for it in lines))
        except OSError as error:
            raise OutputError(f"cannot be written ({error.strerror})", path=self._path) from error

    def _read(self) -> None:
        try:
            first, *lines = self._path.read_text().splitlines()
            if json.loads(first) != self._head:
                return
            for line in lines:
                found = json.loads(line)
                self.known[found["tensor"], found["encoding"]] = float(found["sensitivity"])
        except (OSError, ValueError, KeyError, TypeError):
            return

    def add(self, tensor: str, encoding: str, sensitivity: float) -> None:
        """Keep one more."""
        self.known[tensor, encoding] = sensitivity
        with self._path.open("a") as file:
            file.write(json.dumps(_line(tensor, encoding, sensitivity)) + "\n")


def _line(tensor: str, encoding: str, sensitivity: float) -> dict[str, str | float]:
    return {"tensor": tensor, "encoding": encoding, "sensitivity": sensitivity}
