"""Numbers per layer: out of ``config.json`` and back, and into GGUF's arrays and out of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from ...errors import ModelError
from ..architectures import Architecture, LayerParameter, LayerValues, Value, whole
from ..architectures.per_layer import complete_layers, gather_layers
from ..metadata import Field, ValueType, numbers, uint32
from .json_files import finite_number
from .nested import look_up_key

__all__ = [
    "layer_configuration",
    "layer_metadata",
    "numbered_layers",
    "read_layers",
    "stated_layers",
    "with_full_layer_keys",
]

_ELEMENTS: Final = {"uint32": ValueType.UINT32, "float32": ValueType.FLOAT32, "bool": ValueType.BOOL}
_WORDS: Final = {"uint32": "whole numbers from 0", "float32": "numbers", "bool": "truth values"}
_INTEGER_MAX: Final = (1 << 31) - 1
_REMEDY: Final = "Restore the original config.json."
_OWN: Final = "per_layer_config"


def with_full_layer_keys(architecture: Architecture, config: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """Return a configuration with the architecture's keys for layers that attend to everything, in the place of one object per such layer.

    Newer versions of transformers write ``per_layer_config``. Raises ModelError where that differs among the layers of one kind, or holds other keys.
    """
    stated = config.get(_OWN)
    if not architecture.full_layer_keys or stated is None:
        return config
    kinds = config.get("layer_types")
    if not isinstance(stated, dict) or not isinstance(kinds, list):
        raise ModelError(
            f"has {_OWN}, which must be an object, and needs the list layer_types", path=path, remedy=_REMEDY
        )
    found = {key: value for key, value in config.items() if key != _OWN}
    for key, inner in architecture.full_layer_keys.items():
        of_kind: dict[object, list[object]] = {}
        for layer, kind in enumerate(kinds):
            own = stated.get(str(layer), stated.get(kind) if isinstance(kind, str) else None) or {}
            if not isinstance(own, dict) or not own.keys() <= set(architecture.full_layer_keys.values()):
                raise ModelError(f"has {own!r} in {_OWN} for layer {layer}, which GGUF cannot express", path=path)
            of_kind.setdefault(str(kind), []).append(own.get(inner, config.get(inner)))
        for kind, values in of_kind.items():
            usual = values[0] if kind == "full_attention" else config.get(inner)
            if any(value != usual for value in values):
                raise ModelError(
                    f"has different {inner} in {_OWN} for layers of one kind, which GGUF cannot express", path=path
                )
        found[key] = of_kind.get("full_attention", [config.get(inner)])[0]
    return found


def read_layers(
    architecture: Architecture, config: Mapping[str, Any], values: Mapping[str, Value], path: Path
) -> dict[str, LayerValues]:
    """Return the numbers per layer of a configuration; raises ModelError for a list that is none of this model's layers."""
    if not architecture.per_layer:
        return {}
    layers = whole(values, "layers")

    def stated(parameter: LayerParameter) -> LayerValues | None:
        key = next((key for key in parameter.config if config.get(key) is not None), None)
        if key is None:
            return _numbered(parameter, config, layers, path)
        return _listed(parameter, key, config[key], layers, path)

    found = complete_layers(architecture.per_layer, values, stated)
    for parameter in architecture.per_layer:
        if not parameter.keys and parameter.recovered is None:
            own = gather_layers(parameter.default, {**values, **found}, layers)
            if found[parameter.name] != own:
                raise ModelError(
                    f"{parameter.config[0]} is not what the other hyper-parameters give, and GGUF has no place for it",
                    path=path,
                    remedy="The model cannot be expressed in GGUF as llama.cpp reads it.",
                )
    return found


def _listed(parameter: LayerParameter, key: str, found: object, layers: int, path: Path) -> LayerValues:
    if isinstance(found, list) or (isinstance(found, str) and found not in parameter.words):
        entries: Sequence[object] = found
        if len(entries) != layers:
            raise ModelError(f"has {len(entries)} entries in {key} for {layers} layers", path=path, remedy=_REMEDY)
    else:
        entries = [found] * layers
    return tuple(_number(parameter, key, entry, path) for entry in entries)


