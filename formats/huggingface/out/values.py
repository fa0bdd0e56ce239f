"""GGUF's keys back to an architecture's hyper-parameters by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ....errors import ModelError
from ...architectures import Architecture, Condition, Expression, HyperParameter
from ...base import Model, Tensor
from ...metadata import Field, ValueType
from ..configuration import Values

__all__ = ["plain_number", "recover_values", "stated_value"]

Value = bool | int | float


def plain_number(field: Field) -> float:
    """Return a number as JSON should show it: a float32 by its shortest digits (``1e-05``)."""
    value = field.value
    assert isinstance(value, int | float)
    if isinstance(value, int):
        return value
    return float(str(np.float32(value))) if field.type is ValueType.FLOAT32 else value


def stated_value(
    architecture: Architecture, parameter: HyperParameter, metadata: Mapping[str, Field], path: Path
) -> Value | None:
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


def recover_values(architecture: Architecture, model: Model) -> Values:
    """Return the hyper-parameters of a model in canonical form.

    What the metadata do not state follows from shapes, from tensors that are absent (``tied``), from the description's ``recovered``, or is the
    family's default. Raises ModelError for what is needed and cannot be found.
    """
    values: dict[str, Value] = {}
    later = [it for it in architecture.hyper_parameters if it.recovered is not None and not it.keys]
    for parameter in architecture.hyper_parameters:
        if parameter in later:
            continue
        value = stated_value(architecture, parameter, model.metadata, model.path)
        value = _measured(architecture, parameter, model.tensors) if value is None else value
        value = _tied(architecture, parameter, model.tensors) if value is None else value
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
    for parameter in later:
        if isinstance(parameter.recovered, Condition):
            values[parameter.name] = parameter.recovered.holds(values)
        elif isinstance(parameter.recovered, Expression):
            values[parameter.name] = parameter.recovered.evaluate(values)
    return MappingProxyType({it.name: values[it.name] for it in architecture.hyper_parameters if it.name in values})


def _measured(architecture: Architecture, parameter: HyperParameter, tensors: Mapping[str, Tensor]) -> int | None:
    measured = parameter.measured
    if measured is None:
        return None
    for entry in architecture.tensors:
        if entry.hf == (measured.tensor,) and entry.transform == "copy" and entry.gguf[0] in tensors:
            return tensors[entry.gguf[0]].shape[measured.axis]
    return None


def _tied(architecture: Architecture, parameter: HyperParameter, tensors: Mapping[str, Tensor]) -> bool | None:
    """Return whether the tensor that the parameter leaves out is absent; None where it leaves out none, or there are no weights."""
    if not tensors:
        return None
    for entry in architecture.tensors:
        if entry.omitted_when == parameter.name and not entry.per_layer:
            return entry.gguf[0] not in tensors
    return None
