"""The named operations of :mod:`.simd`: for each, numba's typing rule and the instructions that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.np.arrayobj import populate_array

from . import simd_types as lowering
from .simd import LANES
from .simd_types import FLOATS, INTS, LLVM, MASK, Vector

__all__ = ["OPERATIONS"]

_NATIVE_HALVES = lowering.host_converts_halves()
_PERMUTES = lowering.host_permutes()
_LARGEST_HALF = 65504.0


def _typed(result: Any, *args: Any) -> Callable[..., Any]:
    """Typing rule of no argument or one, of a vector type or of a scalar type that numba converts to."""
    if not args:
        return lambda: result()
    (wanted,) = args

    def typer(actual: Any) -> Any:
        fits = actual == wanted if isinstance(wanted, Vector) else isinstance(actual, types.Number)
        return result(wanted) if fits else None

    return typer


def _array_typer(element: Any, result: Any, index: Any = types.intp) -> Callable[..., Any]:
    def typer(array: Any, place: Any) -> Any:
        fits = isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C" and array.dtype in element
        return result(array, index) if fits else None

    return typer


def _store_typer(accepted: dict[Any, Sequence[Any]]) -> Callable[..., Any]:
    def typer(array: Any, place: Any, value: Any) -> Any:
        if not isinstance(array, types.Array) or array.ndim != 1 or array.layout != "C" or not array.mutable:
            return None
        for stored, elements in accepted.items():
            if array.dtype in elements and (stored == value or not isinstance(stored, Vector)):
                return types.void(array, types.intp, stored)
        return None

    return typer


def _emit_load(memory: Any, alignment: int, widen: str | None, result: Any = None) -> Callable[..., Any]:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = lowering.array_pointer(context, builder, signature.args[0], args[0], args[1], memory)
        value = builder.load(pointer)
        value.align = alignment
        return value if widen is None else getattr(builder, widen)(value, result)

    return emit


def _emit_store(memory: Any, alignment: int) -> Callable[..., Any]:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kept = args[2] if memory is None else builder.trunc(args[2], memory)
        pointer = lowering.array_pointer(context, builder, signature.args[0], args[0], args[1], kept.type)
        builder.store(kept, pointer).align = alignment
        return context.get_dummy_value()

    return emit


def _emit_prefetch(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    pointer = lowering.array_pointer(context, builder, signature.args[0], args[0], args[1], lowering.I8)
    for_reading, into_all_levels, data = lowering.I32(0), lowering.I32(3), lowering.I32(1)
    lowering.call_llvm(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, for_reading, into_all_levels, data])
    return context.get_dummy_value()


def _emit_gather(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    element = {types.float32: lowering.F32, types.int32: lowering.I32, types.uint8: lowering.I8}[
        signature.args[0].dtype
    ]
    base = context.make_array(signature.args[0])(context, builder, args[0]).data
    if element is lowering.I8:  # no instruction gathers bytes
        gathered = ir.Constant(LLVM["int"], ir.Undefined)
        for lane in range(LANES):
            entry = builder.load(builder.gep(base, [builder.extract_element(args[1], lowering.I32(lane))]))
            gathered = builder.insert_element(gathered, builder.zext(entry, lowering.I32), lowering.I32(lane))
        return gathered
    wide = ir.VectorType(lowering.I64, LANES)
    offsets = builder.shl(builder.zext(args[1], wide), lowering.lanes_constant([2] * LANES, lowering.I64))
    start = lowering.splat_value(builder, builder.ptrtoint(base, lowering.I64))
    pointers = builder.inttoptr(builder.add(start, offsets), ir.VectorType(element.as_pointer(), LANES))
    result = ir.VectorType(element, LANES)
    name = f"llvm.masked.gather.v{LANES}{'f32' if element is lowering.F32 else 'i32'}.v{LANES}p0"
    everywhere = lowering.lanes_constant([1] * LANES, lowering.I1)
    return lowering.call_llvm(
        builder, name, result, [pointers, lowering.I32(4), everywhere, ir.Constant(result, ir.Undefined)]
    )


def _emit_lookup(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    index = args[1]
    if _PERMUTES is None:
        index = builder.and_(index, lowering.lanes_constant([LANES - 1] * LANES))
        return _emit_gather(context, builder, signature, (args[0], index))
    base = context.make_array(signature.args[0])(context, builder, args[0]).data
    if _PERMUTES == "avx512f":
        return _permuted(builder, "llvm.x86.avx512.permvar.sf.512", base, 0, LANES, index)
    half = LANES // 2
    # such a permutation takes the three lowest bits of the index; the fourth tells which half of the table is meant
    picked = []
    for first in (0, half):
        lanes = lowering.lanes_constant(range(first, first + half))
        part = builder.shuffle_vector(index, ir.Constant(index.type, ir.Undefined), lanes)
        lower, upper = (_permuted(builder, "llvm.x86.avx2.permps", base, start, half, part) for start in (0, half))
        fourth_bit = builder.shl(part, lowering.lanes_constant([28] * half))
        picked.append(builder.select(builder.icmp_signed("<", fourth_bit, ir.Constant(part.type, None)), upper, lower))
    return builder.shuffle_vector(*picked, lowering.lanes_constant(range(LANES)))


def _permuted(builder: Any, name: str, base: Any, start: int, lanes: int, index: Any) -> Any:
    kind = ir.VectorType(lowering.F32, lanes)
    table = builder.load(builder.bitcast(builder.gep(base, [lowering.I64(start)]), kind.as_pointer()))
    table.align = 4
    return lowering.call_llvm(builder, name, kind, [table, index])


_CACHE_LINE, _ELEMENT_BYTES = 64, 4


def _scratch_typer(element: Any) -> Callable[[Any], Any]:
    def typer(count: Any) -> Any:
        return types.Array(element, 1, "C")(count) if isinstance(count, types.IntegerLiteral) else None

    return typer


def _emit_scratch(element: Any) -> Callable[..., Any]:
    """Emit memory in the first block of the function: LLVM makes room for it once, however often it is asked for."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count = signature.args[0].literal_value
        with builder.goto_entry_block():
            memory = builder.alloca(ir.ArrayType(element, count))
            memory.align = _CACHE_LINE
        array = context.make_array(signature.return_type)(context, builder)
        size, nbytes = (context.get_constant(types.intp, number) for number in (count, _ELEMENT_BYTES))
        data = builder.bitcast(memory, element.as_pointer())
        populate_array(array, data, [size], [nbytes], nbytes, None)
        return array._getvalue()

    return emit


