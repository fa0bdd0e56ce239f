"""``config.json``: the source's own, corrected where the metadata say otherwise, or written anew by the family's description."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ....errors import ModelError
from ...architectures import Architecture, Check, HyperParameter
from ...architectures.names import fill_name
from ...base import Model
from ...metadata import Field
from ..configuration import Values, hyper_parameter_metadata, layer_types, read_hyper_parameters
from ..nested import has_key, set_key
from ..per_layer import layer_configuration, numbered_layers, with_full_layer_keys
from ..rope import read_rope
from .family import Family
from .rope import ROPE_KEYS, rebuild_rope

__all__ = ["rebuild_configuration", "special_ids", "with_dtype"]

_IDS: Final = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
_ROPE_FACTS: Final = ("dimension_count", "freq_base", "freq_base_swa", "scaling.type", "scaling.factor")
_DTYPES: Final = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_DTYPE_KEYS: Final = ("dtype", "torch_dtype")


def rebuild_configuration(
    family: Family, model: Model, source: str | None, same_tokenizer: bool
) -> tuple[str, tuple[str, ...]]:
    """Return the text of ``config.json`` without a dtype of its own choice, and notes.

    ``source`` is the text that the source had, if known; it comes back to the letter where nothing contradicts it. ``same_tokenizer`` says that the
    special tokens are the source's too.
    """
    original = _parsed(source)
    if original is not None and source is not None:
        try:
            found, changed = _corrected(original, family, model, same_tokenizer)
            if not changed:
                return source, ()
            listed = ", ".join(sorted(changed))
            return _text(found), (f"config.json is the source's but for {listed}, which follow the metadata",)
        except ModelError:
            pass  # it is none that this family can read, so that nothing of it can be believed
    return _text(_written(family, model)), ()


def _parsed(text: str | None) -> dict[str, Any] | None:
    try:
        found = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _text(config: Mapping[str, Any]) -> str:
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


# --- written anew -----------------------------------------------------------------------------------------------------------------


def _written(family: Family, model: Model) -> dict[str, Any]:
    architecture, values = family.architecture, family.values
    found: dict[str, Any] = {
        "architectures": [architecture.classes[0]],
        "model_type": architecture.model_types[0],
    }
    for parameter in architecture.hyper_parameters:
        if parameter.config and parameter.type != "presence" and not has_key(found, parameter.config[0]):
            set_key(found, parameter.config[0], _value(parameter, values))
    for check in architecture.checks:
        if check.holds is None and (not has_key(found, check.config) or check.at_least is not None):
            set_key(found, check.config, _checked(check, values))
    for entry, layer in family.entries:
        if fill_name(entry.gguf[0], layer) in model.tensors:
            found |= entry.configuration
    if isinstance(found["architectures"], str):  # a class that an entry asks for
        found["architectures"] = [found["architectures"]]
    types = layer_types(architecture, values)
    found |= {"layer_types": types} if types is not None else {}
    found |= layer_configuration(architecture, values)
    for key, layers in _numbered(architecture, values).items():
        set_key(found, key, layers)
    found |= rebuild_rope(architecture, values, model.metadata, model.tensors)
    found |= special_ids(model.metadata)
    return found


def _value(parameter: HyperParameter, values: Values) -> bool | int | float | str | None:
    """Return what the configuration says; null for what the family does without."""
    value = values.get(parameter.name)
    assert not isinstance(value, tuple)
    if parameter.type == "uint32" and value is not None and value < parameter.minimum:
        return None
    return parameter.as_configured(value, values)


def _checked(check: Check, values: Values) -> bool | int | float | str | None:
    """Return the value that passes a check; null for a limit, since runtimes of GGUF know none."""
    if check.allowed:
        return check.allowed[0]
    return check.equals.evaluate(values) if check.equals is not None else None


def special_ids(metadata: Mapping[str, Field]) -> dict[str, Any]:
    """Return the ids of special tokens under the configuration's names, null for none: transformers has defaults that may be no token."""
    return {name: metadata[key].value if key in metadata else None for name, key in _IDS.items()}


# --- corrected --------------------------------------------------------------------------------------------------------------------


def _corrected(
    original: Mapping[str, Any], family: Family, model: Model, same_tokenizer: bool
) -> tuple[dict[str, Any], set[str]]:
    """Return the source's configuration as the metadata have it, and the keys that differ; raises ModelError where it cannot be read."""
    architecture = family.architecture
    config, changed = _flattened(original, architecture)
    config = dict(with_full_layer_keys(architecture, config, model.path))
    expected = read_hyper_parameters(architecture, config, model.path)
    stated = hyper_parameter_metadata(architecture, family.values)
    derived = hyper_parameter_metadata(architecture, expected)
    for parameter in architecture.hyper_parameters:
        keys = [f"{architecture.gguf}.{key}" for key in parameter.keys]
        if parameter.type == "presence" or not parameter.config:
            continue
        if keys:
            differs = any(not _equal(stated.get(key), derived.get(key)) for key in keys)
        else:
            differs = parameter.type == "bool" and model.tensors != {} and _differs(parameter, family, expected)
        if differs:
            _set(config, parameter, _value(parameter, family.values))
            changed.add(parameter.config[0])
    layers = expected.get("layers")
    if layers != family.values.get("layers"):
        for key in [key for key, value in config.items() if isinstance(value, list) and len(value) == layers]:
            del config[key]  # one entry per layer: transformers has a rule for what is absent
            changed.add(key)
    changed |= _correct_layers(config, family, stated, derived)
    changed |= _correct_rope(config, architecture, expected, family, model)
    if not same_tokenizer:
        for key, value in special_ids(model.metadata).items():
            if value is not None and config.get(key) != value:
                config[key] = value
                changed.add(key)
    return config, changed


