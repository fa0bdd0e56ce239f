"""The vector layer against NumPy: every operation on the same lanes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from qconv.quantizers.vectors import simd as v
from qconv.quantizers.vectors import simd_types
from qconv.quantizers.vectors.compiler import compile_kernel
from qconv.quantizers.vectors.kernel import kernel
from qconv.quantizers.vectors.machine_code import load, types_of

FLOATS = np.array([0, -0.0, 1, -1, 0.5, 1.5, 2.5, -2.5, 3.7, -3.7, 1e-30, -1e-30, 1e30, 65504, -7, 100], np.float32)
INTS = np.array([0, 1, -1, 2, 255, 256, -256, 1 << 20, -(1 << 20), 7, 8, 15, 16, 31, -31, 2**31 - 1], np.int32)


@kernel
def _arithmetic(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    x, y = v.load(a, 0), v.load(b, 0)
    v.store(out, 0, x + y)
    v.store(out, 16, x - y)
    v.store(out, 32, x * y)
    v.store(out, 48, x / y)
    v.store(out, 64, 2 * x + 1)
    v.store(out, 80, -x)
    v.store(out, 96, v.minimum(x, y))
    v.store(out, 112, v.maximum(x, 0.5))
    v.store(out, 128, v.floor(x))
    v.store(out, 144, v.round_even(x))
    v.store(out, 160, v.absolute(x))
    v.store(out, 176, v.sqrt(v.absolute(x)))
    v.store(out, 192, v.select((x < y) & ~(x == 0), x, y))
    v.store(out, 208, v.interleave_low(x, y))
    v.store(out, 224, v.interleave_high(x, y))
    v.store(out, 240, v.gather_float(a, v.lane_indices() ^ 3))
    v.store(out, 256, v.join_low(x, y))
    v.store(out, 272, v.join_high(x, y))
    v.store(out, 288, v.lookup(b, v.lane_indices() * 5 - 48))


def test_float_operations_agree_with_numpy() -> None:
    a, b = FLOATS, np.roll(FLOATS, 5) + np.float32(0.25)
    out = np.empty(304, np.float32)
    _arithmetic(a, b, out)
    one, two = np.float32(1), np.float32(2)
    pairs = np.stack([a, b], 1).reshape(-1)
    expected = [
        *(a + b, a - b, a * b, a / b, two * a + one, -a, np.minimum(a, b), np.maximum(a, np.float32(0.5))),
        *(np.floor(a), np.rint(a), np.abs(a), np.sqrt(np.abs(a)), np.where((a < b) & (a != 0), a, b)),
        *(pairs[:16], pairs[16:], a[np.arange(16) ^ 3]),
        *(np.append(a[:8], b[:8]), np.append(a[8:], b[8:]), b[np.arange(16) * 5 % 16]),
    ]
    np.testing.assert_array_equal(out.reshape(19, 16), np.array(expected))


@kernel
def _integers(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    x, y = v.load_int(a, 0), v.load_int(b, 0)
    v.store(out, 0, x + y)
    v.store(out, 16, x - 3)
    v.store(out, 32, x * y)
    v.store(out, 48, x & 15)
    v.store(out, 64, x | y)
    v.store(out, 80, x ^ y)
    v.store(out, 96, x << 4)
    v.store(out, 112, x >> 4)
    v.store(out, 128, v.logical_shift(x, 4))
    v.store(out, 144, ~x)
    v.store(out, 160, v.minimum(x, y))
    v.store(out, 176, v.maximum(x, y))
    v.store(out, 192, v.select(x >= y, x, v.splat_int(-5)))
    v.store(out, 208, v.absolute(x))
    v.store(out, 224, v.bits(v.to_float(x)))
    v.store(out, 240, v.to_int(v.from_bits(v.bits(v.to_float(x & 0xFFFF)))))


def test_integer_operations_agree_with_numpy() -> None:
    a, b = INTS, np.roll(INTS, 3)
    out = np.empty(256, np.int32)
    _integers(a, b, out)
    with np.errstate(over="ignore"):
        expected = [
            *(a + b, a - 3, a * b, a & 15, a | b, a ^ b, a << 4, a >> 4, (a.view(np.uint32) >> 4).view(np.int32), ~a),
            *(np.minimum(a, b), np.maximum(a, b), np.where(a >= b, a, -5), np.abs(a)),
            *(a.astype(np.float32).view(np.int32), a & 0xFFFF),
        ]
    np.testing.assert_array_equal(out.reshape(16, 16), np.array(expected, np.int32))


@kernel
def _across(a: np.ndarray, b: np.ndarray, floats: np.ndarray, ints: np.ndarray) -> None:
    x, n = v.load(a, 0), v.load_int(b, 0)
    floats[0], floats[1], floats[2], floats[3] = v.lane_sum(x), v.lane_min(x), v.lane_max(x), v.extract(x, 3)
    ints[0], ints[1], ints[2], ints[3] = v.lane_sum(n), v.lane_min(n), v.lane_max(n), v.lane_bits(x < 0)


def test_reductions_agree_with_numpy() -> None:
    a, b = np.arange(16, dtype=np.float32) * np.float32(1.5) - 9, INTS
    total = int(b.sum(dtype=np.int32))
    bits = int(sum(1 << i for i in np.flatnonzero(a < 0)))
    floats, ints = np.empty(4, np.float32), np.empty(4, np.int32)
    _across(a, b, floats, ints)
    assert floats.tolist() == [a.sum(), a.min(), a.max(), a[3]]
    assert ints.tolist() == [total, b.min(), b.max(), bits]


@kernel
def _octets(a: np.ndarray, out: np.ndarray) -> None:
    v.store(out, 0, v.octet_sum(v.load(a, 0)))
    v.store(out, 16, v.octet_max(v.load(a, 0)))


def test_octets_are_reduced_apart() -> None:
    a = np.arange(16, dtype=np.float32) * np.float32(-1.5) + 9
    out = np.empty(32, np.float32)
    _octets(a, out)
    halves = a.reshape(2, 8)
    np.testing.assert_array_equal(out, np.repeat([*halves.sum(1), *halves.max(1)], 8))


@kernel
def _bytes(data: np.ndarray, out: np.ndarray, copy: np.ndarray, last: np.ndarray) -> None:
    v.store(out, 0, v.load_bytes(data, 1))
    v.store(out, 16, v.load_signed_bytes(data, 1))
    v.store(out, 32, v.load_shorts(data, 1))
    v.store(out, 48, v.gather_int(data, v.lane_indices() * 2))
    v.store(out, 64, v.load_words(data, 1))
    v.store_bytes(copy, 0, v.load_bytes(data, 0))
    v.store_shorts(copy, 16, v.load_shorts(data, 16))
    v.store_short(copy, 48, v.load_short(data, 48))
    last[0] = v.load_short(data, 49)


def test_bytes_and_shorts_are_read_and_written_unaligned() -> None:
    data = np.random.default_rng(0).integers(0, 256, 65, np.uint8)
    out, copy = np.empty(80, np.int32), np.zeros(50, np.uint8)
    last = np.empty(1, np.int32)
    _bytes(data, out, copy, last)
    shorts = data[1:33].copy().view("<u2")
    words = data[1:65].copy().view("<i4")
    expected = [data[1:17], data[1:17].view(np.int8), shorts, data[:32:2], words]
    np.testing.assert_array_equal(out.reshape(5, 16), np.array([e.astype(np.int32) for e in expected]))
    np.testing.assert_array_equal(copy, data[:50])
    assert last[0] == int(data[49]) | int(data[50]) << 8


@kernel
def _transposed(tiles: np.ndarray, out: np.ndarray) -> None:
    for half in range(2):
        v.transpose(tiles, 16 * half, 32, out, 256 * half, 16)


def test_transpose_moves_a_tile() -> None:
    tiles = np.arange(512, dtype=np.float32)
    out = np.empty_like(tiles)
    _transposed(tiles, out)
    np.testing.assert_array_equal(out.reshape(32, 16), tiles.reshape(16, 32).T)


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a function at each call, whatever the cache holds."""

    def run(*arguments: object) -> None:
        kinds = types_of(arguments)
        load(compile_kernel(function, kinds), kinds)(arguments)

    return run


