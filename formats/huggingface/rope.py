"""Rotary positions: every spelling of their configuration to GGUF's keys and frequency tables.

Configurations before transformers 5 have ``rope_theta`` and ``rope_scaling``, later ones ``rope_parameters`` with both, perhaps once per kind
of layer. A kind of scaling that the architecture's runtime does not honour is an error, never dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import ModelError
from ..architectures import Architecture, Rope
from ..metadata import ValueType, float32, numbers, uint32
from .configuration import Values
from .json_files import finite_number
from .rope_scalings import SCALINGS, RopeResult, Source

__all__ = ["TEMPERATURE", "RopeResult", "read_rope"]

_FULL, _SLIDING = "full_attention", "sliding_attention"
_ALIASES = {"su": "longrope", "none": "default"}
_SECTIONS = 3  # time, height, width
TEMPERATURE = "llama_4_scaling_beta"
"""By what queries grow beyond the original context."""


def read_rope(architecture: Architecture, config: Mapping[str, Any], values: Values, path: Path) -> RopeResult:
    """Return GGUF's account of the rotary positions; raises ModelError for a kind of scaling that the architecture cannot express."""
    rope = architecture.rope
    if rope is None:
        return RopeResult({})
    parameters, local = _parameters(config, path)
    theta = _theta(_stated(parameters, config, "rope_theta", "rotary_emb_base", "global_rope_theta"), rope.theta, path)
    rotated = _rotated(rope, parameters, config, values, path)
    source = Source(architecture, rope, parameters, config, values, path, theta, rotated)
    kind = _kind(parameters, rope, path) if parameters else rope.usual
    if kind == "dynamic" and parameters.get("alpha") is not None:  # Hunyuan's: a larger base, whatever the length
        theta *= source.number("alpha") ** (rotated / max(1, rotated - 2))
        kind = "default"
    if kind == "default":
        kind = rope.usual  # its table says that there is no scaling
    result = SCALINGS[kind](source)
    metadata = {"rope.dimension_count": uint32(rotated), "rope.freq_base": float32(theta), **result.metadata}
    if rope.temperature and source.parameters.get(TEMPERATURE) is not None:
        metadata["rope.scaling.original_context_length"] = uint32(source.original_context())
        metadata["attention.temperature_scale"] = float32(source.number(TEMPERATURE))
        if rope.temperature_length:
            metadata["attention.temperature_length"] = uint32(source.original_context())
    if rope.sections:
        metadata["rope.dimension_sections"] = numbers(_sections(source), ValueType.INT32)
    if rope.local_dimensions is not None:
        metadata["rope.dimension_count_swa"] = uint32(rope.local_dimensions.evaluate(values))
    if rope.local_theta is not None:
        metadata["rope.freq_base_swa"] = float32(_local_theta(rope, local, config, path))
    elif local is not None and dict(local) != dict(parameters):
        source.fail("sliding-window layers have rotary parameters of their own, which this architecture does not know")
    return RopeResult(
        {f"{architecture.gguf}.{key}": value for key, value in metadata.items()}, result.tables, result.notes
    )


def _sections(source: Source) -> list[int]:
    """Return how many pairs go by time, height, width, and GGUF's fourth; raises ModelError where they are not half of what is rotated."""
    found = source.parameters.get("mrope_section")
    found = list(source.rope.sections) if found is None else found
    if (
        not isinstance(found, list)
        or len(found) != _SECTIONS
        or not all(type(size) is int and size >= 0 for size in found)
    ):
        source.fail(f"mrope_section is {found!r}, which must be {_SECTIONS} whole numbers")
    if sum(found) != source.rotated // 2:
        source.fail(f"mrope_section {found} has {sum(found)} pairs, of {source.rotated // 2} that are rotated")
    return [*found, 0]


def _parameters(config: Mapping[str, Any], path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """Return the parameters of full-attention layers, and those of sliding-window layers where they are apart."""
    found = config.get("rope_parameters")
    if found is None:
        found = config.get("rope_scaling")
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise ModelError(f"the rotary parameters are {found!r}, which must be an object", path=path)
    if _FULL in found or _SLIDING in found:
        inner = [{} if found.get(key) is None else found[key] for key in (_FULL, _SLIDING)]
        if not all(isinstance(item, dict) for item in inner):
            raise ModelError("the rotary parameters of each kind of layer must be objects", path=path)
        return inner[0], inner[1]
    return found, None


def _stated(parameters: Mapping[str, Any], config: Mapping[str, Any], key: str, *older: str) -> object:
    """Return what the configuration says under ``key``, or under one of the older names that some families have for it."""
    if key in parameters:
        return parameters[key]
    return next((config[name] for name in (key, *older) if name in config), None)


def _theta(value: object, default: float, path: Path) -> float:
    if value is None:
        return default
    number = finite_number(value)
    if number is None or number <= 1:
        raise ModelError(f"rope_theta is {value!r}, which must be a number above 1", path=path)
    return number


def _local_theta(rope: Rope, local: Mapping[str, Any] | None, config: Mapping[str, Any], path: Path) -> float:
    local = {} if local is None else local
    kind = local.get("rope_type", local.get("type", "default"))
    if kind != "default":
        raise ModelError(
            f"sliding-window layers have the rotary scaling {kind!r}, which GGUF cannot express", path=path
        )
    assert rope.local_theta is not None
    stated = local.get("rope_theta", config.get("rope_local_base_freq", config.get("local_rope_theta")))
    return _theta(stated, rope.local_theta, path)


def _rotated(rope: Rope, parameters: Mapping[str, Any], config: Mapping[str, Any], values: Values, path: Path) -> int:
    size = rope.dimensions.evaluate(values)
    if "proportional" in rope.scalings:
        return size  # the part that is not rotated shows in the table
    share = _stated(parameters, config, "partial_rotary_factor", "rotary_pct")
    if share is not None and rope.share_of is not None:
        _check_share(share, size, rope.share_of.evaluate(values), path)
        share = None
    number = rope.share if share is None else finite_number(share)
    if number is None or not 0 < number <= 1:
        raise ModelError(f"partial_rotary_factor is {share!r}, which must be above 0 and at most 1", path=path)
    rotated = int(size * number)
    if rotated % 2 or not rotated:
        raise ModelError(
            f"{rotated} of {size} dimensions of a head are rotated, which must be an even number", path=path
        )
    if rotated != size and not rope.partial:
        raise ModelError(f"partial_rotary_factor is {share!r}, but this architecture rotates whole heads", path=path)
    return rotated


def _check_share(share: object, size: int, whole: int, path: Path) -> None:
    """Refuse another share of a whole than the dimensions that are rotated; raises ModelError."""
    number = finite_number(share)
    if number is None or not 0 < number <= 1 or int(whole * number) != size:
        raise ModelError(
            f"partial_rotary_factor is {share!r}, which is not the {size} rotated dimensions of {whole}",
            path=path,
            remedy="Restore the original config.json.",
        )


def _kind(parameters: Mapping[str, Any], rope: Rope, path: Path) -> str:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    kind = _ALIASES.get(kind, kind) if isinstance(kind, str) else repr(kind)
    if kind != "default" and (kind not in rope.scalings or kind not in SCALINGS):
        raise ModelError(
            f"the rotary scaling {kind!r} is not known for this architecture",
            path=path,
            remedy=f"Known here: {', '.join(('default', *rope.scalings))}.",
        )
    return kind
