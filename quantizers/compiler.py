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
from numba.core import typed_passes, untyped_passes
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager

from .kernel import Part
from .machine_code import MachineCode, Types
from .simd import OPERATIONS
from .simd_operations import OPERATIONS as INSTRUCTIONS
from .simd_types import operation

__all__ = ["compile_kernel"]

# what LLVM may call: every process has it
_RUNTIME = {"memcpy", "memmove", "memset"}
_DECLARED = re.compile(r'^declare .*?@"?([\w.$]+)"?\(', re.MULTILINE)


_PASSES = (
    untyped_passes.TranslateByteCode,
    untyped_passes.FixupArgs,
    untyped_passes.IRProcessing,
    untyped_passes.RewriteSemanticConstants,
    untyped_passes.InlineInlinables,
    untyped_passes.DeadBranchPrune,
    untyped_passes.ReconstructSSA,
    typed_passes.NopythonTypeInference,
    typed_passes.PreLowerStripPhis,
    typed_passes.InlineOverloads,
    typed_passes.IRLegalization,
    typed_passes.NativeLowering,
    typed_passes.NoPythonBackend,
)


class _Pipeline(CompilerBase):  # type: ignore[misc]  # numba ships no annotations
    """The passes of numba that kernels need: half of its usual ones look for what kernels do not do."""

    def define_pipelines(self) -> list[Any]:
        manager = PassManager("kernel")
        for step in _PASSES:
            manager.add_pass(step, step.__name__)
        manager.finalize()
        return [manager]


_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract"},
    "_nrt": False,  # numba's heap is not there where machine code is loaded without numba
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "pipeline_class": _Pipeline,
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
    foreign = {name for name in _DECLARED.findall(compiled.library.get_llvm_str()) if not name.startswith("llvm.")}
    if foreign - _RUNTIME:
        raise TypeError(f"kernel {function.__qualname__} calls {', '.join(sorted(foreign - _RUNTIME))}")
    _, _, (machine_code, _) = compiled.library.serialize_using_object_code()
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
