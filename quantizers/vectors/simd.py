"""Explicit vectors in numba: the language that the kernels of this room are written in.

**Lanes.** A vector is sixteen lanes (``LANES``) of float32 (:class:`Floats`), int32 (:class:`Ints`) or truth values (:class:`Mask`). A
kernel handles sixteen sub-blocks at a time, one per lane, or sixteen neighbouring weights of one sub-block. LLVM maps a vector to one
AVX-512 register, two of AVX2, four of SSE or NEON; the source does not change.

**Operators** act lane by lane: ``+ - * /`` on floats, ``+ - * & | ^ << >>`` on ints (``>>`` keeps the sign), ``& | ^ ~`` on masks,
unary ``-``; ``< <= > >= == !=`` give a mask. One side may be a Python or NumPy scalar. Named operations follow below.
Only contraction (``a * b + c`` rounded once) is allowed to the compiler, so NaN, infinity and signed zero behave as IEEE says, but
do not rely on a product being rounded before it is added, unless it is exact.

**Memory.** Kernels take one-dimensional C-contiguous arrays and element indices; nothing is bounds-checked. Between the steps of a
search, sixteen sub-blocks live transposed in a scratch array (:func:`scratch`), ``scratch[place * 16 + lane]``:
:func:`transpose` moves a 16 by 16 tile there. Nothing is taken from the heap: ``np.empty`` does not compile.

**A family module** (``q4_k.py`` is one) reads like the description of its format, in this order:

1. *Layout*: the module docstring, the constants of block sizes and offsets.
2. *Objective*: which weighted error is minimised, for each ``EncodeOptions.objective``.
3. *Search*: ``@inlined`` (or, for large parts, ``@merged``) functions on a scratch array; searches that formats share have modules.
4. *Pack*: scales and codes into the bytes of a block, in the layout's order.
5. ``@kernel`` entry points, ``decode(data, out)`` and ``encode(rows, ..., out)``, on flat arrays; and ``codec(name) -> Codec``, which
   ``catalog.py`` calls. :mod:`.kernel` has the decorators and the adapter from row arrays to flat ones.

Rules that cost others an evening: scalars of numba follow NumPy (a float32 times a Python float is float64, an int64 times a float32
too), so wrap constants of scalar code in ``np.float32`` where speed or exactness asks for it; rounding candidates that put the largest
weight exactly on a tie are bad; ``sum_w * sum_ll - sum_l**2`` is rounding noise on constant blocks, compare it with a small multiple of
its first term; a scale is rounded to float16 before codes are chosen; a refinement is kept only where the true error fell; a block's
bytes must depend on nothing but its weights, their importance and the options.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, ParamSpec, TypeVar, overload

import numpy as np

from .simd_values import Floats, Ints, Mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .simd_values import Real, Whole

    FloatArray = NDArray[np.float32]
    IntArray = NDArray[np.int32]
    ByteArray = NDArray[np.uint8]

__all__ = [
    "LANES",
    "OPERATIONS",
    "Floats",
    "Ints",
    "Mask",
    "absolute",
    "bits",
    "extract",
    "float_to_half",
    "floats_to_halves",
    "floor",
    "from_bits",
    "gather_float",
    "gather_int",
    "half_to_float",
    "halves_to_floats",
    "interleave_high",
    "interleave_low",
    "join_high",
    "join_low",
    "lane_bits",
    "lane_indices",
    "lane_max",
    "lane_min",
    "lane_sum",
    "load",
    "load_bytes",
    "load_int",
    "load_short",
    "load_shorts",
    "load_signed_bytes",
    "load_words",
    "logical_shift",
    "lookup",
    "maximum",
    "minimum",
    "octet_max",
    "octet_sum",
    "prefetch",
    "round_even",
    "saturating_half",
    "scratch",
    "scratch_int",
    "select",
    "splat",
    "splat_int",
    "sqrt",
    "store",
    "store_bytes",
    "store_short",
    "store_shorts",
    "to_float",
    "to_int",
    "transpose",
]


LANES = 16
"""Lanes of every vector. Sixteen was fastest on AVX-512 and, as two or four independent chains, on AVX2 and SSE4 too."""


Number = TypeVar("Number", Floats, Ints)
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


OPERATIONS: dict[str, Callable[..., object]] = {}
"""The named operations by name, for :mod:`.compiler`."""


def _lowered(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Declare an operation; ``simd_operations`` holds its instructions under its name, and is imported where a kernel is compiled."""
    OPERATIONS[function.__name__] = function
    return function


def _only_in_kernels() -> NoReturn:
    raise TypeError("vector operations exist only inside compiled kernels")


# --- memory ---------------------------------------------------------------------------------------------------------------------


