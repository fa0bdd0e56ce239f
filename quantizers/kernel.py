"""Decorators of compiled functions, their cache, and the adapter from rows to the flat arrays that kernels take.

A kernel is compiled on its first call, once per user: the machine code is kept in ``platformdirs.user_cache_dir("qconv")``, in a folder whose
name holds a digest of the sources of this room and the versions of numba, llvmlite and Python. numba itself compares only the file
of the function that is called, and would go on running old code after a change in a helper of another file.
``NUMBA_CACHE_DIR``, where the user has set it, is used instead of the user's cache folder; where that cannot be written, a temporary folder
serves for the life of the process.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar, cast

import llvmlite
import numba
import numpy as np
import platformdirs

from .base import Codec, EncodeOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "BEST",
    "DEFAULT",
    "FAST",
    "GGML",
    "IMPORTANCE",
    "PLAIN",
    "block_codec",
    "cache_folder",
    "fingerprint",
    "inlined",
    "kernel",
    "merged",
    "scratch",
    "subroutine",
]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_DECORATING = threading.Lock()
_KEPT_DAYS = 60
FAST, DEFAULT, BEST = 0, 1, 2
"""Values of ``effort`` in :class:`EncodeKernel`."""

GGML, PLAIN, IMPORTANCE = 0, 1, 2
"""Values of ``objective`` in :class:`EncodeKernel`."""

_EFFORTS = {"fast": FAST, "default": DEFAULT, "best": BEST}
_OBJECTIVES = {"ggml": GGML, "plain": PLAIN, "importance": IMPORTANCE}


def fingerprint(room: Path) -> str:
    """Return a digest of the sources and data in a folder, and of the versions of what compiles them."""
    versions = f"{numba.__version__} {llvmlite.__version__} {platform.python_version()} {np.__version__}"
    digest = hashlib.sha256(versions.encode())
    for source in sorted([*room.glob("*.py"), *room.glob("*.json")]):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@cache
def cache_folder() -> Path:
    """Return the folder, made if need be, that holds the machine code of this version of the kernels."""
    name = f"kernels-{fingerprint(Path(__file__).parent)}"
    parent = Path(os.environ.get("NUMBA_CACHE_DIR") or platformdirs.user_cache_dir("qconv", appauthor=False))
    folder = parent / name
    try:
        if not folder.is_dir():
            _forget_old(parent)
            folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    # a folder of our own, never one of a name that others could guess and fill: what lies in the cache is executed
    return Path(tempfile.mkdtemp(prefix=name))


def _forget_old(parent: Path) -> None:
    """Delete what older versions of the kernels left, once nobody has used it for a while."""
    limit = time.time() - _KEPT_DAYS * 86400
    for folder in parent.glob("kernels-*"):
        if max((file.stat().st_mtime for file in folder.iterdir()), default=0.0) < limit:
            shutil.rmtree(folder, ignore_errors=True)


def _compile(function: Callable[Parameters, Result], **options: object) -> Callable[Parameters, Result]:
    decorate = numba.njit(nogil=True, error_model="numpy", fastmath={"contract"}, **options)
    return cast("Callable[Parameters, Result]", decorate(function))


def kernel(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Compile an entry point: called from Python, cached, releases the GIL, keeps no state.

    Pass arguments of the same types at every call (:func:`block_codec` does), because each combination is compiled anew.
    """
    # numba reads its cache folder from a global while it decorates; nobody else's kernels shall land in ours
    with _DECORATING:
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = str(cache_folder())
        try:
            return _compile(function, cache=True)
        finally:
            numba.config.CACHE_DIR = before


def inlined(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Compile a part of kernels, which is never called from Python; its code is merged into that of its callers."""
    return _compile(function, forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def merged(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Merge a large part of kernels into the source of its caller: what is called from one place compiles faster so than ``inlined``."""
    return _compile(function, inline="always", no_cpython_wrapper=True, no_cfunc_wrapper=True)


def subroutine(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Compile a large part of kernels that are called from several places, as a function of its own: it is compiled once per kernel."""
    return _compile(function, _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)


@inlined
def scratch(count: int) -> NDArray[np.float32]:
    """Return ``count`` uninitialised float32 that start at a cache line, so that no vector straddles two."""
    room = np.empty(count + 16, np.float32)
    first = (-(room.ctypes.data >> 2)) & 15
    return room[first : first + count]


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


def _source(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a flat read-only view: numba compiles anew for writable and read-only arrays, so all are made alike."""
    flat = array.reshape(-1)
    flat.flags.writeable = False
    return flat


def _normalized(importance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the vector scaled to mean 1, so that sums of squares stay inside float32; empty if it is all zeros."""
    mean = float(importance.mean(dtype=np.float64))
    return (importance / mean).astype(np.float32) if mean > 0 else np.empty(0, np.float32)


def block_codec(decode: DecodeKernel, encode: EncodeKernel | None) -> Codec:
    """Return the codec of two kernels on flat arrays.

    Inputs are passed read-only, ``out`` writable. An importance vector is scaled to mean 1, one of zeros only counts as none, and none
    becomes an empty array. Options become numbers.
    """
    nothing = np.empty(0, np.float32)

    def decode_rows(data: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
        flat = data.reshape(-1)
        flat.flags.writeable = False
        decode(flat, out.reshape(-1))

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
        run(_source(rows), rows.shape[1], _source(weights), effort, objective, out.reshape(-1))

    return Codec(decode_rows, encode_rows)
