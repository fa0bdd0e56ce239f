"""The steps of numba's compiler that kernels take, two of them our own.

*Merging*: the parts that are merged into their callers (:func:`.kernel.merged`) are read anew for each call. numba copies what it inlines, twice,
lest somebody else uses it; here nobody does.

*One module*: numba optimizes each function and makes machine code of it, and then once more inside each of its callers. No part is ever called
from Python, so LLVM begins where the kernel has been put together, and makes machine code of that alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numba.core import ir, typed_passes, untyped_passes
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import FunctionPass, LoweringPass, PassManager, register_pass
from numba.core.inline_closurecall import InlineWorker
from numba.core.ir_utils import get_definition, guard, simplify_CFG

__all__ = ["Pipeline", "machine_code_of"]


# --- merging --------------------------------------------------------------------------------------------------------------------


class _FreshBlock(ir.Block):  # type: ignore[misc]  # numba ships no annotations
    """A block that is used once, so that a copy of it can be the block itself."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _FreshBlock:
        return self


class _Inliner(InlineWorker):  # type: ignore[misc]
    """numba's inliner, for parts that may have parts of their own."""

    def __init__(self, state: Any) -> None:
        super().__init__(state.typingctx, state.targetctx, state.locals, state.pipeline, state.flags, validator=None)
        self._compiler_pipeline = lambda state: _manager("part", _READING)

    def run_untyped_passes(self, func: Callable[..., object], enable_ssa: bool = False) -> Any:
        """Return numba's representation of a function, in blocks that may be used up."""
        function = super().run_untyped_passes(func, enable_ssa)
        for label, block in function.blocks.items():
            fresh = function.blocks[label] = _FreshBlock(block.scope, block.loc)
            fresh.body = block.body
        return function


@register_pass(mutates_CFG=True, analysis_only=False)
class _MergeParts(FunctionPass):  # type: ignore[misc]
    """Replace calls of parts that are merged by their blocks."""

    _name = "merge_parts"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        inliner = _Inliner(state)
        function = state.func_ir
        pending = list(function.blocks.values())
        merged = False
        while pending:
            block = pending.pop()
            for place, statement in enumerate(block.body):
                part = _merged_part(function, statement)
                if part is not None:
                    *_, added = inliner.inline_function(function, block, place, part)
                    pending.append(
                        added[0][1]
                    )  # what followed the call; the part's own calls were merged when it was read
                    merged = True
                    break
        if merged:
            function.blocks = simplify_CFG(function.blocks)
        return merged


def _merged_part(function: Any, statement: Any) -> Callable[..., object] | None:
    """Return the function that a statement calls if it is a part that is to be merged."""
    call = getattr(statement, "value", None)
    if not isinstance(call, ir.Expr) or call.op != "call":
        return None
    dispatcher: Any = getattr(guard(get_definition, function, call.func), "value", None)
    options = getattr(dispatcher, "targetoptions", {})
    return dispatcher.py_func if options.get("inline") == "always" else None


# --- one module -----------------------------------------------------------------------------------------------------------------


class _NoEnvironment:
    """What numba tells of the objects that a function refers to: kernels refer to none."""

    def set_env(self, env_name: str, env: object) -> None:
        """Do nothing."""


class _Module(JITCodeLibrary):  # type: ignore[misc]
    """The LLVM module of a kernel or part, which nobody calls in this process: it is linked, as it is, into those of its callers."""

    codegen = _NoEnvironment()

    def get_pointer_to_function(self, name: str) -> int:
        return 0

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True


def machine_code_of(module: Any) -> tuple[str, bytes]:
    """Optimize the module of a kernel; return its LLVM assembly and its machine code, an object file."""
    with global_compiler_lock:
        module.finalize()
        JITCodeLibrary._optimize_functions(module, module._final_module)
        JITCodeLibrary._optimize_final_module(module)
        return str(module._final_module), module._codegen._tm.emit_object(module._final_module)


@register_pass(mutates_CFG=False, analysis_only=True)
class _OneModule(LoweringPass):  # type: ignore[misc]
    """Have the function lowered into a module of this file."""

    _name = "one_module"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        state.library = _Module(state.targetctx.codegen(), state.func_id.func_qualname)
        return False


# --- the pipeline ---------------------------------------------------------------------------------------------------------------

_READING: tuple[Any, ...] = (
    untyped_passes.TranslateByteCode,
    untyped_passes.FixupArgs,
    untyped_passes.IRProcessing,
    untyped_passes.RewriteSemanticConstants,
    _MergeParts,
    untyped_passes.DeadBranchPrune,
)

_TYPING_AND_LOWERING: tuple[Any, ...] = (
    untyped_passes.ReconstructSSA,
    typed_passes.NopythonTypeInference,
    typed_passes.PreLowerStripPhis,
    typed_passes.InlineOverloads,
    typed_passes.IRLegalization,
    _OneModule,
    typed_passes.NativeLowering,
    typed_passes.NoPythonBackend,
)


class Pipeline(CompilerBase):  # type: ignore[misc]
    """The passes that kernels need: half of numba's usual ones look for what kernels do not do."""

    def define_pipelines(self) -> list[Any]:
        """Return the only pipeline."""
        return [_manager("kernel", (*_READING, *_TYPING_AND_LOWERING))]


def _manager(name: str, passes: Sequence[Any]) -> Any:
    manager = PassManager(name)
    for step in passes:
        manager.add_pass(step, step.__name__)
    manager.finalize()
    return manager