_QUARTER = 4  # lanes of 128 bits: shuffles within those, and of whole ones, are single instructions of AVX and AVX-512
_LOW = [lane for pair in range(LANES // 2) for lane in (pair, LANES + pair)]
_HIGH = [lane for pair in range(LANES // 2, LANES) for lane in (pair, LANES + pair)]
_LOW_IN_QUARTERS = [first + lane for first in range(0, LANES, _QUARTER) for lane in (0, LANES, 1, LANES + 1)]
_HIGH_IN_QUARTERS = [lane + 2 for lane in _LOW_IN_QUARTERS]
_EVEN_QUARTERS = [first + lane for first in range(0, 2 * LANES, 2 * _QUARTER) for lane in range(_QUARTER)]
_ODD_QUARTERS = [lane + _QUARTER for lane in _EVEN_QUARTERS]


def _both(builder: Any, left: Any, right: Any, masks: tuple[list[int], list[int]]) -> list[Any]:
    return [builder.shuffle_vector(left, right, lowering.lanes_constant(mask)) for mask in masks]


def _transpose_quarters(builder: Any, rows: list[Any]) -> list[Any]:
    """Transpose the 4 by 4 lanes of each quarter of four rows: two perfect shuffles."""
    for _ in range(2):
        masks = (_LOW_IN_QUARTERS, _HIGH_IN_QUARTERS)
        rows = _both(builder, rows[0], rows[2], masks) + _both(builder, rows[1], rows[3], masks)
    return rows


def _exchange_quarters(builder: Any, rows: list[Any]) -> list[Any]:
    """Transpose the 4 by 4 quarters of four rows."""
    masks = (_EVEN_QUARTERS, _ODD_QUARTERS)
    even_low, odd_low = _both(builder, rows[0], rows[1], masks)
    even_high, odd_high = _both(builder, rows[2], rows[3], masks)
    first, third = _both(builder, even_low, even_high, masks)
    second, fourth = _both(builder, odd_low, odd_high, masks)
    return [first, second, third, fourth]


def _emit_transpose(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    source, start, source_stride, target, offset, target_stride = args
    vector = LLVM["float"].as_pointer()
    base = context.make_array(signature.args[0])(context, builder, source).data
    rows = []
    index = start
    for _ in range(LANES):
        loaded = builder.load(builder.bitcast(builder.gep(base, [index]), vector))
        loaded.align = 4
        rows.append(loaded)
        index = builder.add(index, source_stride)
    turned = [_transpose_quarters(builder, rows[first : first + _QUARTER]) for first in range(0, LANES, _QUARTER)]
    columns = [_exchange_quarters(builder, [four[place] for four in turned]) for place in range(_QUARTER)]
    base = context.make_array(signature.args[3])(context, builder, target).data
    index = offset
    for column in range(LANES):
        row = columns[column % _QUARTER][column // _QUARTER]
        builder.store(row, builder.bitcast(builder.gep(base, [index]), vector)).align = 4
        index = builder.add(index, target_stride)
    return context.get_dummy_value()


def _transpose_typer(source: Any, start: Any, source_stride: Any, target: Any, offset: Any, target_stride: Any) -> Any:
    for array in (source, target):
        if not isinstance(array, types.Array) or array.ndim != 1 or array.layout != "C" or array.dtype != types.float32:
            return None
    size = types.intp
    return types.void(source, size, size, target, size, size)


def _pick(builder: Any, smaller: bool, left: Any, right: Any) -> Any:
    """Emit minimum or maximum as compare and select, which every host has one instruction for."""
    predicate = "<" if smaller else ">"
    is_float = getattr(left.type, "element", left.type) == lowering.F32
    compare = builder.fcmp_ordered if is_float else builder.icmp_signed
    return builder.select(compare(predicate, left, right), left, right)


def _emit_across(combine: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
    """Combine lanes by halves until one is left."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, width = args[0], LANES
        while width > 1:
            width //= 2
            nothing = ir.Constant(value.type, ir.Undefined)
            lower = builder.shuffle_vector(value, nothing, lowering.lanes_constant(range(width)))
            upper = builder.shuffle_vector(value, nothing, lowering.lanes_constant(range(width, 2 * width)))
            value = combine(builder, lower, upper)
        return builder.extract_element(value, lowering.I32(0))

    return emit


def _emit_octets(combine: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
    """Combine each lane with those 1, 2 and 4 away, so that all eight lanes of a half end with the same value."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = args[0]
        for distance in (1, 2, 4):
            partner = lowering.lanes_constant([lane ^ distance for lane in range(LANES)])
            nothing = ir.Constant(value.type, ir.Undefined)
            value = combine(builder, value, builder.shuffle_vector(value, nothing, partner))
        return value

    return emit


def _add(builder: Any, left: Any, right: Any) -> Any:
    element = left.type.element
    return builder.fadd(left, right) if element == lowering.F32 else builder.add(left, right)


def _numeric_unary(vector: Any) -> Any:
    return vector(vector) if vector in (FLOATS, INTS) else None


def _lane_typer(vector: Any) -> Any:
    return lowering.SCALAR[vector.kind](vector) if vector in (FLOATS, INTS) else None


def _extract_typer(vector: Any, lane: Any) -> Any:
    return lowering.SCALAR[vector.kind](vector, types.int32) if vector in (FLOATS, INTS) else None


def _select_typer(mask: Any, yes: Any, no: Any) -> Any:
    if mask != MASK:
        return None
    pair = lowering.binary_typer(("float", "int"))(yes, no)
    return None if pair is None else pair.return_type(MASK, *pair.args)


def _emit_select(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    sides = [
        a if isinstance(t, Vector) else lowering.splat_value(builder, a)
        for t, a in zip(signature.args[1:], args[1:], strict=True)
    ]
    return builder.select(args[0], *sides)


def _emit_saturating(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    value = args[0]
    largest = lowering.F32(_LARGEST_HALF)
    value = builder.select(builder.fcmp_ordered("<", value, largest), value, largest)
    value = builder.select(
        builder.fcmp_ordered(">", value, lowering.F32(-_LARGEST_HALF)), value, lowering.F32(-_LARGEST_HALF)
    )
    value = builder.select(builder.fcmp_ordered("ord", args[0], args[0]), value, lowering.F32(0.0))
    return lowering.float_to_half_value(builder, value, _NATIVE_HALVES)


def _llvm(name: str) -> Callable[..., Any]:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return lowering.call_llvm(builder, f"llvm.{name}.v{LANES}f32", LLVM["float"], args)

    return emit


def _emit_absolute(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    if signature.args[0] == FLOATS:
        return lowering.call_llvm(builder, f"llvm.fabs.v{LANES}f32", LLVM["float"], args)
    return _pick(builder, False, args[0], builder.neg(args[0]))


def _simple(emit: Callable[..., Any]) -> Callable[..., Any]:
    """Drop the parts of numba's emitter signature that most operations have no use for."""
    return lambda context, builder, signature, args: emit(builder, *args)


def _picking(smaller: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def pick(builder: Any, left: Any, right: Any) -> Any:
        return _pick(builder, smaller, left, right)

    return lowering.binary_typer(("float", "int")), lowering.by_kind(float=pick, int=pick)


def _shuffling(lanes: list[int]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def shuffle(builder: Any, left: Any, right: Any) -> Any:
        return builder.shuffle_vector(left, right, lowering.lanes_constant(lanes))

    return lowering.binary_typer(("float", "int")), lowering.by_kind(float=shuffle, int=shuffle)


_BYTES, _SHORTS = ir.VectorType(lowering.I8, LANES), ir.VectorType(lowering.I16, LANES)
_FLOAT, _INT, _BYTE = types.float32, types.int32, types.uint8
_WIDEN = _simple(lambda b, value: lowering.half_to_float_value(b, value, _NATIVE_HALVES))
_NARROW = _simple(lambda b, value: lowering.float_to_half_value(b, value, _NATIVE_HALVES))

# name in simd: typing rule, instructions
OPERATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "scratch": (_scratch_typer(_FLOAT), _emit_scratch(lowering.F32)),
    "scratch_int": (_scratch_typer(_INT), _emit_scratch(lowering.I32)),
    "load": (_array_typer([_FLOAT], FLOATS), _emit_load(LLVM["float"], 4, None)),
    "load_int": (_array_typer([_INT], INTS), _emit_load(LLVM["int"], 4, None)),
    "load_bytes": (_array_typer([_BYTE], INTS), _emit_load(_BYTES, 1, "zext", LLVM["int"])),
    "load_signed_bytes": (_array_typer([_BYTE], INTS), _emit_load(_BYTES, 1, "sext", LLVM["int"])),
    "load_shorts": (_array_typer([_BYTE], INTS), _emit_load(_SHORTS, 1, "zext", LLVM["int"])),
    "load_words": (_array_typer([_BYTE], INTS), _emit_load(LLVM["int"], 1, None)),
    "load_short": (_array_typer([_BYTE], _INT), _emit_load(lowering.I16, 1, "zext", lowering.I32)),
    "store": (_store_typer({FLOATS: [_FLOAT], INTS: [_INT]}), _emit_store(None, 4)),
    "store_bytes": (_store_typer({INTS: [_BYTE]}), _emit_store(_BYTES, 1)),
    "store_shorts": (_store_typer({INTS: [_BYTE]}), _emit_store(_SHORTS, 1)),
    "store_short": (_store_typer({_INT: [_BYTE]}), _emit_store(lowering.I16, 1)),
    "prefetch": (_array_typer([_FLOAT], types.void), _emit_prefetch),
    "lookup": (_array_typer([_FLOAT], FLOATS, INTS), _emit_lookup),
    "gather_float": (_array_typer([_FLOAT], FLOATS, INTS), _emit_gather),
    "gather_int": (_array_typer([_INT, _BYTE], INTS, INTS), _emit_gather),
    "transpose": (_transpose_typer, _emit_transpose),
    "splat": (_typed(FLOATS, _FLOAT), _simple(lowering.splat_value)),
    "splat_int": (_typed(INTS, _INT), _simple(lowering.splat_value)),
    "lane_indices": (_typed(INTS), _simple(lambda b: lowering.lanes_constant(range(LANES)))),
    "select": (_select_typer, _emit_select),
    "minimum": _picking(smaller=True),
    "maximum": _picking(smaller=False),
    "interleave_low": _shuffling(_LOW),
    "interleave_high": _shuffling(_HIGH),
    "join_low": _shuffling([*range(LANES // 2), *range(LANES, LANES + LANES // 2)]),
    "join_high": _shuffling([*range(LANES // 2, LANES), *range(LANES + LANES // 2, 2 * LANES)]),
    "extract": (_extract_typer, _simple(lambda b, vector, lane: b.extract_element(vector, lane))),
    "floor": (_typed(FLOATS, FLOATS), _llvm("floor")),
    "round_even": (_typed(FLOATS, FLOATS), _llvm("rint")),
    "sqrt": (_typed(FLOATS, FLOATS), _llvm("sqrt")),
    "absolute": (_numeric_unary, _emit_absolute),
    "to_int": (_typed(INTS, FLOATS), _simple(lambda b, value: b.fptosi(value, LLVM["int"]))),
    "to_float": (_typed(FLOATS, INTS), _simple(lambda b, value: b.sitofp(value, LLVM["float"]))),
    "logical_shift": (
        lowering.binary_typer(("int",)),
        lowering.by_kind(int=lambda b, value, count: b.lshr(value, count)),
    ),
    "bits": (_typed(INTS, FLOATS), _simple(lambda b, value: b.bitcast(value, LLVM["int"]))),
    "from_bits": (_typed(FLOATS, INTS), _simple(lambda b, value: b.bitcast(value, LLVM["float"]))),
    "halves_to_floats": (_typed(FLOATS, INTS), _WIDEN),
    "floats_to_halves": (_typed(INTS, FLOATS), _NARROW),
    "half_to_float": (_typed(_FLOAT, _INT), _WIDEN),
    "float_to_half": (_typed(_INT, _FLOAT), _NARROW),
    "saturating_half": (_typed(_INT, _FLOAT), _emit_saturating),
    "lane_sum": (_lane_typer, _emit_across(_add)),
    "lane_min": (_lane_typer, _emit_across(lambda b, x, y: _pick(b, True, x, y))),
    "lane_max": (_lane_typer, _emit_across(lambda b, x, y: _pick(b, False, x, y))),
    "octet_sum": (_typed(FLOATS, FLOATS), _emit_octets(_add)),
    "octet_max": (_typed(FLOATS, FLOATS), _emit_octets(lambda b, x, y: _pick(b, False, x, y))),
    "lane_bits": (
        _typed(_INT, MASK),
        _simple(lambda b, mask: b.zext(b.bitcast(mask, ir.IntType(LANES)), lowering.I32)),
    ),
}
