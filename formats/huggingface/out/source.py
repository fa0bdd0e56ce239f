"""What a Hugging Face folder says and GGUF's keys cannot: kept on the way in under ``qconv.source.*``, used on the way back.

================================== ==================================================================================================
``qconv.source.config``            ``config.json`` to the letter, without ``quantization_config``; of Mistral's own form, what it would be
``qconv.source.generation_config`` ``generation_config.json`` to the letter
``qconv.source.tokenizer_config``  ``tokenizer_config.json`` without templates and added tokens, which have keys of their own
``qconv.source.tokenizer``         ``tokenizer.json`` without vocabulary, merges and whatever of the added tokens the metadata have
``qconv.source.tokenizer_digest``  SHA-256 of the ``tokenizer.ggml.*`` keys; where they have changed since, the last three are not believed
``qconv.source.names``             which of the family's forms of tensor names the checkpoint has, where there are several
``qconv.source.dtypes``            the dtype of the weights, and the tensors that have another; gone once floats are written in a smaller type
================================== ==================================================================================================

The configuration needs no digest: whatever of it contradicts the metadata is written anew (:mod:`.configuration`). These keys are strings, and
llama.cpp passes over them; two more keep vectors that lose bits (:mod:`qconv.formats.rounded`). None is longer than 64 KiB: a longer one is left out, and what it says is rebuilt by rule.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from ...base import Model
from ...metadata import Field
from ..tokenizing.vocabulary import MAX_TOKENS

__all__ = ["LONGEST", "PREFIX", "Recorded", "read_recorded", "recorded_types", "tokenizer_digest"]

PREFIX: Final = "qconv.source."
LONGEST: Final = 1 << 16
"""Bytes of the longest key that is kept."""
_NO_OBJECT: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Recorded:
    """What is known of the folder that a model came from; everything is empty where nothing is.

    Attributes:
        config: text of ``config.json``.
        generation: text of ``generation_config.json``.
        tokenizer_config: object of ``tokenizer_config.json``.
        tokenizer: object of ``tokenizer.json``, without its lists.
        added: the added tokens by id, with what does not follow from the vocabulary; None where that is not known.
        dtype: safetensors' name of most weights' dtype.
        dtypes: those that differ, by tensor name.
        forms: names of the map's entries that were used though others give the same tensors.
        prefix: what stands in the place of the family's usual beginning of names: (usual, stored), or None.
        same_tokenizer: whether the source's tokenizer is still that of the metadata.
    """

    config: str | None = None
    generation: str | None = None
    tokenizer_config: Mapping[str, Any] = field(default_factory=lambda: _NO_OBJECT)
    tokenizer: Mapping[str, Any] = field(default_factory=lambda: _NO_OBJECT)
    added: Mapping[int, Mapping[str, Any]] | None = None
    dtype: str | None = None
    dtypes: Mapping[str, str] = field(default_factory=lambda: _NO_OBJECT)
    forms: frozenset[str] = frozenset()
    prefix: tuple[str, str] | None = None
    same_tokenizer: bool = False

    def stored_name(self, name: str) -> str:
        """Return the name that the source gave to a tensor that the family calls ``name``."""
        if self.prefix is None or not name.startswith(self.prefix[0]):
            return name
        return self.prefix[1] + name.removeprefix(self.prefix[0])


def tokenizer_digest(metadata: Mapping[str, Field]) -> str:
    """Return a digest of the tokenizer's keys, templates excepted."""
    found = sha256()
    for key in sorted(metadata):
        if not key.startswith("tokenizer.ggml."):
            continue
        value = metadata[key].value
        found.update(f"{key}\0".encode())
        if isinstance(value, np.ndarray):
            found.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, str | bool | int | float):
            found.update(repr(np.float32(value) if isinstance(value, float) else value).encode("utf-8", "replace"))
        else:
            found.update("\0".join(value).encode("utf-8", "replace"))
    return found.hexdigest()


def read_recorded(metadata: Mapping[str, Field]) -> Recorded:
    """Return what the metadata keep of the source; what is not readable, or not true any more, is left out."""

    def text(name: str) -> str | None:
        found = metadata.get(PREFIX + name)
        return found.value if found is not None and isinstance(found.value, str) else None

    names, types = _object(text("names")), _object(text("dtypes"))
    same_tokenizer = text("tokenizer_digest") == tokenizer_digest(metadata)
    tokenizer = _object(text("tokenizer")) if same_tokenizer else _NO_OBJECT
    added = _added(tokenizer.get("added"))
    prefix, forms = names.get("prefix"), names.get("forms")
    usual, others = types.get("usual"), types.get("others")
    return Recorded(
        config=text("config"),
        generation=text("generation_config") if same_tokenizer else None,
        tokenizer_config=_object(text("tokenizer_config")) if same_tokenizer else _NO_OBJECT,
        tokenizer=tokenizer if added is not None else _NO_OBJECT,
        added=added,
        dtype=usual if isinstance(usual, str) else None,
        dtypes=others if isinstance(others, dict) else _NO_OBJECT,
        forms=frozenset(map(str, forms)) if isinstance(forms, list) else frozenset(),
        prefix=(str(prefix[0]), str(prefix[1])) if isinstance(prefix, list) and len(prefix) == 2 else None,
        same_tokenizer=same_tokenizer,
    )


def _object(text: str | None) -> Mapping[str, Any]:
    try:
        found = json.loads(text) if text is not None else None
    except (ValueError, RecursionError):
        return _NO_OBJECT
    return found if isinstance(found, dict) else _NO_OBJECT


def _added(value: object) -> dict[int, Mapping[str, Any]] | None:
    """Return the added tokens by id; None for anything that :mod:`.record` does not write."""
    if not isinstance(value, dict):
        return None
    runs, odd = value.get("plain", []), value.get("odd", {})
    if not isinstance(runs, list) or not isinstance(odd, dict):
        return None
    found: dict[int, Mapping[str, Any]] = {}
    for run in runs:
        if not (isinstance(run, list) and len(run) == 2 and all(type(end) is int for end in run)):
            return None
        first, last = run
        if not 0 <= first <= last < MAX_TOKENS or len(found) + last - first >= MAX_TOKENS:
            return None
        found |= dict.fromkeys(range(first, last + 1), _NO_OBJECT)
    for token, entry in odd.items():
        if not (token.isdecimal() and int(token) < MAX_TOKENS and isinstance(entry, dict)):
            return None
        if not all(isinstance(said, str if key == "content" else bool) for key, said in entry.items()):
            return None
        found[int(token)] = entry
    return found


def recorded_types(model: Model) -> dict[str, str]:
    """Return the source's dtype of each tensor of a prepared model, where it is known and nothing is lost by taking it.

    Nothing is lost where F32 stands for what the source held in 16 bits, as GGUF has vectors.
    """
    recorded = read_recorded(model.metadata)
    if recorded.dtype is None:
        return {}
    return {
        name: found
        for name, tensor in model.tensors.items()
        if tensor.encoding.name == "F32" and (found := recorded.dtypes.get(name, recorded.dtype)) in ("F16", "BF16")
    }
