"""Residual streams on disk: what all tokens of a text have become between two stages of a pass.

A file per stage, float32, written beside the output under a name that says it is temporary. It takes its name when it is whole and on disk, so that
a file that exists can be read; the one before is deleted once nobody needs it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..output import output_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Streams"]


class Streams:
    """The streams of one job.

    Args:
        output: what the job makes; the files lie beside it.
        tokens: how many in all.
        hidden: width of the stream.
    """

    def __init__(self, output: Path, tokens: int, hidden: int) -> None:
        self._output = output
        self._tokens = tokens
        self._hidden = hidden

    @property
    def nbytes(self) -> int:
        """Bytes of one file; two exist at a time."""
        return 4 * self._tokens * self._hidden

    def path(self, stage: int) -> Path:
        """Return the name of the streams that ``stage`` begins with."""
        return self._output.with_name(f"{self._output.name}.streams-{stage}.qconv-part")

    def has(self, stage: int) -> bool:
        """Whether the streams that ``stage`` begins with are there, whole."""
        path = self.path(stage)
        return path.is_file() and path.stat().st_size == self.nbytes

    def read(self, stage: int, start: int, stop: int) -> Floats:
        """Return the streams of tokens ``start`` to ``stop``, float32 (stop - start, hidden)."""
        rows = np.fromfile(
            self.path(stage), "<f4", (stop - start) * self._hidden, offset=4 * start * self._hidden
        ).astype(np.float32, copy=False)
        return rows.reshape(stop - start, self._hidden)

    @contextmanager
    def write(self, stage: int) -> Iterator[Callable[[Floats], None]]:
        """Yield a function that takes the streams that ``stage`` will begin with, in order; they are there when the block ends.

        Raises DiskFullError or OutputError.
        """
        path = self.path(stage)
        temporary = path.with_name(path.name + ".new")
        try:
            with temporary.open("wb") as file:

                def take(rows: Floats) -> None:
                    file.write(np.ascontiguousarray(rows, "<f4").data)

                yield take
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise output_error(error, path) from error
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def remove(self, keep: int | None = None) -> None:
        """Delete all streams but those that stage ``keep`` begins with."""
        kept = None if keep is None else self.path(keep)
        for path in self._output.parent.glob(f"{_escaped(self._output.name)}.streams-*.qconv-part*"):
            if path != kept:
                path.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    """Return a name as a pattern that matches it alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
