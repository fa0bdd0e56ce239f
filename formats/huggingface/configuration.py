"""``config.json``: which architecture it asks for, the hyper-parameters by the architecture's names, and GGUF's keys for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...errors import ModelError
from ..architectures import Architecture, Check, Expression, HyperParameter, RuntimeFacts, Value, at_layer, whole
from ..metadata import Field, boolean, float32, uint32
from .json_files import finite_number
from .nested import has_key, look_up_key
from .per_layer import layer_metadata, read_layers, with_full_layer_keys

__all__ = [
    "Values",
    "check_configuration",
    "hyper_parameter_metadata",
    "layer_types",
    "read_hyper_parameters",
    "text_section",
]

LAYERS_MAX = 1024
EXPERTS_MAX = 1024
_INTEGER_MAX = (1 << 31) - 1
_CONFIG = Path("config.json")
_CAPS = {"layers": LAYERS_MAX, "experts": EXPERTS_MAX}

_IRREGULAR = "GGUF holds only the regular pattern of this family; a plugin can describe another one."

Values = Mapping[str, Value]


@dataclass(frozen=True)
class _Absent:
    """Distinguishes a missing key from null."""


_ABSENT = _Absent()


def text_section(architecture: Architecture, config: Mapping[str, Any], path: Path = _CONFIG) -> Mapping[str, Any]:
    """Return the text model's configuration: the section's keys, and the outer ones where it is silent.

    Raises ModelError for numbers per layer that no key of the architecture stands for.
    """
    section = config.get(architecture.config_section) if architecture.config_section else None
    found = MappingProxyType({**config, **section}) if isinstance(section, dict) else config
    return with_full_layer_keys(architecture, found, path)


def read_hyper_parameters(architecture: Architecture, config: Mapping[str, Any], path: Path) -> Values:
    """Return the hyper-parameters that are set or have a default; raises ModelError, with the key, for what makes no sense."""
    values: dict[str, Value] = {}
    for parameter in architecture.hyper_parameters:
        value = _value(parameter, config, values, path)
        if value is not None:
            values[parameter.name] = value
    return MappingProxyType(values | read_layers(architecture, config, values, path))


def _value(
    parameter: HyperParameter, config: Mapping[str, Any], values: Values, path: Path
) -> bool | int | float | None:
    stated = ((key, look_up_key(config, key)) for key in parameter.config)
    key, found = next(((key, value) for key, value in stated if value is not None), ("", _ABSENT))
    if isinstance(found, _Absent) and parameter.counted:
        lists = [(key, config[key]) for key in parameter.counted if isinstance(config.get(key), list | str)]
        key, found = next(((key, len(entries)) for key, entries in lists), ("", _ABSENT))
    if parameter.type == "presence":
        return not isinstance(found, _Absent)
    if not isinstance(found, _Absent):
        return parameter.as_stored(_typed(parameter, key, found, path), values)
    if parameter.required:
        raise ModelError(
            f"lacks {parameter.config[0]}, which gives the model's {parameter.name}",
            path=path,
            remedy="Restore the original config.json.",
        )
    if (
        not isinstance(parameter.default, Expression | None)
        and not parameter.words
        and any(has_key(config, key) for key in parameter.config)
    ):
        raise ModelError(
            f"sets {parameter.config[0]} to null, and the {parameter.name} of this architecture must be a number",
            path=path,
            remedy="Remove the key to use the usual value, or convert to a format that can leave it out.",
        )
    return parameter.usual(values)


def _typed(parameter: HyperParameter, key: str, found: object, path: Path) -> bool | int | float:
    """Return ``found`` as the parameter's type; raises ModelError."""
    least = "above 0" if parameter.minimum == 1 else f"from {parameter.minimum}"
    if parameter.words and isinstance(found, str) and found in parameter.words:
        return parameter.words[found]
    wanted = {"uint32": f"a whole number {least}", "float32": "a number"}.get(parameter.type, "true or false")
    if parameter.words:
        wanted = f"one of {', '.join(parameter.words)}"
    elif parameter.type == "bool":
        if isinstance(found, bool):
            return found
    elif (number := finite_number(found)) is not None:
        if parameter.type == "float32":
            return number
        limit = _CAPS.get(parameter.name, _INTEGER_MAX)
        if number.is_integer() and parameter.minimum <= number <= limit:
            return int(number)
        wanted += f" and at most {limit}"
    shown = repr(found) if len(repr(found)) < 80 else f"{repr(found)[:80]}…"
    raise ModelError(
        f"has {key}: {shown}, which must be {wanted}", path=path, remedy="Restore the original config.json."
    )


