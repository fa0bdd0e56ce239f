"""Machine code of kernels: kept in a folder, loaded without numba, called with NumPy arrays.

A kernel is compiled on its first call, once per user: its machine code is kept in ``platformdirs.user_cache_dir("qconv")``, in a folder whose
name holds a digest of the sources of this room and the versions of numba, llvmlite and Python. The name of a file holds a digest of the types
of the arguments and of the processor. Importing numba takes longer than all else that a short command does, and llvmlite loads the
code as well. ``NUMBA_CACHE_DIR``, where the user has set it, is used instead of the user's cache folder; where that cannot be written, a
temporary folder serves for the life of the process.

**The call.** numba's functions take, by the C convention of the host, where to put a result and an exception, of which kernels have neither, and
then the arguments: numbers as they are, the members of a tuple one by one, and of an array its owner twice (none), number of elements, bytes of an
element, address, shape and strides. They return a status.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numpy as np
import platformdirs

__all__ = ["Entry", "MachineCode", "Types", "cache_folder", "fetch", "fingerprint", "keep", "load", "types_of"]

_KEPT_DAYS = 60
_DONE = (0, -2)  # numba's status of a function that returned something, or None

Types = tuple[Any, ...]
"""Types of arguments: ``"f1"`` is an array of one dimension of what NumPy calls ``f``, ``"l0"`` a number; of a tuple, its class and then its members'."""

Entry = Callable[[Iterable[object]], None]
"""Calls loaded machine code with arguments of the types that it was compiled for. Releases the GIL."""


@dataclass(frozen=True, slots=True)
class MachineCode:
    """A compiled kernel: an object file in the host's format, and the name of the function in it."""

    symbol: str
    data: bytes


# --- arguments ------------------------------------------------------------------------------------------------------------------


def types_of(arguments: Iterable[object]) -> Types:
    """Return the types of arguments; raises TypeError for what kernels do not take, and ValueError for arrays that are not C-contiguous."""
    return tuple(map(_type_of, arguments))


def _type_of(value: object) -> Any:
    if isinstance(value, np.ndarray):
        if not value.flags.c_contiguous:
            raise ValueError("kernels take arrays that are C-contiguous")
        return f"{value.dtype.char}{value.ndim}"
    if isinstance(value, bool):  # before int, which it is too
        return "?0"
    if isinstance(value, int):
        return "q0"
    if isinstance(value, np.generic):
        return f"{value.dtype.char}0"
    if isinstance(value, float):
        return "d0"
    if isinstance(value, tuple):
        return (type(value), *map(_type_of, value))
    raise TypeError(f"kernels do not take {type(value).__name__}")


def _c_types(kind: Any) -> Iterator[Any]:
    if isinstance(kind, tuple):
        for member in kind[1:]:
            yield from _c_types(member)
    elif kind[1:] == "0":
        yield np.ctypeslib.as_ctypes_type(np.dtype(kind[0]))
    else:
        yield from (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_ssize_t, ctypes.c_void_p)
        yield from (ctypes.c_ssize_t,) * (2 * int(kind[1:]))


def _c_values(arguments: Iterable[object]) -> Iterator[object]:
    for value in arguments:
        if isinstance(value, np.ndarray):
            yield from (None, None, value.size, value.itemsize, value.ctypes.data, *value.shape, *value.strides)
        elif isinstance(value, tuple):
            yield from _c_values(value)
        else:
            yield value.item() if isinstance(value, np.generic) else value


# --- loading --------------------------------------------------------------------------------------------------------------------


def load(code: MachineCode, kinds: Types) -> Entry:
    """Return what calls ``code``. It stays loaded for the life of the process."""
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target().create_target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code.data))
    engine.finalize_object()
    address = engine.get_function_address(code.symbol)
    nothing = ctypes.create_string_buffer(16)  # where a result and an exception would go
    flat = [argument for kind in kinds for argument in _c_types(kind)]
    function = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *flat)(address)
    result, exception = ctypes.addressof(nothing), ctypes.addressof(nothing) + 8

    def entry(arguments: Iterable[object]) -> None:
        status = function(result, exception, *_c_values(arguments))
        if status not in _DONE:
            raise SystemError(f"{code.symbol} failed with status {status}")

    entry.owners = engine, nothing  # type: ignore[attr-defined]  # they go when the function goes
    return entry


@cache
def _target() -> llvm.Target:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple()


# --- the folder -----------------------------------------------------------------------------------------------------------------


def fingerprint(room: Path) -> str:
    """Return a digest of the sources and data below a folder, and of the versions of what compiles them: each numba demands its own llvmlite."""
    versions = f"{llvmlite.__version__} {platform.python_version()} {np.__version__}"
    digest = hashlib.sha256(versions.encode())
    for source in sorted([*room.rglob("*.py"), *room.rglob("*.json")]):
        digest.update(source.relative_to(room).as_posix().encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@cache
def cache_folder() -> Path:
    """Return the folder, made if need be, that holds the machine code of this version of the kernels."""
    name = f"kernels-{fingerprint(Path(__file__).parents[1])}"
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


@cache
def _host() -> str:
    """Return what machine code depends on: the processor, or the one that the user wants code for."""
    chosen = [os.environ.get(name, "") for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_OPT")]
    features = llvm.get_host_cpu_features().flatten()
    return " ".join([llvm.get_default_triple(), llvm.get_host_cpu_name(), features, *chosen])


@cache
def _source(file: str) -> str:
    """Return a digest of a source file: not all kernels are of this room."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _file(function: Callable[..., None], kinds: Types) -> Path:
    digest = hashlib.sha256(f"{_host()}\n{kinds}\n{_source(function.__code__.co_filename)}".encode()).hexdigest()[:16]
    return cache_folder() / f"{function.__module__}.{function.__qualname__}-{digest}.code"


def keep(function: Callable[..., None], kinds: Types, code: MachineCode) -> None:
    """Write machine code to the folder, whole or not at all; a full disk keeps it from there and does no harm."""
    file = _file(function, kinds)
    content = code.symbol.encode() + b"\0" + code.data
    try:
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=file.stem, delete=False) as part:
            part.write(hashlib.sha256(content).digest() + content)
        Path(part.name).replace(file)
    except OSError:
        pass


def fetch(function: Callable[..., None], kinds: Types) -> MachineCode | None:
    """Return what :func:`keep` wrote, or None where there is nothing or where it is damaged."""
    try:
        content = _file(function, kinds).read_bytes()
    except OSError:
        return None
    digest, content = content[:32], content[32:]
    if hashlib.sha256(content).digest() != digest:
        return None
    symbol, _, data = content.partition(b"\0")
    return MachineCode(symbol.decode(), data)
