"""Model families as data: one JSON file each, used in both directions; the transforms that they name are in code.

A plugin adds a family by loading a JSON file of its own with :func:`load_architecture` and registering the result.
"""

from .answering import answering, bears, unknown_architecture
from .base import (
    Alias,
    Architecture,
    Check,
    Dropped,
    HyperParameter,
    Mark,
    Measured,
    Rope,
    RuntimeFacts,
    Stored,
    TensorMap,
)
from .expressions import Condition, Expression, parse_condition, parse_expression
from .load import built_in_architectures, load_architecture
from .names import MappedTensor, NameMap, map_names
from .per_layer import FromLayers, LayerParameter, LayerValues, Value, at_layer, whole
from .transforms import TRANSFORMS, Transform

__all__ = [
    "TRANSFORMS",
    "Alias",
    "Architecture",
    "Check",
    "Condition",
    "Dropped",
    "Expression",
    "FromLayers",
    "HyperParameter",
    "LayerParameter",
    "LayerValues",
    "MappedTensor",
    "Mark",
    "Measured",
    "NameMap",
    "Rope",
    "RuntimeFacts",
    "Stored",
    "TensorMap",
    "Transform",
    "Value",
    "answering",
    "at_layer",
    "bears",
    "built_in_architectures",
    "load_architecture",
    "map_names",
    "parse_condition",
    "parse_expression",
    "unknown_architecture",
    "whole",
]
