"""Kinds of rotary scaling as GGUF's keys and tables of frequencies.

Formulas: transformers' ``modeling_rope_utils`` documents the kinds; llama.cpp multiplies attention by ``1 + 0.1 ln(factor)`` for yarn by itself, so
that ``rope.scaling.attn_factor`` holds only what the configuration asks for beyond that (:mod:`..yarn`). Most families run with yarn's usual betas only; others become a
table of divisors, ``rope_freqs.weight``, as llama3's scaling does, where the family's graph reads one. No ``rope.scaling.type`` stands beside that table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelError
from ..architectures import Architecture, Rope, whole
from ..metadata import Field, float32, string, uint32
from ..yarn import ATTENTION, BETAS, LOG_MULTIPLIER, Magnitudes, keys_of_magnitudes, note_unread, own_magnitude
from .configuration import Values
from .json_files import finite_number

__all__ = ["SCALINGS", "STILL", "RopeResult", "Source", "kept_share"]

_FACTORS_MAX = 4096
_TABLE = "rope_freqs.weight"
_UNTRUNCATED = "yarn is not truncated in the source: llama.cpp truncates it, and so gives other results"
STILL = 1e30
"""What divides the frequency of a pair that is not rotated, as llama.cpp has it."""


@dataclass(frozen=True)
class RopeResult:
    """GGUF keys, float32 tables by tensor name, and notes."""

    metadata: Mapping[str, Field]
    tables: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """What the scalings read: parameters of one kind of layer, and the whole configuration."""

    architecture: Architecture
    rope: Rope
    parameters: Mapping[str, Any]
    config: Mapping[str, Any]
    values: Values
    path: Path
    theta: float
    rotated: int

    def fail(self, problem: str) -> NoReturn:
        """Raise ModelError."""
        raise ModelError(problem, path=self.path, remedy="Restore the original config.json, or use another checkpoint.")

    def number(self, key: str, default: float | None = None, above: float = 0.0) -> float:
        """Return a finite number greater than ``above``; raises ModelError."""
        value = self.parameters.get(key)
        value = default if value is None else value
        if value is None:
            self.fail(f"the rotary scaling lacks {key!r}")
        number = finite_number(value)
        if number is None or number <= above:
            self.fail(f"the rotary scaling has {key!r}: {value!r}, which must be a number above {above:g}")
        return number

    def original_context(self) -> int:
        """Return the context of the first training, before it was stretched."""
        for place in (self.config, self.parameters):  # transformers' order
            if place.get("original_max_position_embeddings") is not None:
                value = place["original_max_position_embeddings"]
                number = finite_number(value)
                if number is None or not 1 <= number < 1 << 31:
                    self.fail(f"original_max_position_embeddings is {value!r}, which must be a number above 0")
                return int(number)
        return whole(self.values, "context")

    def stretch(self) -> float:
        """Return how many times longer the context became; the configuration's ``factor``, or the ratio of contexts."""
        if self.parameters.get("factor") is not None:
            return self.number("factor")
        return whole(self.values, "context") / self.original_context()

    def factors(self, key: str) -> NDArray[np.float32]:
        """Return a list of positive numbers, one per rotated pair; raises ModelError."""
        found = self.parameters.get(key)
        if not isinstance(found, list) or len(found) > _FACTORS_MAX:
            self.fail(f"the rotary scaling lacks the list {key!r}")
        if len(found) != self.rotated // 2:
            self.fail(f"{key!r} has {len(found)} numbers, half of the {self.rotated} rotated dimensions are needed")
        if not all((number := finite_number(item)) is not None and number > 0 for item in found):
            self.fail(f"{key!r} must hold positive numbers only")
        return np.asarray(found, np.float32)


def _default(source: Source) -> RopeResult:
    return RopeResult({})


def _linear(source: Source) -> RopeResult:
    factor = source.number("factor")
    metadata = {"rope.scaling.type": string("linear"), "rope.scaling.factor": float32(factor)}
    wanted = Magnitudes(1.0, _magnitudes(source, factor).logits)
    _, multiplier = keys_of_magnitudes(source.architecture, factor, wanted, yarn=False)
    if multiplier:
        metadata[LOG_MULTIPLIER] = float32(multiplier)
    return RopeResult(metadata)


def _dynamic(source: Source) -> RopeResult:
    context = whole(source.values, "context")
    note = f"dynamic rotary scaling has no counterpart in GGUF: the model is as the source up to {context} tokens, not beyond"
    return RopeResult({}, notes=(note,))


