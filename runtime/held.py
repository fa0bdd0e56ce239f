"""A model whose decoded weights stay in memory as far as they fit a budget: for many short passes over the same weights."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..formats.base import Model, Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Held", "hold", "memory_budget"]

_UNKNOWN_MEMORY = 2 << 30  # bytes taken to be free where the system does not tell
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


class Held:
    """Decoded rows by tensor and range, as many as fit ``budget`` bytes of float32. What does not fit is decoded anew whenever it is asked for.

    First come, first held: a pass asks for everything in the same order every time, so that replacing older rows would help no pass.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._free = budget
        self._rows: dict[tuple[str, int, int], Floats] = {}
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes held by now."""
        return self.budget - self._free

    def rows(self, tensor: Tensor, start: int, stop: int) -> Floats:
        """Return rows ``start`` to ``stop`` of ``tensor``, float32 (rows, columns), read-only where they are held."""
        key = tensor.name, start, stop
        found = self._rows.get(key)
        if found is None:
            found = Tensor.rows(tensor, start, stop)
            with self._lock:
                if found.nbytes <= self._free and key not in self._rows:
                    found.flags.writeable = False
                    self._rows[key] = found
                    self._free -= found.nbytes
        return found


@dataclass(frozen=True)
class _HeldTensor(Tensor):
    """A tensor that keeps decoded rows."""

    held: Held = field(default_factory=lambda: Held(0))

    def rows(self, start: int, stop: int) -> Floats:
        """Return rows ``start`` to ``stop`` as float32 (stop - start, columns), not to be written to."""
        return self.held.rows(self, start, stop)


def hold(model: Model, budget: int) -> tuple[Model, Held]:
    """Return ``model`` with tensors that keep up to ``budget`` bytes of what they decode, and what keeps it.

    Nothing is decoded before a pass asks for it: of a mixture, experts that are never used are never held.
    """
    held = Held(budget)
    tensors = {
        name: _HeldTensor(it.name, it.shape, it.encoding, it.read, it.origin, it.part, held)
        for name, it in model.tensors.items()
    }
    return replace(model, tensors=tensors), held


def memory_budget() -> int:
    """Return half of the memory, in bytes, that this process could still take: of the machine, or of its control group if that has less.

    Where the system does not tell, half of its whole memory, and as a last resort 1 GiB.
    """
    return min([_machine_memory(), *_group_memory(_CGROUP)]) // 2


def _machine_memory() -> int:
    """Return the bytes that Linux calls available; elsewhere the size of the memory."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return _UNKNOWN_MEMORY


def _group_memory(folder: Path) -> list[int]:
    """Return what is left of a control group's limit, if it has one; cached pages of files are given back when needed."""
    try:
        limit = int((folder / "memory.max").read_text(encoding="ascii"))
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        return [max(0, limit - used + int(statistics["file"]))]
    except (OSError, ValueError, KeyError):
        return []