@_lowered
def scratch(count: int) -> FloatArray:
    """Return ``count`` uninitialised float32 on the stack, from a cache line on, so that no vector straddles two.

    ``count`` is a constant of the module, not an expression. The memory goes when the function returns that asked for it.
    """
    _only_in_kernels()


@_lowered
def scratch_int(count: int) -> IntArray:
    """Return ``count`` uninitialised int32, as :func:`scratch` does."""
    _only_in_kernels()


@_lowered
def load(array: FloatArray, index: int) -> Floats:
    """Return ``array[index : index + 16]`` of a float32 array."""
    _only_in_kernels()


@_lowered
def load_int(array: IntArray, index: int) -> Ints:
    """Return ``array[index : index + 16]`` of an int32 array."""
    _only_in_kernels()


@_lowered
def load_bytes(array: ByteArray, index: int) -> Ints:
    """Return the sixteen unsigned bytes at ``index`` of a uint8 array."""
    _only_in_kernels()


@_lowered
def load_signed_bytes(array: ByteArray, index: int) -> Ints:
    """Return the sixteen bytes at ``index`` of a uint8 array, read as int8."""
    _only_in_kernels()


@_lowered
def load_shorts(array: ByteArray, index: int) -> Ints:
    """Return sixteen little-endian uint16 that start at byte ``index`` of a uint8 array."""
    _only_in_kernels()


@_lowered
def load_words(array: ByteArray, index: int) -> Ints:
    """Return sixteen little-endian uint32 that start at byte ``index`` of a uint8 array, their bits as int32."""
    _only_in_kernels()


@_lowered
def load_short(array: ByteArray, index: int) -> int:
    """Return the little-endian uint16 at byte ``index`` of a uint8 array, as a scalar."""
    _only_in_kernels()


@_lowered
def prefetch(array: FloatArray, index: int) -> None:
    """Ask for the cache line of ``array[index]``, which may lie beyond the end, ahead of its use."""
    _only_in_kernels()


@overload
def store(array: FloatArray, index: int, value: Floats) -> None: ...
@overload
def store(array: IntArray, index: int, value: Ints) -> None: ...
@_lowered
def store(array: FloatArray | IntArray, index: int, value: Floats | Ints) -> None:
    """Write sixteen lanes to ``array[index : index + 16]``, float32 or int32."""
    _only_in_kernels()


@_lowered
def store_bytes(array: ByteArray, index: int, value: Ints) -> None:
    """Write the low byte of each lane to ``array[index : index + 16]``."""
    _only_in_kernels()


@_lowered
def store_shorts(array: ByteArray, index: int, value: Ints) -> None:
    """Write the low 16 bits of each lane, little-endian, to the 32 bytes from ``index``."""
    _only_in_kernels()


@_lowered
def store_short(array: ByteArray, index: int, value: Whole) -> None:
    """Write the low 16 bits of a scalar, little-endian, to the two bytes from ``index``."""
    _only_in_kernels()


@_lowered
def lookup(table: FloatArray, index: Ints) -> Floats:
    """Return ``table[index & 15]`` of the first sixteen elements of a float32 array, without a gather where the CPU permutes registers."""
    _only_in_kernels()


@_lowered
def gather_float(table: FloatArray, index: Ints) -> Floats:
    """Return ``table[index]`` lane by lane."""
    _only_in_kernels()


@_lowered
def gather_int(table: IntArray | ByteArray, index: Ints) -> Ints:
    """Return ``table[index]`` lane by lane; bytes are unsigned."""
    _only_in_kernels()


@_lowered
def transpose(
    source: FloatArray, start: int, source_stride: int, target: FloatArray, offset: int, target_stride: int
) -> None:
    """Transpose a 16 by 16 tile.

    Row ``i`` of the tile is ``source[start + i * source_stride :][:16]``; its column ``j`` becomes
    ``target[offset + j * target_stride :][:16]``. Source and target may be one array if the tiles are the same or apart.
    """
    _only_in_kernels()


# --- making and choosing values -------------------------------------------------------------------------------------------------


@_lowered
def splat(value: Real) -> Floats:
    """Return sixteen times the float32 nearest to ``value``."""
    _only_in_kernels()


@_lowered
def splat_int(value: Whole) -> Ints:
    """Return sixteen times the low 32 bits of ``value``."""
    _only_in_kernels()


@_lowered
def lane_indices() -> Ints:
    """Return 0, 1, ..., 15."""
    _only_in_kernels()


@_lowered
def select(mask: Mask, yes: Number, no: Number | Real) -> Number:
    """Return ``yes`` where ``mask`` is true and ``no``, a vector or scalar, elsewhere."""
    _only_in_kernels()


@_lowered
def minimum(left: Number, right: Number | Real) -> Number:
    """Return the smaller of each pair; ``right`` where either is NaN."""
    _only_in_kernels()


