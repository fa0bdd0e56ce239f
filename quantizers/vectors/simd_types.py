"""Lowering of the explicit vectors of :mod:`.simd` to LLVM; kernel authors read that module, not this one.

Three numba types stand for sixteen lanes: ``FLOATS`` is ``<16 x float>``, ``INTS`` ``<16 x i32>``, ``MASK`` ``<16 x i1>``. LLVM splits
them into whatever registers the host has. Operators are given to numba here; named operations are registered by
:func:`operation`, which ties a Python function to a typing rule and to the instructions it stands for.

Of the relaxations of floating-point arithmetic only *contraction* is allowed (a product may be fused into the sum that it feeds):
it is what makes a multiply-add one instruction. NaN, infinities and signed zeros keep their IEEE meaning.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding
import numba
from llvmlite import ir
from numba import types
from numba.core.typing.templates import AbstractTemplate, infer, infer_global
from numba.extending import lower_builtin, models, register_model

from .simd import LANES

__all__ = [
    "FLOATS",
    "INTS",
    "LLVM",
    "MASK",
    "Vector",
    "array_pointer",
    "call_llvm",
    "lanes_constant",
    "operation",
    "splat_value",
]

CONTRACT = ("contract",)

F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
I1, I8, I16, I32, I64 = (ir.IntType(width) for width in (1, 8, 16, 32, 64))


class Vector(types.Type):  # type: ignore[misc]  # numba ships no annotations
    """Sixteen lanes of one kind: ``float``, ``int`` or ``mask``."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        super().__init__(name=f"simd.{kind}x{LANES}")


FLOATS, INTS, MASK = Vector("float"), Vector("int"), Vector("mask")
LLVM = {"float": ir.VectorType(F32, LANES), "int": ir.VectorType(I32, LANES), "mask": ir.VectorType(I1, LANES)}
SCALAR = {"float": types.float32, "int": types.int32}


@register_model(Vector)
class VectorModel(models.PrimitiveModel):  # type: ignore[misc]  # numba ships no annotations
    """A vector is one LLVM value, in registers wherever the compiler can keep it there."""

    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, LLVM[numba_type.kind])


def lanes_constant(values: Sequence[int], element: Any = I32) -> Any:
    """Return the constant vector that holds ``values``."""
    return ir.Constant(ir.VectorType(element, len(values)), list(values))


def splat_value(builder: Any, scalar: Any) -> Any:
    """Return the vector whose lanes all are ``scalar``."""
    vector = ir.VectorType(scalar.type, LANES)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, I32(0))
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), lanes_constant([0] * LANES))


def call_llvm(builder: Any, name: str, result: Any, args: Sequence[Any]) -> Any:
    """Call the LLVM intrinsic or C function ``name``, declaring it in the module if need be."""
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(result, [arg.type for arg in args]), name)
    return builder.call(function, args)


