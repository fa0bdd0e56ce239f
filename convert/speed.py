"""How fast this machine encodes and decodes: the figures of ``qconv types --bench``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..quantizers.base import Encoding, ImportanceUse
from .warmup import compile_codec

__all__ = ["Speed", "measure"]

_COLUMNS = 4096
_REPEATS = 5
_SECONDS = 0.3  # spent on each figure, at least one repeat


@dataclass(frozen=True, slots=True)
class Speed:
    """Millions of weights per second on one core, None where the codec has no such kernel."""

    encode: float | None
    encode_importance: float | None
    decode: float


def measure(encoding: Encoding) -> Speed:
    """Time the compiled kernels of ``encoding`` on Gaussian rows of 4096 weights, by the CPU time of this thread, best of five."""
    compile_codec(encoding)
    rows = np.random.default_rng(0).standard_normal((64, _COLUMNS), np.float32) * np.float32(0.02)
    importance = np.exp(np.random.default_rng(1).standard_normal(_COLUMNS)).astype(np.float32)
    encoder = encoding.codec().encode is not None
    plain = encoder and encoding.importance is not ImportanceUse.REQUIRED
    weighted = encoder and encoding.importance is not ImportanceUse.UNUSED
    encoded = np.zeros((len(rows), encoding.row_bytes(_COLUMNS)), np.uint8)
    if encoder:
        encoded = encoding.encode(rows, importance if weighted else None)
    return Speed(
        _rate(rows.size, lambda: encoding.encode(rows)) if plain else None,
        _rate(rows.size, lambda: encoding.encode(rows, importance)) if weighted else None,
        _rate(rows.size, lambda: encoding.decode(encoded)),
    )


def _rate(weights: int, action: Callable[[], object]) -> float:
    best = float("inf")
    stop = time.monotonic() + _SECONDS
    for repeat in range(_REPEATS):
        if repeat and time.monotonic() > stop:
            break
        started = time.thread_time()
        action()
        best = min(best, time.thread_time() - started)
    return weights / best / 1e6