def _correct_layers(
    config: dict[str, Any], family: Family, stated: Mapping[str, Field], derived: Mapping[str, Field]
) -> set[str]:
    """Write the lists anew where GGUF's arrays are not those that the configuration gives."""
    architecture, changed = family.architecture, set()
    lists = layer_configuration(architecture, family.values)
    alike = {
        parameter.name: all(_equal(stated.get(key), derived.get(key)) for key in keys)
        for parameter in architecture.per_layer
        if (keys := [f"{architecture.gguf}.{key}" for key in parameter.keys])
    }
    for parameter in architecture.per_layer:
        known = alike.get(parameter.name, all(alike.values()))
        if parameter.config and not known:
            key = next((key for key in parameter.config if key in config), parameter.config[0])
            config[key] = lists[parameter.config[0]]
            changed.add(key)
            for other, layers in _numbered(architecture, family.values).items():
                if other in parameter.numbered:
                    set_key(config, other, layers)
                    changed.add(other)
    return changed


def _numbered(architecture: Architecture, values: Values) -> dict[str, list[int]]:
    """Return the lists that name layers by their numbers."""
    found: dict[str, list[int]] = {}
    for parameter in architecture.per_layer:
        own = values.get(parameter.name)
        if isinstance(own, tuple):
            found |= numbered_layers(parameter, own)
    return found


def _flattened(original: Mapping[str, Any], architecture: Architecture) -> tuple[dict[str, Any], set[str]]:
    """Return the configuration of the text model alone, and what that changed."""
    section = original.get(architecture.config_section) if architecture.config_section else None
    if not isinstance(section, dict):
        return dict(original), set()
    outer = {key: original[key] for key in (*_DTYPE_KEYS, *_IDS, "tie_word_embeddings") if key in original}
    known = [name for name in architecture.model_types if name == section.get("model_type")]
    found = {
        **outer,
        **section,
        "architectures": [architecture.classes[0]],
        "model_type": (known or list(architecture.model_types))[0],
    }
    return found, {str(architecture.config_section)}


def _equal(one: Field | None, other: Field | None) -> bool:
    if one is None or other is None:
        return one is other
    left, right = one.value, other.value
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return bool(np.array_equal(np.asarray(left), np.asarray(right)))
    if isinstance(left, int | float) and isinstance(right, int | float):
        return bool(np.float32(left) == np.float32(right)) if isinstance(left, float) else left == right
    return isinstance(left, str) and left == right


def _differs(parameter: HyperParameter, family: Family, expected: Values) -> bool:
    """Whether a truth value that GGUF has no key for shows in the tensors, and differently there."""
    shows = any(entry.omitted_when == parameter.name for entry in family.architecture.tensors)
    return shows and family.values.get(parameter.name) != expected.get(parameter.name)


def _set(config: dict[str, Any], parameter: HyperParameter, value: object) -> None:
    """Set a hyper-parameter under the key that the configuration uses."""
    set_key(config, next((key for key in parameter.config if has_key(config, key)), parameter.config[0]), value)


def _correct_rope(
    config: dict[str, Any], architecture: Architecture, expected: Values, family: Family, model: Model
) -> set[str]:
    """Write the rotary positions anew where the metadata have others than the configuration gives."""
    prefix = f"{architecture.gguf}.rope."
    values = {**family.values, "context": expected["context"]} if "context" in expected else family.values
    derived = read_rope(architecture, config, values, model.path).metadata
    stated = {key for key in model.metadata if key.removeprefix(prefix) in _ROPE_FACTS and key.startswith(prefix)}
    if all(_equal(model.metadata.get(key), derived.get(key)) for key in {*derived, *stated}):
        return set()
    for key in ROPE_KEYS:
        config.pop(key, None)
    rebuilt = rebuild_rope(architecture, family.values, model.metadata, model.tensors)
    config |= rebuilt
    return set(rebuilt)


def with_dtype(text: str, encoding: str, recorded: str | None) -> str:
    """Return the configuration with the dtype that most weights have, unless it is the source's own word on the same weights."""
    name = _DTYPES.get(encoding)
    config = _parsed(text)
    if name is None or config is None or encoding == recorded:
        return text
    key = next((key for key in _DTYPE_KEYS if key in config), "torch_dtype")
    if config.get(key) == name:
        return text
    return _text({**config, key: name})