def array_pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, target: Any) -> Any:
    """Return the address of ``array[index]`` as a pointer to the LLVM type ``target``."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), target.as_pointer())


def _teach_typing(function: Callable[..., object], typer: Callable[..., Any]) -> None:
    """Teach numba the typing rule of a function. What is meant for the target itself is tried before the many rules that operators have."""
    members = {
        "key": function,
        "generic": lambda self, arguments, keywords: typer(*arguments),
        "metadata": {"target": "cpu"},
    }
    template = infer(type(f"{function.__name__}_typing", (AbstractTemplate,), members))
    infer_global(function, types.Function(template))


def operation(function: Callable[..., object], typer: Callable[..., Any], emit: Callable[..., Any]) -> None:
    """Teach numba a named operation.

    Args:
        function: what kernels call; its body is never compiled.
        typer: numba types of the arguments to a numba signature, or None where they do not fit.
        emit: (context, builder, signature, LLVM arguments) to the LLVM result.
    """
    arity = len(inspect.signature(function).parameters)
    _teach_typing(function, typer)
    lower_builtin(function, *[types.Any] * arity)(emit)


def binary_typer(kinds: Sequence[str], result: Vector | None = None) -> Callable[[Any, Any], Any]:
    """Return the typing rule of an operator on two vectors of one of ``kinds``; either side may be a scalar."""

    def typer(left: Any, right: Any) -> Any:
        vector = left if isinstance(left, Vector) else right
        if not isinstance(vector, Vector) or vector.kind not in kinds:
            return None
        sides = []
        for side in (left, right):
            if side == vector:
                sides.append(vector)
            elif isinstance(side, types.Number) and vector.kind in SCALAR:
                sides.append(SCALAR[vector.kind])
            else:
                return None
        return (result or vector)(*sides)

    return typer


def broadcast(builder: Any, signature: Any, args: Sequence[Any]) -> tuple[str, list[Any]]:
    """Return the kind of the vectors among ``args``, and ``args`` with scalars made vectors."""
    kind = next(t.kind for t in signature.args if isinstance(t, Vector))
    return kind, [
        a if isinstance(t, Vector) else splat_value(builder, a) for t, a in zip(signature.args, args, strict=True)
    ]


def by_kind(**emitters: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
    """Return an emitter for two vectors (scalars broadcast) that chooses the instruction by their kind."""

    def emit(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        kind, (left, right) = broadcast(builder, signature, args)
        return emitters[kind](builder, left, right)

    return emit


def _compare(predicate: str) -> Callable[..., Any]:
    return by_kind(
        float=lambda b, x, y: (b.fcmp_unordered if predicate == "!=" else b.fcmp_ordered)(predicate, x, y),
        int=lambda b, x, y: b.icmp_signed(predicate, x, y),
    )


_NUMBERS, _BITS = ("float", "int"), ("int", "mask")
_BITWISE: dict[Any, Callable[[Any, Any, Any], Any]] = {
    operator.and_: lambda b, x, y: b.and_(x, y),
    operator.or_: lambda b, x, y: b.or_(x, y),
    operator.xor: lambda b, x, y: b.xor(x, y),
}
_OPERATORS: list[tuple[Sequence[Any], Callable[..., Any], Callable[..., Any]]] = [
    (
        (operator.add, operator.iadd),
        binary_typer(_NUMBERS),
        by_kind(float=lambda b, x, y: b.fadd(x, y, flags=CONTRACT), int=lambda b, x, y: b.add(x, y)),
    ),
    (
        (operator.sub, operator.isub),
        binary_typer(_NUMBERS),
        by_kind(float=lambda b, x, y: b.fsub(x, y, flags=CONTRACT), int=lambda b, x, y: b.sub(x, y)),
    ),
    (
        (operator.mul, operator.imul),
        binary_typer(_NUMBERS),
        by_kind(float=lambda b, x, y: b.fmul(x, y, flags=CONTRACT), int=lambda b, x, y: b.mul(x, y)),
    ),
    ((operator.truediv, operator.itruediv), binary_typer(["float"]), by_kind(float=lambda b, x, y: b.fdiv(x, y))),
    ((operator.lshift, operator.ilshift), binary_typer(["int"]), by_kind(int=lambda b, x, y: b.shl(x, y))),
    ((operator.rshift, operator.irshift), binary_typer(["int"]), by_kind(int=lambda b, x, y: b.ashr(x, y))),
    *(
        ((plain, inplace), binary_typer(_BITS), by_kind(int=_BITWISE[plain], mask=_BITWISE[plain]))
        for plain, inplace in (
            (operator.and_, operator.iand),
            (operator.or_, operator.ior),
            (operator.xor, operator.ixor),
        )
    ),
    *(
        ((function,), binary_typer(_NUMBERS, MASK), _compare(predicate))
        for function, predicate in (
            (operator.lt, "<"),
            (operator.le, "<="),
            (operator.gt, ">"),
            (operator.ge, ">="),
            (operator.eq, "=="),
            (operator.ne, "!="),
        )
    ),
]


def _negative(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
    return builder.fneg(args[0]) if signature.args[0].kind == "float" else builder.neg(args[0])


def _inverted(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
    return builder.not_(args[0])


def _register_operators() -> None:
    """Give numba the operators; once, when this module is imported."""
    for functions, typer, emit in _OPERATORS:
        for function in functions:
            _teach_typing(function, typer)
            for sides in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
                lower_builtin(function, *sides)(emit)
    for function, kinds, emit in ((operator.neg, _NUMBERS, _negative), (operator.invert, _BITS, _inverted)):

        def typer(value: Any, kinds: Sequence[str] = kinds) -> Any:
            return value(value) if isinstance(value, Vector) and value.kind in kinds else None

        _teach_typing(function, typer)
        lower_builtin(function, Vector)(emit)


_register_operators()


def host_converts_halves() -> bool:
    """Whether the CPU that numba compiles for has instructions for float16.

    Without them LLVM calls a runtime routine that is not there on x86, and the process dies; so they are spelled out then.
    """
    chosen = bool(numba.config.CPU_NAME or numba.config.CPU_FEATURES)
    return _has("f16c") or (not chosen and llvmlite.binding.get_default_triple().startswith(("aarch64", "arm64")))


def host_permutes() -> str | None:
    """Return ``"avx512f"`` or ``"avx2"`` where the CPU that numba compiles for permutes the lanes of registers, else None."""
    return next((feature for feature in ("avx512f", "avx2") if _has(feature)), None)


def _has(feature: str) -> bool:
    if numba.config.CPU_NAME or numba.config.CPU_FEATURES:
        return f"+{feature}" in (numba.config.CPU_FEATURES or "")
    return bool(llvmlite.binding.get_host_cpu_features().get(feature, False))


def _constant_like(value: Any, number: int) -> Any:
    """Return the i32 constant ``number`` with the shape (scalar or vector) of ``value``."""
    if isinstance(value.type, ir.VectorType):
        return lanes_constant([number] * value.type.count)
    return I32(number)


def _shaped(value: Any, element: Any) -> Any:
    """Return the LLVM type of ``element`` with the shape of ``value``."""
    return ir.VectorType(element, value.type.count) if isinstance(value.type, ir.VectorType) else element


def half_to_float_value(builder: Any, bits: Any, native: bool) -> Any:
    """Emit float32 from the low 16 bits of i32 ``bits``, exactly; scalar or vector."""
    if native:
        half = builder.bitcast(builder.trunc(bits, _shaped(bits, I16)), _shaped(bits, F16))
        return builder.fpext(half, _shaped(bits, F32))
    sign = builder.shl(builder.and_(bits, _constant_like(bits, 0x8000)), _constant_like(bits, 16))
    magnitude = builder.and_(bits, _constant_like(bits, 0x7FFF))
    shifted = builder.shl(magnitude, _constant_like(bits, 13))
    # the exponent moves from bias 15 to bias 127: a product with 2**112, exact for subnormal numbers too
    rescaled = builder.fmul(
        builder.bitcast(shifted, _shaped(bits, F32)),
        builder.bitcast(_constant_like(bits, (127 + 112) << 23), _shaped(bits, F32)),
    )
    finite = builder.icmp_signed("<", magnitude, _constant_like(bits, 0x7C00))
    special = builder.or_(shifted, _constant_like(bits, 0x7F800000))
    unsigned = builder.select(finite, builder.bitcast(rescaled, bits.type), special)
    return builder.bitcast(builder.or_(unsigned, sign), _shaped(bits, F32))


def float_to_half_value(builder: Any, value: Any, native: bool) -> Any:
    """Emit the 16 bits of the float16 nearest to ``value`` (ties to even) as i32; scalar or vector."""
    if native:
        half = builder.bitcast(builder.fptrunc(value, _shaped(value, F16)), _shaped(value, I16))
        return builder.zext(half, _shaped(value, I32))
    bits = builder.bitcast(value, _shaped(value, I32))
    sign = builder.and_(builder.lshr(bits, _constant_like(bits, 16)), _constant_like(bits, 0x8000))
    magnitude = builder.and_(bits, _constant_like(bits, 0x7FFFFFFF))
    odd = builder.and_(builder.lshr(magnitude, _constant_like(bits, 13)), _constant_like(bits, 1))
    rounded = builder.add(builder.add(magnitude, _constant_like(bits, 0xFFF)), odd)
    normal = builder.lshr(builder.sub(rounded, _constant_like(bits, 0x38000000)), _constant_like(bits, 13))
    # adding one half puts the last bit of a float32 where the last bit of a subnormal float16 is, and rounds
    half_one = _constant_like(bits, 0x3F000000)
    summed = builder.fadd(builder.bitcast(magnitude, value.type), builder.bitcast(half_one, value.type))
    subnormal = builder.sub(builder.bitcast(summed, bits.type), half_one)
    is_nan = builder.icmp_signed(">", magnitude, _constant_like(bits, 0x7F800000))
    special = builder.select(is_nan, _constant_like(bits, 0x7E00), _constant_like(bits, 0x7C00))
    small = builder.icmp_signed("<", magnitude, _constant_like(bits, 0x38800000))
    large = builder.icmp_signed(">=", magnitude, _constant_like(bits, 0x47800000))
    unsigned = builder.select(large, special, builder.select(small, subnormal, normal))
    return builder.or_(unsigned, sign)
