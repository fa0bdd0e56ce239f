"""Rotary positions back into ``config.json``: the inverse of :mod:`..rope`, in the spelling that every version of transformers reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ....errors import ModelError
from ...architectures import Architecture, Rope, whole
from ...base import Tensor
from ...getters import get_integer, get_string
from ...metadata import Field
from ...yarn import Magnitudes, own_magnitude, yarn_magnitudes
from ..configuration import Values
from ..rope import TEMPERATURE
from ..rope_scalings import STILL, kept_share
from .values import plain_number

__all__ = ["ROPE_KEYS", "rebuild_rope"]

ROPE_KEYS: Final = (
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "rope_local_base_freq",
    "partial_rotary_factor",
    "rotary_emb_base",
    "rotary_pct",
    "original_max_position_embeddings",
)
"""Keys of ``config.json`` that speak of rotary positions."""

_TABLE, _LONG, _SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
_CLOSE = 1e-5  # relative; tables are float32
_DIGITS = 6  # of what float32 numbers have become
# contexts before stretching, and the frequency factors, of the models that have llama3's scaling
_LLAMA3_CONTEXTS = tuple(1 << power for power in range(3, 20))
_LLAMA3_BANDS = ((1.0, 4.0), (1.0, 2.0), (1.0, 8.0), (2.0, 4.0), (1.0, 1.0))


def rebuild_rope(
    architecture: Architecture, values: Values, metadata: Mapping[str, Field], tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return the keys of ``config.json``; empty where the family has no rotary positions. Reads the small tables of frequencies.

    Raises ModelError for a table that the family's configuration cannot express.
    """
    rope = architecture.rope
    if rope is None:
        return {}
    known = _Known(architecture, metadata)
    theta = known.number("freq_base", rope.theta)
    found: dict[str, Any] = {"rope_theta": theta}
    size = rope.dimensions.evaluate(values)
    rotated = known.integer("dimension_count") or int(size * rope.share)
    if rope.share_of is not None:
        found["partial_rotary_factor"] = _share(rotated, rope.share_of.evaluate(values))
    elif rotated != size or rope.share != 1.0:
        found["partial_rotary_factor"] = _share(rotated, size)
    if rope.local_theta is not None:
        found["rope_local_base_freq"] = known.number("freq_base_swa", rope.local_theta)
    if _LONG in tensors and _SHORT in tensors:
        return found | _longrope(known, tensors, whole(values, "context"))
    if "proportional" in rope.scalings:  # younger than all but the last spelling
        table = tensors[_TABLE].rows(0, 1)[0] if _TABLE in tensors else None
        whole_head = {"rope_type": "default", "rope_theta": theta}
        local = {"rope_type": "default", "rope_theta": known.number("freq_base_swa", rope.local_theta or theta)}
        full = whole_head if table is None else {**_proportional(table), "rope_theta": theta}
        return {"rope_parameters": {"full_attention": full, "sliding_attention": local}}
    kind = known.text("scaling.type")
    if kind == "linear":
        scaling: dict[str, Any] | None = _linear(known, architecture, known.number("scaling.factor", 1.0))
    elif kind == "yarn":
        scaling = _yarn(known, architecture, known.number("scaling.factor", 1.0), whole(values, "context"))
    elif _TABLE in tensors:
        scaling = _from_table(
            known, architecture, tensors[_TABLE].rows(0, 1)[0], theta, rotated, whole(values, "context")
        )
    else:
        scaling = None
    temperature = metadata.get(f"{architecture.gguf}.attention.temperature_scale")
    if rope.temperature and scaling is not None and temperature is not None:
        scaling[TEMPERATURE] = plain_number(temperature)
    sections = _sections(rope, metadata.get(f"{architecture.gguf}.rope.dimension_sections"))
    if scaling is not None:
        found["rope_scaling"] = {**scaling, **sections, "type": scaling["rope_type"]}
    if rope.local_theta is not None:
        local = {"rope_type": "default", "rope_theta": found["rope_local_base_freq"]}
        full = {"rope_type": "default", **(scaling or {}), "rope_theta": theta}
        found["rope_parameters"] = {"full_attention": full, "sliding_attention": local}
    elif scaling is None:
        # the spelling since transformers 5, where some families are scaled unless they say that they are not
        share = {key: found[key] for key in ("partial_rotary_factor",) if key in found}
        found["rope_parameters"] = {"rope_type": "default", "rope_theta": theta, **share, **sections}
    return found


def _sections(rope: Rope, field: Field | None) -> dict[str, Any]:
    """Return the pairs that go by time, height and width, in families that have such."""
    if not rope.sections or field is None or not isinstance(field.value, np.ndarray):
        return {}
    return {"mrope_section": field.value[: len(rope.sections)].tolist(), "mrope_interleaved": True}


class _Known:
    """The family's ``rope.*`` keys."""

    def __init__(self, architecture: Architecture, metadata: Mapping[str, Field]) -> None:
        self._prefix = f"{architecture.gguf}.rope."
        self._metadata = metadata

    def number(self, key: str, default: float) -> float:
        field = self._metadata.get(self._prefix + key)
        usable = field is not None and isinstance(field.value, int | float) and not isinstance(field.value, bool)
        return plain_number(field) if field is not None and usable else default

    def integer(self, key: str) -> int | None:
        return get_integer(self._metadata, self._prefix + key)

    def text(self, key: str) -> str | None:
        return get_string(self._metadata, self._prefix + key)

    def has(self, key: str) -> bool:
        return self._prefix + key in self._metadata


def _share(rotated: int, size: int) -> float:
    """Return the part of a head that is rotated, such that the number of dimensions comes out of it again."""
    share = rotated / size
    return share if int(size * share) == rotated else math.nextafter(share, 2.0)