def check_configuration(
    architecture: Architecture, config: Mapping[str, Any], values: Values, path: Path
) -> tuple[str, ...]:
    """Return notes for the user; raises ModelError where a configuration value cannot be expressed."""
    notes = []
    for check in architecture.checks:
        if check.holds is not None:
            notes += _layers_violating(check, values, path)
            continue
        value = look_up_key(config, check.config)
        value = check.absent if value is None else value
        expected = _violation(check, value, values)
        if expected is None:
            continue
        sentence = f"{check.config} is {value!r} in the configuration, not {expected}: {check.problem}"
        if check.severity == "error":
            raise ModelError(
                sentence, path=path, remedy="A plugin can describe this variant as an architecture of its own."
            )
        notes.append(sentence)
    _check_layer_types(architecture, config, values, path)
    return tuple(notes)


def _layers_violating(check: Check, values: Values, path: Path) -> list[str]:
    """Return a note where a check does not hold in a layer; raises ModelError where that is an error."""
    assert check.holds is not None
    for layer in range(whole(values, "layers")):
        scope = at_layer(values, layer)
        if (check.where is None or check.where.holds(scope)) and not check.holds.holds(scope):
            sentence = f"{check.config} has another rule for layer {layer} than '{check.holds.text}': {check.problem}"
            if check.severity == "error":
                raise ModelError(sentence, path=path, remedy=_IRREGULAR)
            return [sentence]
    return []


def _violation(check: Check, value: Any, values: Values) -> str | None:
    """Return what the value should have been, or None where it is fine."""
    if value is None:
        return None
    if check.allowed:
        return (
            None
            if (all(item in check.allowed for item in value) if isinstance(value, list) else value in check.allowed)
            else " or ".join("null" if item is None else repr(item) for item in check.allowed)
        )
    if check.equals is not None:
        wanted = check.equals.evaluate(values)
        return None if value == wanted else f"{wanted} ({check.equals.text})"
    assert check.at_least is not None
    wanted = check.at_least.evaluate(values)
    fine = isinstance(value, int | float) and value >= wanted
    return None if fine else f"at least {wanted} ({check.at_least.text})"


def layer_types(architecture: Architecture, values: Values) -> list[str] | None:
    """Return what each layer attends to, as ``layer_types`` says it; None for a family whose layers are all alike."""
    facts = architecture.runtime
    if isinstance(facts, str) or facts.sliding_period is None:
        return None
    period = facts.sliding_period.evaluate(values) if values.get("window") else 1
    layers = range(1, whole(values, "layers") + 1)
    return [_window_word(facts) if layer % period else "full_attention" for layer in layers]


def _window_word(facts: RuntimeFacts) -> str:
    return "chunked_attention" if facts.chunked else "sliding_attention"


def _check_layer_types(architecture: Architecture, config: Mapping[str, Any], values: Values, path: Path) -> None:
    """Refuse patterns of layers with sliding windows, or without rotations, that the architecture's periods do not give; raises ModelError."""
    facts = architecture.runtime
    if isinstance(facts, str):
        return
    types, rotated = config.get("layer_types"), config.get("no_rope_layers")
    expected = layer_types(architecture, values)
    if expected is not None and isinstance(types, list) and types != expected:
        period = 1 + expected.index("full_attention") if "full_attention" in expected else len(expected) + 1
        raise ModelError(
            f"layer_types is not 'full_attention' in every layer {period} of {period} and {_window_word(facts)!r} in the rest",
            path=path,
            remedy=_IRREGULAR,
        )
    layers = range(1, whole(values, "layers") + 1)
    if facts.unrotated_period is not None and isinstance(rotated, list) and rotated:
        period = facts.unrotated_period.evaluate(values)
        if rotated != [int(layer % period != 0) for layer in layers]:
            raise ModelError(
                f"no_rope_layers is not 0 in every layer {period} of {period} and 1 in the rest",
                path=path,
                remedy=_IRREGULAR,
            )


def hyper_parameter_metadata(architecture: Architecture, values: Values) -> dict[str, Field]:
    """Return GGUF's keys, in the order of the architecture's description."""
    found = {
        f"{architecture.gguf}.{key}": _field(parameter, values[parameter.name])
        for parameter in architecture.hyper_parameters
        if parameter.name in values
        for key in parameter.keys
    }
    return found | layer_metadata(architecture, values)


def _field(parameter: HyperParameter, value: Value) -> Field:
    assert not isinstance(value, tuple)
    if parameter.type == "uint32":
        return uint32(int(value))
    return float32(float(value)) if parameter.type == "float32" else boolean(bool(value))
