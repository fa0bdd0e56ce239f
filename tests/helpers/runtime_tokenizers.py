"""Tokenizers of the runtime for tests, and texts that are hard on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from tokenizer_folders import TEXTS, context, read

from qconv.formats.base import Model
from qconv.formats.gguf.reader import open_gguf
from qconv.formats.metadata import Field, ValueType, boolean, float32, numbers, string, strings, uint32
from qconv.runtime.tokenizing.tokenizer import Tokenizer, load_tokenizer

CHARACTERS = st.characters(exclude_categories=("Cs", "Cn"))
"""Characters that every Unicode table of the last years knows."""

_SPACES = (" ", "  ", "    ", "\n", "\t", "\r\n", "\u00a0", "\u2009", "\u3000", "\u200d", "\ufe0f", "\ufeff", "▁", " ▁")
# no start of an overlong form, of a surrogate or beyond Unicode, which llama.cpp takes for a character or dies of
_BYTES = (*range(0x80, 0xC0), *range(0xC2, 0xE0), *range(0xE1, 0xED), 0xF1, 0xF2, 0x20, 0x41)


def model_of(metadata: Mapping[str, Field]) -> Model:
    """A model that is nothing but metadata."""
    return Model(Path("m.gguf"), "gguf", metadata, {})


def tokenizer_of(metadata: Mapping[str, Field]) -> Tokenizer:
    """The tokenizer that ``metadata`` describe."""
    return load_tokenizer(model_of(metadata))


def tokenizer_of_gguf(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file."""
    with open_gguf(path, replace(context(), vocabulary_only=True)) as model:
        return load_tokenizer(model)


def folder_metadata(folder: Path) -> Mapping[str, Field]:
    """The tokenizer's metadata of a Hugging Face folder."""
    config = json.loads((folder / "config.json").read_text())
    return read(folder, config["vocab_size"], **config).metadata


def llama_metadata(
    tokens: Sequence[str], scores: Sequence[float] | None = None, types: Sequence[int] | None = None, **keys: Any
) -> dict[str, Field]:
    """Metadata of a ``llama`` vocabulary; further keys by their names after ``tokenizer.ggml.``, None to leave one out."""
    metadata = {
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.tokens": strings(tokens),
        "tokenizer.ggml.scores": numbers(scores or [0.0] * len(tokens), ValueType.FLOAT32),
        "tokenizer.ggml.token_type": numbers(types or [1] * len(tokens), ValueType.INT32),
    }
    return with_keys(metadata, **keys)


def with_keys(metadata: Mapping[str, Field], **keys: Any) -> dict[str, Field]:
    """``metadata`` with other values, by names after ``tokenizer.ggml.``; None leaves a key out."""
    result = dict(metadata)
    for name, value in keys.items():
        key = f"tokenizer.ggml.{name}"
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Field):
            result[key] = value
        elif isinstance(value, bool):
            result[key] = boolean(value)
        elif isinstance(value, int):
            result[key] = uint32(value)
        elif isinstance(value, float):
            result[key] = float32(value)
        elif isinstance(value, str):
            result[key] = string(value)
        else:
            result[key] = strings(value)
    return result


def odd_texts(tokens: Sequence[str], *, damaged: bool) -> st.SearchStrategy[str]:
    """Texts of odd spaces, any characters, known texts and ``tokens``; ``damaged`` ones hold bytes that are no UTF-8."""
    parts = [
        st.sampled_from(_SPACES),
        st.text(CHARACTERS, max_size=8),
        st.text("aehinorst .,'19", max_size=16),
        st.sampled_from(TEXTS),
        st.sampled_from(tokens),
    ]
    if damaged:
        parts.append(st.lists(st.sampled_from(_BYTES), max_size=6).map(lambda found: _decode(bytes(found))))
    return st.lists(st.one_of(parts), max_size=8).map(
        lambda found: _decode("".join(found).encode(errors="surrogateescape"))
    )


def _decode(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


__all__ = [
    "CHARACTERS",
    "folder_metadata",
    "llama_metadata",
    "model_of",
    "odd_texts",
    "tokenizer_of",
    "tokenizer_of_gguf",
    "with_keys",
]
