"""``--prune-layers``: leave blocks out of a model, number the rest anew, and make its metadata agree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

import numpy as np

from ..errors import ModelError, UsageError
from ..formats.base import Model
from ..formats.getters import get_integer
from ..formats.metadata import Field, uint32
from ..quantizers.importance import ImportanceMatrix

__all__ = ["kept_blocks", "parse_layers", "prune_importance", "prune_layers"]

_BLOCK: Final = re.compile(r"blk\.(\d+)\.")
_RANGE: Final = re.compile(r"(\d+)(?:-(\d+))?")
_MOST_LAYERS: Final = 1 << 16
# counts of blocks at one end of the model: the first so many, or the last so many
_LEADING: Final = ("leading_dense_block_count",)
_TRAILING: Final = ("nextn_predict_layers",)
# arrays under these prefixes have other lengths than the number of blocks, even where it is the same number
_NOT_PER_BLOCK: Final = ("rope.",)


def parse_layers(text: str) -> frozenset[int]:
    """Return the numbers in ``1,3,5-7``; raises UsageError for anything else.

    >>> sorted(parse_layers("1,3,5-7"))
    [1, 3, 5, 6, 7]
    """
    found: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < _MOST_LAYERS:
            raise UsageError(f"{text!r} is no list of layers", remedy="Write numbers and ranges, such as 1,3,5-7.")
        found |= set(range(first, last + 1))
    return frozenset(found)


def kept_blocks(block_count: int, layers: frozenset[int]) -> dict[int, int]:
    """Return the new number of each block that stays, by its old number.

    Raises UsageError for a layer that does not exist, and where none would be left.
    """
    outside = sorted(layer for layer in layers if not 0 <= layer < block_count)
    if outside:
        raise UsageError(f"there is no layer {outside[0]} to prune; the model has layers 0 to {block_count - 1}")
    kept = [block for block in range(block_count) if block not in layers]
    if not kept:
        raise UsageError("pruning would leave no layer at all")
    return {old: new for new, old in enumerate(kept)}


def prune_layers(model: Model, layers: frozenset[int]) -> Model:
    """Return ``model`` without the blocks ``layers``.

    The number of blocks, counts of blocks at either end, and arrays with one entry per block follow. What an architecture derives from a
    block's number (every sixth block attends to everything, say) goes by the new numbers, and a note says so.

    Raises ModelError for a model without a number of blocks, UsageError for layers that it does not have.
    """
    key = f"{model.architecture}.block_count"
    count = get_integer(model.metadata, key, model.path)
    if count is None:
        raise ModelError(f"the model has no {key}, so that layers cannot be pruned", path=model.path)
    numbers = kept_blocks(count, layers)
    tensors = {}
    for name, tensor in model.tensors.items():
        renamed = _renamed(name, numbers)
        if renamed is not None:
            tensors[renamed] = replace(tensor, name=renamed)
    note = f"{len(layers)} of {count} layers are left out; anything that goes by a layer's number goes by the new ones"
    return replace(
        model,
        metadata=MappingProxyType(_metadata(model.metadata, f"{model.architecture}.", count, numbers)),
        tensors=MappingProxyType(tensors),
        notes=(*model.notes, note),
    )


def prune_importance(matrix: ImportanceMatrix, block_count: int, layers: frozenset[int]) -> ImportanceMatrix:
    """Return the matrix of the whole model as that of the pruned one; raises as :func:`kept_blocks` does."""
    numbers = kept_blocks(block_count, layers)
    renamed = {_renamed(name, numbers): entry for name, entry in matrix.entries.items()}
    return replace(
        matrix, entries=MappingProxyType({name: entry for name, entry in renamed.items() if name is not None})
    )


def _renamed(name: str, numbers: Mapping[int, int]) -> str | None:
    """Return a tensor's new name, None if its block is left out."""
    match = _BLOCK.match(name)
    if match is None:
        return name
    number = numbers.get(int(match[1]))
    return None if number is None else f"blk.{number}.{name[match.end() :]}"


def _metadata(metadata: Mapping[str, Field], prefix: str, count: int, numbers: Mapping[int, int]) -> dict[str, Field]:
    """Return the metadata with everything that counts blocks."""
    changed: dict[str, Field] = {}
    for key, field in metadata.items():
        short = key.removeprefix(prefix) if key.startswith(prefix) else ""
        value = field.value
        if short == "block_count":
            changed[key] = uint32(len(numbers))
        elif short in _LEADING and isinstance(value, int):
            changed[key] = replace(field, value=sum(old < value for old in numbers))
        elif short in _TRAILING and isinstance(value, int):
            changed[key] = replace(field, value=sum(old >= count - value for old in numbers))
        elif short and not short.startswith(_NOT_PER_BLOCK) and isinstance(value, np.ndarray) and len(value) == count:
            changed[key] = replace(field, value=value[list(numbers)])
        else:
            changed[key] = field
    return changed
