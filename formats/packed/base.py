"""The contract of a packing: how one quantizer's tensors inside a Hugging Face folder become the weights that they stand for.

Quantized folders hold, instead of ``layers.0.mlp.up_proj.weight``, several tensors of packed numbers, scales and indices. A :class:`Packing`
recognises such a folder by its configuration and names, and gives back the ordinary names with lazy tensors of shape (out, in), which unpack the
rows that are asked for. What it does not pack (norms, embeddings, biases) it passes on as it is. From there on the folder is like any other.

* ``config`` is ``config.json`` with the quantizer's settings under ``quantization_config``, wherever the folder had them; a folder without any
  has no such key. Nothing in it is believed: use :func:`setting` or raise FormatError with the key's name.
* Shapes and dtypes are checked in ``unpack``, before anything is allocated; values that are read later (indices) when they are read. Errors name
  the tensor as the file does; the caller adds the folder to those without a path.
* ``Tensor.read`` of a result may be called by any thread, and holds no more than the rows asked for and a few MiB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ...errors import FormatError, MissingTensorError
from ...quantizers.base import Encoding
from ..base import Tensor
from ..metadata import Scalar
from ..stored import CheckpointTensor, StoredTensor

__all__ = ["Packing", "Unpacked", "group_size_setting", "method", "modules_with", "quantization", "setting"]

_REMEDY = "Restore the original configuration of the quantized model."


@dataclass(frozen=True)
class Unpacked:
    """A checkpoint as it would be without its packing.

    Attributes:
        tensors: Hugging Face names to tensors: unpacked lazily, or as they are stored.
        summary: completes "the source was already quantized (GPTQ, …)": ``4 bits, groups of 128``.
        facts: for ``inspect``: ``bits``, ``group_size`` and the like.
        notes: what else the user should know.
        spare: tensors that were left out, by name, and come back where the architecture asks for them: biases of zeros that a quantizer added.
        row_padding: unpacked tensors may have this many rows too many, less one, filled up to a multiple of it; the architecture tells how many count.
        column_padding: the same of columns.
        scales: of NVFP4 tensors, by the tensor's name: F32, one number or one for each matrix of a stack, by which all of it is multiplied.
    """

    tensors: Mapping[str, CheckpointTensor]
    summary: str
    facts: Mapping[str, Scalar] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()
    spare: Mapping[str, CheckpointTensor] = field(default_factory=lambda: MappingProxyType({}))
    row_padding: int = 1
    column_padding: int = 1
    scales: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Packing:
    """One quantizer's way of packing tensors.

    Attributes:
        name: unique short name (``gptq``).
        label: how people write it (``GPTQ``).
        description: one line: what is covered.
        methods: values of ``quant_method`` that it answers to.
        recognises: ``recognises(config, tensors)``: whether these settings and tensors (their names, dtypes and shapes) are of this packing; must
            not raise. Where the settings name no ``quant_method`` the tensors decide; a folder without packed tensors is none of its,
            whatever the settings say.
        unpack: ``unpack(tensors, config, encodings)``; raises FormatError and ModelError and their kin.
    """

    name: str
    label: str
    description: str
    methods: tuple[str, ...]
    recognises: Callable[[Mapping[str, Any], Mapping[str, StoredTensor]], bool]
    unpack: Callable[[Mapping[str, StoredTensor], Mapping[str, Any], Mapping[str, Encoding]], Unpacked]


def quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the quantizer's settings, an empty mapping where there are none."""
    found = config.get("quantization_config")
    return found if isinstance(found, dict) else {}


def method(config: Mapping[str, Any]) -> str | None:
    """Return ``quant_method`` in lower case, or None where the settings do not tell."""
    found = quantization(config).get("quant_method")
    return found.lower() if isinstance(found, str) else None


def setting(config: Mapping[str, Any], *keys: str, allowed: tuple[int, ...]) -> int | None:
    """Return the number under the first of ``keys`` that is set, or None; raises FormatError, naming the key, for one that is not ``allowed``."""
    *most, last = (str(choice) for choice in allowed)
    return _number(config, keys, lambda value: value in allowed, f"{', '.join(most)} or {last}" if most else last)


def group_size_setting(config: Mapping[str, Any], *keys: str) -> int | None:
    """Return the inputs per group under the first of ``keys`` that is set, -1 for all inputs, or None; raises FormatError, naming the key."""
    return _number(
        config,
        keys,
        lambda value: value == -1 or 0 < value < 1 << 31,
        "a number of weights above 0, or -1 for whole rows",
    )


def _number(config: Mapping[str, Any], keys: tuple[str, ...], fits: Callable[[int], bool], wanted: str) -> int | None:
    found = quantization(config)
    key = next((key for key in keys if found.get(key) is not None), None)
    if key is None:
        return None
    value = found[key]
    if isinstance(value, bool) or not isinstance(value, int) or not fits(value):
        shown = repr(value) if len(repr(value)) < 80 else f"{repr(value)[:80]}…"
        raise FormatError(f"quantization_config has {key}: {shown}, which must be {wanted}", remedy=_REMEDY)
    return value


def modules_with(
    tensors: Mapping[str, StoredTensor], required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, dict[str, StoredTensor]]:
    """Return each module's packed tensors by suffix: those modules that have a tensor with the first of ``required``.

    Suffixes start with a dot. Raises MissingTensorError where one of the others is absent.
    """
    found: dict[str, dict[str, StoredTensor]] = {}
    for name in tensors:
        if not name.endswith(required[0]):
            continue
        module = name.removesuffix(required[0])
        for suffix in required[1:]:
            if module + suffix not in tensors:
                raise MissingTensorError(
                    f"is missing, and {name} cannot be unpacked without it",
                    tensor=module + suffix,
                    remedy="A weight file is missing or damaged; compare the folder with its source.",
                )
        found[module] = {
            suffix: tensors[module + suffix] for suffix in (*required, *optional) if module + suffix in tensors
        }
    return found