@_lowered
def maximum(left: Number, right: Number | Real) -> Number:
    """Return the larger of each pair; ``right`` where either is NaN."""
    _only_in_kernels()


@_lowered
def interleave_low(left: Number, right: Number) -> Number:
    """Return ``left[0], right[0], left[1], right[1], ..., left[7], right[7]``."""
    _only_in_kernels()


@_lowered
def interleave_high(left: Number, right: Number) -> Number:
    """Return ``left[8], right[8], ..., left[15], right[15]``."""
    _only_in_kernels()


@_lowered
def join_low(left: Number, right: Number) -> Number:
    """Return ``left[0], ..., left[7], right[0], ..., right[7]``."""
    _only_in_kernels()


@_lowered
def join_high(left: Number, right: Number) -> Number:
    """Return ``left[8], ..., left[15], right[8], ..., right[15]``."""
    _only_in_kernels()


@overload
def extract(value: Floats, lane: int) -> float: ...
@overload
def extract(value: Ints, lane: int) -> int: ...
@_lowered
def extract(value: Floats | Ints, lane: int) -> float:
    """Return one lane as a float32 or int32 scalar."""
    _only_in_kernels()


# --- arithmetic -----------------------------------------------------------------------------------------------------------------


@_lowered
def floor(value: Floats) -> Floats:
    """Return the largest integer not above each lane."""
    _only_in_kernels()


@_lowered
def round_even(value: Floats) -> Floats:
    """Return the nearest integer, ties to even."""
    _only_in_kernels()


@_lowered
def sqrt(value: Floats) -> Floats:
    """Return the square root, correctly rounded."""
    _only_in_kernels()


@_lowered
def absolute(value: Number) -> Number:
    """Return the absolute value."""
    _only_in_kernels()


@_lowered
def to_int(value: Floats) -> Ints:
    """Return float32 truncated towards zero; lanes outside int32 are undefined."""
    _only_in_kernels()


@_lowered
def to_float(value: Ints) -> Floats:
    """Return the nearest float32."""
    _only_in_kernels()


@_lowered
def logical_shift(value: Ints, count: Ints | Whole) -> Ints:
    """Return ``value >> count`` with zeros shifted in."""
    _only_in_kernels()


@_lowered
def bits(value: Floats) -> Ints:
    """Return the bit patterns."""
    _only_in_kernels()


@_lowered
def from_bits(value: Ints) -> Floats:
    """Return the floats of these bit patterns."""
    _only_in_kernels()


@_lowered
def halves_to_floats(value: Ints) -> Floats:
    """Return the float16 in the low 16 bits of each lane, exactly."""
    _only_in_kernels()


@_lowered
def floats_to_halves(value: Floats) -> Ints:
    """Return the bits of the nearest float16, ties to even; too large a value becomes infinity."""
    _only_in_kernels()


@_lowered
def half_to_float(value: Whole) -> float:
    """Return the float16 in the low 16 bits of a scalar as float32, exactly."""
    _only_in_kernels()


@_lowered
def float_to_half(value: Real) -> int:
    """Return the bits of the float16 nearest to a scalar, ties to even; too large a value becomes infinity."""
    _only_in_kernels()


@_lowered
def saturating_half(value: Real) -> int:
    """Return the bits of the finite float16 nearest to a scalar: for scales, which must stay finite. NaN becomes zero."""
    _only_in_kernels()


# --- across lanes ---------------------------------------------------------------------------------------------------------------


@overload
def lane_sum(value: Floats) -> float: ...
@overload
def lane_sum(value: Ints) -> int: ...
@_lowered
def lane_sum(value: Floats | Ints) -> float:
    """Return the sum of all lanes, added in halves: ((0 + 8) + (4 + 12)) + ..., the same on every host."""
    _only_in_kernels()


@overload
def lane_min(value: Floats) -> float: ...
@overload
def lane_min(value: Ints) -> int: ...
@_lowered
def lane_min(value: Floats | Ints) -> float:
    """Return the smallest lane."""
    _only_in_kernels()


@overload
def lane_max(value: Floats) -> float: ...
@overload
def lane_max(value: Ints) -> int: ...
@_lowered
def lane_max(value: Floats | Ints) -> float:
    """Return the largest lane."""
    _only_in_kernels()


@_lowered
def octet_sum(value: Floats) -> Floats:
    """Return in each lane the sum over its half, lanes 0 to 7 or 8 to 15; both halves add in the same order."""
    _only_in_kernels()


@_lowered
def octet_max(value: Floats) -> Floats:
    """Return in each lane the largest lane of its half, lanes 0 to 7 or 8 to 15."""
    _only_in_kernels()


@_lowered
def lane_bits(mask: Mask) -> int:
    """Return a mask as a number whose bit ``i`` is lane ``i``: 0 where no lane is true, 65535 where all are."""
    _only_in_kernels()
