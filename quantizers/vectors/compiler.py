"""From the Python source of a kernel to machine code, by numba. Imported where something has to be compiled, and only there.

A kernel refers to its parts (:class:`.kernel.Part`) by name. For compiling, each function gets a copy of its global names in which parts are
numba's functions; the modules themselves stay as they are.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType, FunctionType
from typing import Any

import numba
import numpy as np
from numba import types

from .compiler_passes import Pipeline, machine_code_of
from .kernel import Part
from .machine_code import MachineCode, Types
from .simd import OPERATIONS
from .simd_operations import OPERATIONS as INSTRUCTIONS
from .simd_types import operation

__all__ = ["compile_kernel"]

# what LLVM may call: every process has it
_RUNTIME = {"memcpy", "memmove", "memset"}
_DECLARED = re.compile(r'^declare .*?@"?([\w.$]+)"?\(', re.MULTILINE)

_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract"},
    "_nrt": False,  # numba's heap is not there where machine code is loaded without numba
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "pipeline_class": Pipeline,
}


def compile_kernel(function: Callable[..., None], kinds: Types) -> MachineCode:
    """Return the machine code of ``function`` for arguments of the types ``kinds`` (:func:`.machine_code.types_of`).

    Raises numba's errors for what cannot be compiled, and TypeError for what returns something or calls what is not in every process.
    """
    _register_operations()
    dispatcher = numba.njit(**_OPTIONS)(_with_parts(function))
    arguments = tuple(_numba_type(kind) for kind in kinds)
    with _no_collecting():
        dispatcher.compile(arguments)
    compiled = dispatcher.overloads[arguments]
    if compiled.signature.return_type != types.none:
        raise TypeError(f"kernel {function.__qualname__} returns {compiled.signature.return_type}")
    assembly, machine_code = machine_code_of(compiled.library)
    foreign = {name for name in _DECLARED.findall(assembly) if not name.startswith("llvm.")}
    if foreign - _RUNTIME:
        raise TypeError(f"kernel {function.__qualname__} calls {', '.join(sorted(foreign - _RUNTIME))}")
    return MachineCode(compiled.fndesc.llvm_func_name, machine_code)


@contextmanager
def _no_collecting() -> Iterator[None]:
    """Keep Python from looking for garbage: numba makes millions of objects and little garbage, and a fifth of the time would go there."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@cache
def _register_operations() -> None:
    """Tell numba the named operations of :mod:`.simd`."""
    for name, function in OPERATIONS.items():
        operation(function, *INSTRUCTIONS[name])


@cache
def _dispatcher(part: Part) -> Any:
    return numba.njit(**_OPTIONS, **part.options)(_with_parts(part.function))


def _with_parts(function: Any) -> FunctionType:
    """Return a copy of a function that sees numba's functions where it saw parts."""
    names = dict(function.__globals__)
    for name in _names(function.__code__):
        if isinstance(names.get(name), Part):
            names[name] = _dispatcher(names[name])
    return FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)


def _names(code: CodeType) -> Iterator[str]:
    """Yield the global names that a function and those within it use."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _numba_type(kind: Any) -> Any:
    """Return numba's type for one of :func:`.machine_code.types_of`."""
    if isinstance(kind, tuple):
        maker, *members = kind
        inner = [_numba_type(member) for member in members]
        return types.NamedTuple(inner, maker) if hasattr(maker, "_fields") else types.Tuple(inner)
    element, dimensions = kind[0], int(kind[1:])
    scalar = numba.from_dtype(np.dtype(element))
    return types.Array(scalar, dimensions, "C") if dimensions else scalar