def _half_kernels(monkeypatch: pytest.MonkeyPatch, native: bool) -> tuple[Callable[..., None], Callable[..., None]]:
    """Kernels compiled anew, with the CPU's conversions or with ours."""
    widen, narrow = simd_types.half_to_float_value, simd_types.float_to_half_value
    monkeypatch.setattr(simd_types, "half_to_float_value", lambda b, value, _: widen(b, value, native))
    monkeypatch.setattr(simd_types, "float_to_half_value", lambda b, value, _: narrow(b, value, native))

    def to_floats(halves: np.ndarray, vectors: np.ndarray, scalars: np.ndarray) -> None:
        for i in range(0, vectors.size, 16):
            v.store(vectors, i, v.halves_to_floats(v.load_shorts(halves, 2 * i)))
            for k in range(16):
                scalars[i + k] = v.half_to_float(v.load_short(halves, 2 * (i + k)))

    def to_halves(floats: np.ndarray, vectors: np.ndarray, scalars: np.ndarray) -> None:
        for i in range(0, floats.size, 16):
            v.store_shorts(vectors, 2 * i, v.floats_to_halves(v.load(floats, i)))
            for k in range(16):
                v.store_short(scalars, 2 * (i + k), v.float_to_half(floats[i + k]))

    return _compiled(to_floats), _compiled(to_halves)


