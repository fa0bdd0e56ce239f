"""Do the metadata agree with themselves and with the tensors? What contradicts itself is refused; what is merely odd becomes a note."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ...errors import FormatError
from ..getters import get_integer, get_numbers, get_string, get_strings
from ..metadata import Field, ValueType
from . import constants as c

__all__ = ["check_metadata", "check_names"]

# Converters of 2023 wrote <0x0> to <0xF> with one digit.
_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{1,2}>")
_BYTE_TYPE, _LAST_TYPE = 6, 6
_LAYER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")
_SPECIAL = re.compile(r"tokenizer\.ggml\.(\w+)_token_id")


def check_metadata(metadata: Mapping[str, Field], path: Path) -> tuple[str, ...]:
    """Check the architecture's name, the number of blocks and the vocabulary; returns notes for the user.

    Raises FormatError where a key has a type or a length that a reader cannot work with.
    """
    architecture = get_string(metadata, "general.architecture", path)
    blocks = get_integer(metadata, f"{architecture}.block_count", path)
    if blocks is not None and not 0 <= blocks <= c.MAX_BLOCK_COUNT:
        raise FormatError(f"{architecture}.block_count is {blocks}, not between 0 and {c.MAX_BLOCK_COUNT}", path=path)
    return _check_vocabulary(metadata, path)


def check_names(names: Iterable[str], path: Path) -> None:
    """Refuse tensor names with a layer number beyond any model's."""
    for name in names:
        for number in _LAYER.findall(name):
            if len(number.lstrip("0")) > len(str(c.MAX_BLOCK_COUNT)) or int(number) >= c.MAX_BLOCK_COUNT:
                raise FormatError(f"the layer number {number[:24]} in its name is too large", path=path, tensor=name)


def _check_vocabulary(metadata: Mapping[str, Field], path: Path) -> tuple[str, ...]:
    tokens = get_strings(metadata, "tokenizer.ggml.tokens", path)
    scores = get_numbers(metadata, "tokenizer.ggml.scores", (ValueType.FLOAT32,), path)
    types = get_numbers(metadata, "tokenizer.ggml.token_type", (ValueType.INT32, ValueType.UINT32), path)
    get_strings(metadata, "tokenizer.ggml.merges", path)
    if tokens is None:
        return ()
    count = len(tokens)
    for key, values in (("scores", scores), ("token_type", types)):
        if values is not None and len(values) != count:
            raise FormatError(
                f"tokenizer.ggml.{key} has {len(values)} elements, but tokenizer.ggml.tokens has {count}", path=path
            )
    if types is not None and count:
        numbers = types.astype(np.int64)
        if numbers.min() < 0 or numbers.max() > _LAST_TYPE:
            raise FormatError(
                f"tokenizer.ggml.token_type holds values from {numbers.min()} to {numbers.max()}; 0 to {_LAST_TYPE} exist",
                path=path,
            )
        for index in np.flatnonzero(numbers == _BYTE_TYPE).tolist():
            if not _BYTE_TOKEN.fullmatch(tokens[index]):
                raise FormatError(f"token {index} is a byte, but reads {tokens[index][:40]!r}, not <0xHH>", path=path)
    return tuple(
        f"{key} is {field.value}, but there are only {count} tokens"
        for key, field in metadata.items()
        if _SPECIAL.fullmatch(key) and not 0 <= (get_integer(metadata, key, path) or 0) < count
    )
