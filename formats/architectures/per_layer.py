"""Numbers that differ from layer to layer: lists in a configuration, arrays in GGUF, and names in expressions about one layer.

Among a model's hyper-parameters such a number is a tuple with one entry per layer. Where an expression or a condition is about one layer,
:func:`at_layer` puts that layer's own number in the tuple's place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from types import MappingProxyType
from typing import Final, Literal

from ...errors import ModelError
from .expressions import Condition, Expression

__all__ = [
    "FromLayers",
    "LayerParameter",
    "LayerValues",
    "Value",
    "at_layer",
    "complete_layers",
    "gather_layers",
    "whole",
]

LayerValues = tuple[int, ...] | tuple[float, ...]
"""One number per layer; truth values are 0 and 1."""

Value = bool | int | float | LayerValues
"""A hyper-parameter."""

_DIGITS: Final = 7  # that a float32 holds
_NORMAL: Final = NormalDist()


@dataclass(frozen=True, slots=True)
class LayerParameter:
    """A number that every layer has for itself.

    Attributes:
        name: by which expressions mention it; in those about one layer it is that layer's number.
        config: keys of ``config.json``, the preferred one first, that hold a list with one entry per layer, a text with one character per layer, or one
            value for all; empty for what follows from others.
        words: for a configuration that has words: word to number; on the way back the first word with a number is written.
        type: GGUF type of the array's elements: ``uint32``, ``float32`` or ``bool``.
        keys: GGUF keys without the architecture's prefix; empty where GGUF has none. Where all layers have one ``uint32``, GGUF has it alone.
        default: where the configuration is silent: an expression over hyper-parameters, numbers of the layer before it, and ``layer``.
        recovered: for what GGUF has no key for: how it follows from what GGUF has, on the way back; None: as ``default`` says.
        quantile: whether GGUF's number is the point of the standard normal distribution below which the configuration's share lies.
        numbered: where the configuration lists layers instead, counted from 1: key to the number of those that it lists.
    """

    name: str
    config: tuple[str, ...]
    words: Mapping[str, int]
    type: Literal["uint32", "float32", "bool"]
    keys: tuple[str, ...]
    default: Expression
    recovered: Expression | None = None
    quantile: bool = False
    numbered: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def as_stored(self, value: float) -> float:
        """Return GGUF's number for the configuration's."""
        if not self.quantile:
            return value
        return _NORMAL.inv_cdf(value) if 0 < value < 1 else float("-inf")

    def as_configured(self, value: float) -> float:
        """Return the configuration's number for GGUF's, to as many digits as GGUF's has."""
        return float(f"{_NORMAL.cdf(value):.{_DIGITS}g}") if self.quantile else value

    def word(self, value: float) -> str | None:
        """Return the configuration's word for a number, or None where it has none."""
        return next((word for word, number in self.words.items() if number == value), None)


@dataclass(frozen=True, slots=True)
class FromLayers:
    """How a number of the whole model follows from those of its layers: that of the first layer where ``where`` holds, else of the first layer."""

    name: str
    where: Condition | None = None

    def find(self, values: Mapping[str, Value]) -> int | float | None:
        """Return the number, or None where there is no such number per layer."""
        found = values.get(self.name)
        if not isinstance(found, tuple):
            return None
        layers = (
            layer for layer in range(len(found)) if self.where is None or self.where.holds(at_layer(values, layer))
        )
        return next((found[layer] for layer in layers), found[0] if found else None)


def at_layer(values: Mapping[str, object], layer: int | None) -> Mapping[str, object]:
    """Return the hyper-parameters as expressions about ``layer`` see them; those of the model as they are for None."""
    if layer is None:
        return values
    own = {name: value[layer] if isinstance(value, tuple) else value for name, value in values.items()}
    return own | {"layer": layer}


def whole(values: Mapping[str, object], name: str) -> int:
    """Return a whole number of the model; raises ModelError where it has none of this name."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ModelError(f"the model's {name} is {value!r}, which must be a whole number")
    return value


def complete_layers(
    parameters: tuple[LayerParameter, ...],
    values: Mapping[str, Value],
    stated: Callable[[LayerParameter], LayerValues | None],
) -> dict[str, LayerValues]:
    """Return one tuple per parameter: what ``stated`` knows of it, else its default.

    ``values`` are those of the whole model, ``layers`` among them. Raises ModelError for a default that cannot be computed.
    """
    found: dict[str, LayerValues] = {}
    for parameter in parameters:
        known = stated(parameter)
        if known is None:
            known = gather_layers(parameter.default, {**values, **found}, whole(values, "layers"))
        found[parameter.name] = known
    return found


def gather_layers(expression: Expression, values: Mapping[str, object], layers: int) -> tuple[int, ...]:
    """Return what an expression about one layer is in each of them."""
    return tuple(expression.evaluate(at_layer(values, layer)) for layer in range(layers))
