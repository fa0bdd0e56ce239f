"""Keys of a GGUF file that its family's description does not know, though they may change what the model computes.

What is known follows from the description. What has no effect whatever the family, or not with some values, is in ``keys_without_effect.json``:

===============  ==============================================================================================================
``never``        key → why it has no effect on predictions
``parts``        beginnings of keys about parts that text does not pass
``at``           key → values with which it has no effect
``where_equal``  key → expressions over hyper-parameters, the first that can be computed counting: there it says what is known anyway;
                 ``=`` stands before another key with the same value
===============  ==============================================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from ..errors import ModelError
from .architectures import Architecture, RuntimeFacts, parse_expression
from .metadata import Field
from .window_patterns import PATTERN_KEY, period_of
from .yarn import ATTENTION, BETAS, LOG_MULTIPLIER, note_unread

__all__ = ["note_strange_keys", "strange_keys"]

_LISTED: Final = 6
_ROPE: Final = (
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    ATTENTION,
    "rope.scaling.original_context_length",
    LOG_MULTIPLIER,
    *(key for key, _ in BETAS),
)
# llama.cpp's numbers: none said, softmax, sigmoid, softmax of the chosen; the last is the second where weights are divided by their sum
_GATING_KEY: Final = "expert_gating_func"
_GATINGS: Final = {"softmax": (0, 1), "sigmoid": (0, 2), "softmax_top_k_normalised": (0, 1, 3)}
_NORM_KEY: Final = "expert_weights_norm"


@dataclass(frozen=True)
class _WithoutEffect:
    never: frozenset[str]
    parts: tuple[str, ...]
    at: Mapping[str, tuple[bool | int, ...]]
    where_equal: Mapping[str, tuple[str, ...]]


def note_strange_keys(
    architecture: Architecture, metadata: Mapping[str, Field], values: Mapping[str, object]
) -> tuple[str, ...]:
    """Return a note that names the keys of :func:`strange_keys`, and one of yarn's keys that llama.cpp reads otherwise; none where there are none."""
    found = strange_keys(architecture, metadata, values)
    unread = note_unread(architecture, metadata)
    if not found:
        return unread
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    listed = ", ".join(f"{key} ({_shown(metadata[key])})" for key in found[:_LISTED])
    what = f"qconv does not know what the file says in {listed}{more} for the architecture {architecture.name}"
    return (f"{what}: the results may differ from llama.cpp's", *unread)


def strange_keys(
    architecture: Architecture, metadata: Mapping[str, Field], values: Mapping[str, object]
) -> tuple[str, ...]:
    """Return the keys of the architecture that its description does not know, without those that have no effect.

    A key that is known, but contradicts the description's kind of routing, is among them. ``values`` are the hyper-parameters.
    """
    prefix = f"{architecture.gguf}."
    known = frozenset(_known_keys(architecture))
    return tuple(
        key
        for key, field in metadata.items()
        if key.startswith(prefix)
        and not _is_understood(architecture, key.removeprefix(prefix), field, known, metadata, values)
    )


def _known_keys(architecture: Architecture) -> Iterator[str]:
    """Yield the keys that a description gives a meaning to."""
    for parameter in architecture.hyper_parameters:
        yield from parameter.keys
    for numbers in architecture.per_layer:
        yield from numbers.keys
    if architecture.mark is not None:
        yield architecture.mark.key
    rope = architecture.rope
    if rope is None:
        return
    yield from _ROPE
    if rope.local_theta is not None:
        yield "rope.freq_base_swa"
    if rope.local_dimensions is not None:
        yield "rope.dimension_count_swa"
    if rope.temperature:
        yield "attention.temperature_scale"
    if rope.temperature_length:
        yield "attention.temperature_length"


def _is_understood(
    architecture: Architecture,
    key: str,
    field: Field,
    known: frozenset[str],
    metadata: Mapping[str, Field],
    values: Mapping[str, object],
) -> bool:
    facts = architecture.runtime
    if key in (_GATING_KEY, _NORM_KEY) and isinstance(facts, RuntimeFacts):
        if facts.expert_gating is None:
            return True  # expert_count tells of experts that the family does not have
        if key == _GATING_KEY:
            return isinstance(field.value, int) and field.value in _GATINGS[facts.expert_gating]
        return key in known or bool(field.value) == (facts.expert_gating == "softmax_top_k_normalised")
    table = _without_effect()
    if key == PATTERN_KEY and isinstance(facts, RuntimeFacts) and facts.sliding_period is not None:
        return period_of(field) == facts.sliding_period.evaluate(values)
    if key in known or key in table.never or key.startswith(table.parts):
        return True
    if key.startswith("rope.") and architecture.rope is None:
        return True  # nothing is rotated
    entries = _entries(field)
    if key in table.at and entries <= set(table.at[key]):
        return True
    return key in table.where_equal and entries == {_expected(architecture, table.where_equal[key], metadata, values)}


def _entries(field: Field) -> set[object]:
    """Return the different entries of an array, or the value alone."""
    if isinstance(field.value, np.ndarray):
        return set(np.unique(field.value).tolist())
    return set(field.value) if field.is_array and not isinstance(field.value, bool | int | float) else {field.value}


def _expected(
    architecture: Architecture, sources: tuple[str, ...], metadata: Mapping[str, Field], values: Mapping[str, object]
) -> object:
    """Return what is known anyway, by the first of ``sources`` that tells; None where none does."""
    for source in sources:
        if source.startswith("="):
            field = metadata.get(f"{architecture.gguf}.{source[1:]}")
            return None if field is None or isinstance(field.value, np.ndarray) else field.value
        expression = parse_expression(source)
        if any(isinstance(values.get(name), tuple) for name in expression.names):
            return None  # it differs from layer to layer
        if all(isinstance(values.get(name), int) for name in expression.names):
            try:
                return expression.evaluate(values)
            except ModelError:
                return None
    return None


def _shown(field: Field) -> str:
    value = field.value
    if isinstance(value, np.ndarray | list | tuple):
        return f"{len(value)} entries"
    text = f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


@cache
def _without_effect() -> _WithoutEffect:
    table: dict[str, Any] = json.loads(
        files(__package__).joinpath("keys_without_effect.json").read_text(encoding="utf-8")
    )
    return _WithoutEffect(
        frozenset(table.pop("never")),
        tuple(table.pop("parts")),
        MappingProxyType({key: tuple(values) for key, values in table.pop("at").items()}),
        MappingProxyType({key: tuple(sources) for key, sources in table.pop("where_equal").items()}),
    )
