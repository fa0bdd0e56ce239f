"""GGUF's keys back to an architecture's hyper-parameters by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ....errors import ModelError
from ...architectures import (
    Architecture,
    Condition,
    Expression,
    HyperParameter,
    LayerParameter,
    LayerValues,
    TensorMap,
    Value,
    at_layer,
    whole,
)
from ...architectures.names import fill_name
from ...architectures.per_layer import complete_layers, gather_layers
from ...base import Model, Tensor
from ...metadata import Field, ValueType
from ..configuration import Values
from ..per_layer import stated_layers

__all__ = ["plain_number", "recover_values", "recovered_value", "stated_value"]


def plain_number(field: Field) -> float:
    """Return a number as JSON should show it: a float32 by its shortest digits (``1e-05``)."""
    value = field.value
    assert isinstance(value, int | float)
    if isinstance(value, int):
        return value
    return float(str(np.float32(value))) if field.type is ValueType.FLOAT32 else value


def stated_value(
    architecture: Architecture, parameter: HyperParameter, metadata: Mapping[str, Field], path: Path
) -> bool | int | float | None:
    """Return what the metadata say about a hyper-parameter, or None.

    Raises ModelError for a value that differs from layer to layer, and for one of another type.
    """
    for key in parameter.keys:
        field = metadata.get(f"{architecture.gguf}.{key}")
        if field is None:
            continue
        value = field.value
        if isinstance(value, np.ndarray):
            different = np.unique(value)
            if len(different) != 1:
                raise ModelError(
                    f"{architecture.gguf}.{key} differs from layer to layer, which {architecture.name} in Hugging Face's form cannot say",
                    path=path,
                )
            value = different[0].item()
            field = Field(field.element or field.type, value)
        if parameter.type == "bool":
            if not isinstance(value, bool):
                raise ModelError(f"{architecture.gguf}.{key} should be true or false", path=path)
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ModelError(f"{architecture.gguf}.{key} should be a number", path=path)
        return plain_number(field)
    return None


def recover_values(architecture: Architecture, model: Model, source: Mapping[str, Any] | None = None) -> Values:
    """Return the hyper-parameters of a model in canonical form.

    What the metadata do not state follows from shapes, from tensors that are absent (``tied``), from the description's ``recovered``, or is the
    family's default. ``source`` is the source's configuration, where it is known, for what follows from nothing else. Raises ModelError for what is needed
    and cannot be found.
    """
    values: dict[str, Value] = {}
    later = [it for it in architecture.hyper_parameters if (it.recovered or it.from_layers) and not it.keys]
    for parameter in architecture.hyper_parameters:
        if parameter in later:
            continue
        value = stated_value(architecture, parameter, model.metadata, model.path)
        value = _measured(architecture, parameter, model.tensors) if value is None else value
        value = _tied(architecture, parameter, model.tensors) if value is None else value
        value = _from_source(parameter, source) if value is None else value
        if value is None:
            value = parameter.usual(values)
        if value is not None:
            values[parameter.name] = value
        elif parameter.required:
            keys = " or ".join(f"{architecture.gguf}.{key}" for key in parameter.keys) or parameter.name
            raise ModelError(
                f"the metadata lack {keys}, which gives the model's {parameter.name}",
                path=model.path,
                remedy="Set it with --override-kv.",
            )
    values |= _layers(architecture, values, model)
    values |= _omitted(architecture, values, model.tensors)
    for parameter in later:
        found = recovered_value(parameter, values)
        if found is not None:
            values[parameter.name] = found
    values |= _again(architecture, values)
    names = (*(it.name for it in architecture.hyper_parameters), *(it.name for it in architecture.per_layer))
    return MappingProxyType({name: values[name] for name in names if name in values})


def recovered_value(parameter: HyperParameter, values: Mapping[str, Value]) -> bool | int | float | None:
    """Return what GGUF has no key for out of what it has, the numbers of its layers included; the default where no layer tells."""
    if isinstance(parameter.recovered, Condition):
        return parameter.recovered.holds(values)
    if isinstance(parameter.recovered, Expression):
        return parameter.recovered.evaluate(values)
    found = parameter.from_layers.find(values) if parameter.from_layers is not None else None
    return parameter.usual(values) if found is None else found


def _omitted(architecture: Architecture, values: Mapping[str, Value], tensors: Mapping[str, Tensor]) -> dict[str, bool]:
    """Return the truth values that show in tensors of layers: whether those that they leave out are absent from every layer that could have them."""
    found: dict[str, bool] = {}
    for entry in architecture.tensors if tensors else ():
        if entry.omitted_when is None or not entry.per_layer:
            continue
        layers = (layer for layer in range(whole(values, "layers")) if _applies(entry, values, layer))
        there = [fill_name(entry.gguf[0], layer) in tensors for layer in layers]
        if there:
            found[entry.omitted_when] = not any(there) and found.get(entry.omitted_when, True)
    return found


def _applies(entry: TensorMap, values: Mapping[str, Value], layer: int) -> bool:
    return entry.when is None or entry.when.holds(at_layer(values, layer))


def _layers(architecture: Architecture, values: Mapping[str, Value], model: Model) -> dict[str, LayerValues]:
    """Return the numbers per layer as far as they follow without what is recovered of the whole model."""

    def stated(parameter: LayerParameter) -> LayerValues | None:
        if parameter.recovered is not None and not parameter.keys:
            return (0,) * layers  # until the others are known
        return stated_layers(architecture, parameter, model.metadata, layers, model.path)

    layers = whole(values, "layers") if architecture.per_layer else 0
    found = complete_layers(architecture.per_layer, values, stated)
    for parameter in architecture.per_layer:
        if parameter.recovered is not None and not parameter.keys:
            found[parameter.name] = gather_layers(parameter.recovered, {**values, **found}, layers)
    return found | _again(architecture, {**values, **found})


def _again(architecture: Architecture, values: Mapping[str, Value]) -> dict[str, LayerValues]:
    """Return the numbers per layer, those that nothing states computed anew."""

    def known(parameter: LayerParameter) -> LayerValues | None:
        found = values[parameter.name]
        assert isinstance(found, tuple)
        return found if parameter.keys or parameter.recovered is not None else None

    return complete_layers(architecture.per_layer, values, known)


def _measured(architecture: Architecture, parameter: HyperParameter, tensors: Mapping[str, Tensor]) -> int | None:
    measured = parameter.measured
    if measured is None:
        return None
    for entry in architecture.tensors:
        if entry.hf == (measured.tensor,) and entry.transform == "copy" and entry.gguf[0] in tensors:
            return tensors[entry.gguf[0]].shape[measured.axis]
    return None


def _from_source(parameter: HyperParameter, source: Mapping[str, Any] | None) -> int | None:
    """Return what the source's configuration says of a number that GGUF has no key for."""
    found = next((source[key] for key in parameter.config if key in source), None) if source else None
    usable = parameter.from_source and isinstance(found, int) and not isinstance(found, bool)
    return found if usable and found is not None and found >= parameter.minimum else None


def _tied(architecture: Architecture, parameter: HyperParameter, tensors: Mapping[str, Tensor]) -> bool | None:
    """Return whether the tensor that the parameter leaves out is absent; None where it leaves out none, or there are no weights."""
    if not tensors:
        return None
    for entry in architecture.tensors:
        if entry.omitted_when == parameter.name and not entry.per_layer:
            return entry.gguf[0] not in tensors
    return None
