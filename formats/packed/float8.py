"""Eight-bit floats as tables of their 256 numbers.

=========  =====================================================================================================================
F8_E4M3    sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinity, NaN where all other bits are set; largest 448
F8_E5M2    sign, 5 bits of exponent (bias 15), 2 of mantissa; infinity and NaN as in IEEE formats; largest 57344
F8_E8M0    an exponent alone: ``2**(code - 127)``; 255 is NaN
=========  =====================================================================================================================

(OCP 8-bit Floating Point Specification 1.0 and OCP Microscaling Formats Specification 1.0.)
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FLOAT8", "decode_float8"]


def _table(exponent_bits: int, mantissa_bits: int, finite_only: bool) -> NDArray[np.float32]:
    """Return the numbers of all codes; ``finite_only``: the highest exponent holds numbers too, but for its last code."""
    code = np.arange(256)
    bias = (1 << exponent_bits - 1) - 1
    highest = (1 << exponent_bits) - 1
    exponent = code >> mantissa_bits & highest
    mantissa = code & (1 << mantissa_bits) - 1
    significand = np.where(exponent == 0, mantissa, mantissa + (1 << mantissa_bits))
    value = np.ldexp(significand.astype(np.float64), np.maximum(exponent, 1) - bias - mantissa_bits)
    if finite_only:
        value[(code & 127) == 127] = np.nan
    else:
        value[exponent == highest] = np.where(mantissa[exponent == highest] == 0, np.inf, np.nan)
    return _constant(np.where(code < 128, value, -value))


def _exponents() -> NDArray[np.float32]:
    value = np.ldexp(1.0, np.arange(256) - 127)
    value[255] = np.nan
    return _constant(value)


def _constant(values: NDArray[np.float64]) -> NDArray[np.float32]:
    table = values.astype(np.float32)
    table.flags.writeable = False
    return table


FLOAT8: Mapping[str, NDArray[np.float32]] = MappingProxyType(
    {"F8_E4M3": _table(4, 3, finite_only=True), "F8_E5M2": _table(5, 2, finite_only=False), "F8_E8M0": _exponents()}
)


def decode_float8(codes: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Return the numbers of codes of ``dtype``, a key of :data:`FLOAT8`, in the same shape.

    >>> decode_float8(np.array([0x38, 0xFE, 0x01], np.uint8), "F8_E4M3").tolist()
    [1.0, -448.0, 0.001953125]
    """
    return FLOAT8[dtype].take(codes)