@pytest.mark.parametrize("native", [False, *([True] if simd_types.host_converts_halves() else [])])
def test_every_half_converts_both_ways_as_in_numpy(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    to_floats, to_halves = _half_kernels(monkeypatch, native)
    halves = np.arange(65536, dtype=np.uint16)
    expected = halves.view(np.float16).astype(np.float32)
    vectors, scalars = np.empty_like(expected), np.empty_like(expected)
    to_floats(halves.view(np.uint8), vectors, scalars)
    np.testing.assert_array_equal(vectors, expected)
    np.testing.assert_array_equal(scalars, expected)
    assert np.array_equal(np.signbit(vectors), np.signbit(expected))

    finite = expected[np.isfinite(expected)]
    middles = (finite[:-1].astype(np.float64) + finite[1:]).astype(np.float32) / 2  # ties
    nudged = np.concatenate([np.nextafter(middles, np.float32(s), dtype=np.float32) for s in (-1e9, 1e9)])
    wild = np.array([np.inf, -np.inf, np.nan, 1e-40, 65519, 65520, -65536, 3e38], np.float32)
    floats = np.concatenate([finite, middles, nudged, wild])
    floats = floats[: floats.size // 16 * 16]
    packed, single = np.empty(floats.size, np.uint16), np.empty(floats.size, np.uint16)
    to_halves(floats, packed.view(np.uint8), single.view(np.uint8))
    with np.errstate(over="ignore"):
        wanted = floats.astype(np.float16)
    np.testing.assert_array_equal(packed.view(np.float16), wanted)
    np.testing.assert_array_equal(single.view(np.float16), wanted)


@kernel
def _scale(value: float, out: np.ndarray) -> None:
    out[0] = v.saturating_half(value)


@pytest.mark.parametrize(("value", "expected"), [(1e9, 65504), (-np.inf, -65504), (np.nan, 0), (0.3, np.float16(0.3))])
def test_a_scale_is_always_a_finite_half(value: float, expected: float) -> None:
    out = np.empty(1, np.uint16)
    _scale(float(value), out)
    assert out.view(np.float16)[0] == np.float16(expected)


def test_operations_say_that_they_belong_into_kernels() -> None:
    with pytest.raises(TypeError, match="inside compiled kernels"):
        v.splat(1.0)