def _linear(known: _Known, architecture: Architecture, factor: float) -> dict[str, Any]:
    multiplier = known.number("scaling.yarn_log_multiplier", 0.0)
    logits = yarn_magnitudes(architecture, factor, 1.0, multiplier, yarn=False).logits
    return {"rope_type": "linear", "factor": factor, **_share_of_logits(factor, logits)}


def _yarn(known: _Known, architecture: Architecture, factor: float, context: int) -> dict[str, Any]:
    original = known.integer("scaling.original_context_length") or max(1, round(context / factor))
    found: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
    }
    for key in ("beta_fast", "beta_slow"):
        if known.has(f"scaling.yarn_{key}"):
            found[key] = known.number(f"scaling.yarn_{key}", 0.0)
    attention, multiplier = known.number("scaling.attn_factor", 1.0), known.number("scaling.yarn_log_multiplier", 0.0)
    return found | _magnitudes(factor, yarn_magnitudes(architecture, factor, attention, multiplier))


def _magnitudes(factor: float, wanted: Magnitudes) -> dict[str, float]:
    """Return the keys with which transformers multiplies by what GGUF says; what it does without keys has none."""
    own, found = own_magnitude(factor), _share_of_logits(factor, wanted.logits)
    if found and math.isclose(wanted.turned, 1.0, rel_tol=_CLOSE):  # as DeepSeek says it
        return {"mscale": found["mscale_all_dim"], **found}
    if not math.isclose(wanted.turned, own, rel_tol=_CLOSE):
        found["attention_factor"] = round(wanted.turned, _DIGITS)
    return found


def _share_of_logits(factor: float, logits: float) -> dict[str, float]:
    own = own_magnitude(factor)
    if own == 1.0 or math.isclose(logits, 1.0, rel_tol=_CLOSE):
        return {}
    return {"mscale_all_dim": round((math.sqrt(logits) - 1.0) / (own - 1.0), _DIGITS)}


def _longrope(known: _Known, tensors: Mapping[str, Tensor], context: int) -> dict[str, Any]:
    original = known.integer("scaling.original_context_length") or context
    scaling: dict[str, Any] = {"rope_type": "longrope", "type": "longrope"}
    for key, name in (("long_factor", _LONG), ("short_factor", _SHORT)):
        scaling[key] = _short_numbers(tensors[name].rows(0, 1)[0])
    stretch = context / original
    usual = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 and original > 1 else 1.0
    attention = known.number("scaling.attn_factor", usual)
    if abs(attention - usual) > _CLOSE * usual:
        scaling["attention_factor"] = attention
    return {"original_max_position_embeddings": original, "rope_scaling": scaling}


def _short_numbers(values: NDArray[np.float32]) -> list[float]:
    return [float(str(value)) for value in values]


def _from_table(
    known: _Known, architecture: Architecture, table: NDArray[np.float32], theta: float, rotated: int, context: int
) -> dict[str, Any]:
    """Return the scaling that gives a table of divisors: yarn's where its betas stand beside it, llama3's, or else the table itself."""
    factor = float(str(np.float32(table.max(initial=1.0))))
    frequencies = theta ** -(np.arange(0, rotated, 2, dtype=np.float64) / rotated)
    attention = known.number("scaling.attn_factor", 1.0)
    if known.has("scaling.yarn_beta_fast"):
        # the slowest pair shows the factor, unless heads are so small that none is slow; attention grows by a tenth of its logarithm
        for each in (factor, float(f"{math.exp(10 * (attention - 1)):.5g}")):
            found = _yarn(known, architecture, each, context) | {"attention_factor": attention}
            for whole in (True, False):
                if _same(table, _yarn_table(found, theta, rotated, whole)):
                    return found if whole else {**found, "truncate": False}
    for low, high in _LLAMA3_BANDS:
        for original in sorted(_LLAMA3_CONTEXTS, key=lambda it: it != 8192):
            turns = original * frequencies / (2 * math.pi)
            kept = kept_share(turns, low, high)
            if _same(table, 1.0 / ((1.0 - kept) / factor + kept)):
                return {
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": original,
                }
    numbers = _short_numbers(table)
    return {
        "rope_type": "longrope",
        "factor": 1.0,
        "long_factor": numbers,
        "short_factor": numbers,
        "attention_factor": attention,
        "original_max_position_embeddings": context,
    }


def _proportional(table: NDArray[np.float32]) -> dict[str, Any]:
    """Return the scaling whose table turns the leading pairs alone; raises ModelError for another table."""
    turned = int((table < STILL / 2).sum())
    factor = float(str(table[0])) if turned else 1.0
    if not _same(table, np.array([factor] * turned + [STILL] * (len(table) - turned))):
        raise ModelError(
            f"the table of frequencies {_TABLE} is none that the proportional rotary scaling gives",
            remedy="Choose another format, which has the table itself.",
        )
    found = {"rope_type": "proportional", "partial_rotary_factor": turned / max(1, len(table))}
    return found | ({"factor": factor} if factor != 1.0 else {})


def _yarn_table(scaling: Mapping[str, Any], theta: float, rotated: int, whole: bool) -> NDArray[np.float64]:
    original = scaling["original_max_position_embeddings"]
    low, high = (
        rotated * math.log(original / (scaling[key] * 2 * math.pi)) / (2 * math.log(theta))
        for key in ("beta_fast", "beta_slow")
    )
    if whole:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    pairs = np.arange(rotated // 2, dtype=np.float64)
    kept = 1.0 - np.clip((pairs - low) / (high - low if high != low else 0.001), 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - kept) / scaling["factor"] + kept))


def _same(one: NDArray[np.float32], other: NDArray[np.float64]) -> bool:
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=_CLOSE, atol=0))
