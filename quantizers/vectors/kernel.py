"""Decorators of kernels and of their parts, and the adapter from rows to the flat arrays that kernels take.

Nothing is compiled where a family module is imported, and numba is imported only where machine code is not in the user's cache
(:mod:`.machine_code`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar, cast

import numpy as np

from ..base import Codec, EncodeOptions
from .machine_code import Entry, Types, fetch, keep, load, types_of
from .simd import scratch, scratch_int

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "BEST",
    "DEFAULT",
    "FAST",
    "GGML",
    "IMPORTANCE",
    "PLAIN",
    "Kernel",
    "Part",
    "block_codec",
    "inlined",
    "kernel",
    "merged",
    "scratch",
    "scratch_int",
    "subroutine",
]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_LOADING = threading.Lock()
FAST, DEFAULT, BEST = 0, 1, 2
"""Values of ``effort`` in :class:`EncodeKernel`."""

GGML, PLAIN, IMPORTANCE = 0, 1, 2
"""Values of ``objective`` in :class:`EncodeKernel`."""

_EFFORTS = {"fast": FAST, "default": DEFAULT, "best": BEST}
_OBJECTIVES = {"ggml": GGML, "plain": PLAIN, "importance": IMPORTANCE}


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """A function that kernels are made of; it is never called from Python.

    Attributes:
        function: the source.
        options: how numba compiles it.
    """

    function: Callable[..., object]
    options: dict[str, object]


class Kernel:
    """An entry point: called from Python, compiled at its first call for the types of its arguments, releases the GIL, keeps no state.

    Arguments are C-contiguous arrays, numbers, and tuples of these; it returns None.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self._entries: dict[Types, Entry] = {}

    def __call__(self, *arguments: object) -> None:
        """Run the machine code, which is loaded or made where it is not there yet."""
        kinds = types_of(arguments)
        entry = self._entries.get(kinds)
        if entry is None:
            with _LOADING:  # by one thread; the others find it
                entry = self._entries.get(kinds) or self._load(kinds)
        entry(arguments)

    def _load(self, kinds: Types) -> Entry:
        code = fetch(self.function, kinds)
        if code is None:
            from .compiler import compile_kernel  # brings numba, which takes longer to import than many a command

            code = compile_kernel(self.function, kinds)
            keep(self.function, kinds, code)
        entry = self._entries[kinds] = load(code, kinds)
        return entry


def kernel(function: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Make a function an entry point, :class:`Kernel`. Each combination of types of arguments is compiled anew."""
    return cast("Callable[Parameters, None]", Kernel(function))


def _part(function: Callable[Parameters, Result], **options: object) -> Callable[Parameters, Result]:
    return cast("Callable[Parameters, Result]", Part(function, options))


def inlined(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Make a function a part of kernels whose code is merged into that of its callers."""
    return _part(function, forceinline=True)


def merged(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Merge a large part of kernels into the source of its caller: what is called from one place compiles faster so than ``inlined``."""
    return _part(function, inline="always")


def subroutine(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Make a large part of kernels that are called from several places a function of its own: it is compiled once per kernel."""
    return _part(function)


class DecodeKernel(Protocol):
    """``data``: uint8, any number of whole blocks; ``out``: float32, their weights."""

    def __call__(self, data: NDArray[np.uint8], out: NDArray[np.float32]) -> None: ...


class EncodeKernel(Protocol):
    """``rows``: float32, rows of ``columns`` weights; ``importance``: float32 (columns,), empty where there is none.

    ``effort`` is 0, 1 or 2 for fast, default, best; ``objective`` 0, 1 or 2 for ggml, plain, importance; ``out``: uint8.
    """

    def __call__(
        self,
        rows: NDArray[np.float32],
        columns: int,
        importance: NDArray[np.float32],
        effort: int,
        objective: int,
        out: NDArray[np.uint8],
    ) -> None: ...


def _normalized(importance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the vector scaled to mean 1, so that sums of squares stay inside float32; empty if it is all zeros."""
    mean = float(importance.mean(dtype=np.float64))
    return (importance / mean).astype(np.float32) if mean > 0 else np.empty(0, np.float32)


def block_codec(decode: DecodeKernel, encode: EncodeKernel | None) -> Codec:
    """Return the codec of two kernels on flat arrays.

    An importance vector is scaled to mean 1, one of zeros only counts as none, and none becomes an empty array. Options become numbers.
    """
    nothing = np.empty(0, np.float32)

    def decode_rows(data: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
        decode(data.reshape(-1), out.reshape(-1))

    if encode is None:
        return Codec(decode_rows, None)
    run = encode

    def encode_rows(
        rows: NDArray[np.float32],
        importance: NDArray[np.float32] | None,
        options: EncodeOptions,
        out: NDArray[np.uint8],
    ) -> None:
        weights = nothing if importance is None else _normalized(importance)
        objective, effort = _OBJECTIVES[options.objective], _EFFORTS[options.effort]
        run(rows.reshape(-1), rows.shape[1], weights, effort, objective, out.reshape(-1))

    return Codec(decode_rows, encode_rows)