def _yarn(source: Source) -> RopeResult:
    factor, original = source.stretch(), source.original_context()
    (fast_key, usual_fast), (slow_key, usual_slow) = BETAS
    fast, slow = source.number("beta_fast", usual_fast), source.number("beta_slow", usual_slow)
    truncate = source.parameters.get("truncate") is not False
    wanted = _magnitudes(source, factor)
    metadata = {
        "rope.scaling.original_context_length": uint32(original),
        fast_key: float32(fast),
        slow_key: float32(slow),
    }
    usual = (fast, slow, truncate) == (usual_fast, usual_slow, True)
    if not usual and source.rope.frequency_table and not source.rope.log_multiplier:
        metadata[ATTENTION] = float32(wanted.turned)
        return RopeResult(metadata, {_TABLE: _yarn_divisors(source, factor, original, (fast, slow), truncate)})
    metadata |= {"rope.scaling.type": string("yarn"), "rope.scaling.factor": float32(factor)}
    attention, multiplier = keys_of_magnitudes(source.architecture, factor, wanted)
    if attention != 1.0:
        metadata[ATTENTION] = float32(attention)
    if multiplier:
        metadata[LOG_MULTIPLIER] = float32(multiplier)
    prefixed = {f"{source.architecture.gguf}.{key}": field for key, field in metadata.items()}
    notes = note_unread(source.architecture, prefixed)
    if not truncate:
        notes += (_UNTRUNCATED,)
    return RopeResult(metadata, notes=notes)


def _magnitudes(source: Source, factor: float) -> Magnitudes:
    """Return what transformers multiplies by in this configuration."""
    mscale, share = (0.0 if source.parameters.get(key) is None else finite_number(source.parameters[key]) for key in ("mscale", "mscale_all_dim"))  # fmt: skip
    if mscale is None or share is None:
        source.fail("the rotary scaling has mscale and mscale_all_dim that are not both numbers")
    turned = own_magnitude(factor)
    if source.parameters.get("attention_factor") is not None:
        turned = source.number("attention_factor")
    elif mscale and share:
        turned = own_magnitude(factor, mscale) / own_magnitude(factor, share)
    if turned <= 0:
        source.fail(f"mscale {mscale:g} and mscale_all_dim {share:g} make cosines and sines vanish")
    return Magnitudes(turned, own_magnitude(factor, share) ** 2 if source.rope.log_multiplier and share else 1.0)


def _yarn_divisors(
    source: Source, factor: float, original: int, betas: tuple[float, float], truncate: bool
) -> NDArray[np.float32]:
    """Return what divides each pair's frequency: 1 above ``betas[0]`` turns over the original context, the factor below ``betas[1]``."""
    low, high = (
        source.rotated * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(source.theta)) for turns in betas
    )
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, source.rotated - 1)
    pairs = np.arange(source.rotated // 2, dtype=np.float64)
    ramp = np.clip((pairs - low) / (high - low if high != low else 0.001), 0.0, 1.0)
    return _divisors(1.0 - ramp, factor)


def _divisors(kept: NDArray[np.float64], factor: float) -> NDArray[np.float32]:
    """Return the divisors for pairs that keep the share ``kept`` of their frequency, the rest being divided by the factor."""
    return (1.0 / ((1.0 - kept) / factor + kept)).astype(np.float32)


def _llama3(source: Source) -> RopeResult:
    """Divide low frequencies by the factor, keep high ones, and blend between: one divisor per pair."""
    factor = source.number("factor")
    low, high = source.number("low_freq_factor"), source.number("high_freq_factor")
    if high < low:
        source.fail(f"high_freq_factor {high:g} must not be below low_freq_factor {low:g}")
    original = source.original_context()
    frequencies = source.theta ** -(np.arange(0, source.rotated, 2, dtype=np.float64) / source.rotated)
    turns = original * frequencies / (2 * math.pi)  # of each pair over the original context
    return RopeResult({}, {_TABLE: _divisors(kept_share(turns, low, high), factor)})


def kept_share(turns: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Return which share of its frequency each pair keeps in llama3's scaling: none below ``low`` turns, all from ``high`` on."""
    if high == low:  # as in Llama 4: nothing is blended
        return (turns >= low).astype(np.float64)
    return np.clip((turns - low) / (high - low), 0.0, 1.0)


def _proportional(source: Source) -> RopeResult:
    """Rotate the leading pairs of the whole head's, divided by the factor; the table holds the others still."""
    parameters = source.parameters or {"rope_type": "proportional", "partial_rotary_factor": source.rope.share}
    share, factor = finite_number(parameters.get("partial_rotary_factor", 1.0)), source.number("factor", 1.0)
    if parameters.get("rope_type", "default") == "default":
        share, factor = 1.0, 1.0
    if share is None or not 0 <= share <= 1:
        source.fail("partial_rotary_factor of the proportional rotary scaling must be from 0 to 1")
    pairs, turned = source.rotated // 2, int(share * source.rotated // 2)
    return RopeResult({}, {_TABLE: np.asarray([factor] * turned + [STILL] * (pairs - turned), np.float32)})


def _longrope(source: Source) -> RopeResult:
    original = source.original_context()
    stretch = source.stretch()
    attention = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 and original > 1 else 1.0
    if source.parameters.get("attention_factor") is not None:
        attention = source.number("attention_factor")
    return RopeResult(
        {
            "rope.scaling.type": string("longrope"),
            "rope.scaling.original_context_length": uint32(original),
            "rope.scaling.attn_factor": float32(attention),
        },
        {
            "rope_factors_long.weight": source.factors("long_factor"),
            "rope_factors_short.weight": source.factors("short_factor"),
        },
    )


SCALINGS: Final = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
    "proportional": _proportional,
}