def _numbered(parameter: LayerParameter, config: Mapping[str, Any], layers: int, path: Path) -> tuple[int, ...] | None:
    """Return the numbers of all layers out of lists that name them, None where there are no such lists."""
    lists = {key: look_up_key(config, key) for key in parameter.numbered}
    if all(listed is None for listed in lists.values()):
        return None
    found: dict[int, int] = {}
    for key, listed in lists.items():
        for entry in listed if isinstance(listed, list) else [listed]:
            known = isinstance(entry, int) and not isinstance(entry, bool) and 0 < entry <= layers
            if not known or entry in found:
                raise ModelError(
                    f"has {entry!r} in {key}, which must list layers from 1 to {layers}, each of them in one list",
                    path=path,
                    remedy=_REMEDY,
                )
            found[entry] = parameter.numbered[key]
    if len(found) < layers:
        missing = next(layer for layer in range(1, layers + 1) if layer not in found)
        raise ModelError(f"has layer {missing} in none of {', '.join(lists)}", path=path, remedy=_REMEDY)
    return tuple(found[layer] for layer in range(1, layers + 1))


def numbered_layers(parameter: LayerParameter, own: LayerValues) -> dict[str, list[int]]:
    """Return the lists of layers that a configuration has instead of one entry per layer, or beside them, by their keys."""
    return {
        key: [layer for layer, value in enumerate(own, 1) if value == number]
        for key, number in parameter.numbered.items()
    }


def _number(parameter: LayerParameter, key: str, entry: object, path: Path) -> int | float:
    if parameter.words:
        if isinstance(entry, str) and entry in parameter.words:
            return parameter.words[entry]
        wanted = f"one of {', '.join(parameter.words)}"
    elif parameter.type == "bool":
        if isinstance(entry, bool):
            return int(entry)
        wanted = "true or false"
    else:
        number = finite_number(entry)
        if number is not None and parameter.type == "float32":
            return number
        if number is not None and number.is_integer() and 0 <= number <= _INTEGER_MAX:
            return int(number)
        wanted = "a number" if parameter.type == "float32" else f"a whole number from 0 to {_INTEGER_MAX}"
    shown = repr(entry) if len(repr(entry)) < 80 else f"{repr(entry)[:80]}…"
    raise ModelError(f"has {shown} in {key}, which must be {wanted}", path=path, remedy=_REMEDY)


def layer_metadata(architecture: Architecture, values: Mapping[str, Value]) -> dict[str, Field]:
    """Return GGUF's arrays; one number stands for an array of whole numbers that are all the same."""
    found: dict[str, Field] = {}
    for parameter in architecture.per_layer:
        own = values.get(parameter.name)
        if not isinstance(own, tuple):
            continue
        stored = [parameter.as_stored(value) for value in own]
        alone = parameter.type == "uint32" and len(set(stored)) == 1
        field = uint32(int(stored[0])) if alone else numbers(stored, _ELEMENTS[parameter.type])
        found |= {f"{architecture.gguf}.{key}": field for key in parameter.keys}
    return found


def stated_layers(
    architecture: Architecture, parameter: LayerParameter, metadata: Mapping[str, Field], layers: int, path: Path
) -> LayerValues | None:
    """Return what GGUF's metadata say, None where they are silent; raises ModelError for a value that is none of this model's layers."""
    for key in (f"{architecture.gguf}.{key}" for key in parameter.keys):
        field = metadata.get(key)
        if field is None:
            continue
        value: list[Any] = field.value.tolist() if isinstance(field.value, np.ndarray) else [field.value] * layers
        if len(value) != layers or not all(_fits(parameter, item) for item in value):
            raise ModelError(f"{key} must be {_WORDS[parameter.type]}, one for each of {layers} layers", path=path)
        if parameter.type == "float32":
            return tuple(parameter.as_configured(float(str(np.float32(item)))) for item in value)
        return tuple(int(item) for item in value)
    return None


def _fits(parameter: LayerParameter, item: object) -> bool:
    if parameter.type == "float32":
        return isinstance(item, int | float) and not isinstance(item, bool)
    return isinstance(item, int) and 0 <= item <= _INTEGER_MAX and isinstance(item, bool) <= (parameter.type == "bool")


def layer_configuration(architecture: Architecture, values: Mapping[str, Value]) -> dict[str, Any]:
    """Return the lists of ``config.json``, by its preferred keys. Words of one character make a text."""
    found: dict[str, Any] = {}
    for parameter in architecture.per_layer:
        own = values.get(parameter.name)
        if not parameter.config or not isinstance(own, tuple):
            continue
        entries: list[Any] = [parameter.word(value) for value in own] if parameter.words else list(own)
        if parameter.type == "bool" and not parameter.words:
            entries = [bool(value) for value in own]
        texts = parameter.words and all(len(word) == 1 for word in parameter.words)
        found.setdefault(parameter.config[0], "".join(map(str, entries)) if texts else entries)
    return found
