"""Blocks behind a model's own that predict the tokens after next, as llama.cpp's converter appends them: no part of a forward pass."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

import numpy as np

from ..errors import ModelError
from .base import Model
from .getters import get_integer
from .metadata import Field

__all__ = ["block_of", "first_prediction", "without_predictions"]

_BLOCK: Final = re.compile(r"blk\.(\d+)\.")
_COUNT: Final = "nextn_predict_layers"
# arrays under these prefixes have other lengths than the number of blocks, even where it is the same number
_NOT_PER_BLOCK: Final = ("rope.",)


def first_prediction(model: Model) -> int | None:
    """Return the number of the first block that predicts tokens after next, None where there is none."""
    extra = get_integer(model.metadata, f"{model.architecture}.{_COUNT}", model.path) or 0
    count = get_integer(model.metadata, f"{model.architecture}.block_count", model.path) or 0
    return count - extra if 0 < extra < count else None


def without_predictions(model: Model) -> tuple[Model, tuple[str, ...]]:
    """Return a model without its blocks for the tokens after next, which its number of blocks counts, and a note where there are some.

    Raises ModelError where there would be no other block.
    """
    prefix = f"{model.architecture}."
    extra = get_integer(model.metadata, prefix + _COUNT, model.path) or 0
    if not extra:
        return model, ()
    count = get_integer(model.metadata, f"{prefix}block_count", model.path) or 0
    kept = count - extra
    if extra < 0 or kept < 1:
        raise ModelError(
            f"{prefix}{_COUNT} is {extra}, but there are {count} blocks",
            path=model.path,
            remedy="A file with nothing but these blocks is no model by itself: use the one that it belongs to.",
        )
    tensors = {name: tensor for name, tensor in model.tensors.items() if block_of(name) < kept}
    words = f"block {kept}" if extra == 1 else f"blocks {kept} to {count - 1}"
    note = (
        f"{words}, which predict{'s' if extra == 1 else ''} tokens after next, {'is' if extra == 1 else 'are'} left out"
    )
    return (
        replace(
            model,
            metadata=MappingProxyType(_metadata(model.metadata, prefix, count, kept)),
            tensors=MappingProxyType(tensors),
        ),
        (note,),
    )


def block_of(name: str) -> int:
    """Return the number of a tensor's block, -1 outside of blocks."""
    match = _BLOCK.match(name)
    return int(match[1]) if match else -1


def _metadata(metadata: Mapping[str, Field], prefix: str, count: int, kept: int) -> dict[str, Field]:
    """Return the metadata for the leading blocks alone."""
    found: dict[str, Field] = {}
    for key, field in metadata.items():
        short = key.removeprefix(prefix) if key.startswith(prefix) else ""
        if short == "block_count":
            found[key] = replace(field, value=kept)
        elif (
            short
            and not short.startswith(_NOT_PER_BLOCK)
            and isinstance(field.value, np.ndarray)
            and len(field.value) == count
        ):
            found[key] = replace(field, value=field.value[:kept])
        elif short != _COUNT:
            found[key] = field
    return found
