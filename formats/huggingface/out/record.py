"""What the reader keeps of a Hugging Face folder for the way back: the keys of :mod:`.source`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...architectures import Architecture, NameMap
from ...metadata import Field, string
from ..tokenizing.files import TokenizerFiles, read_text
from ..tokenizing.tokenizer import TokenizerResult
from .source import LONGEST, PREFIX, tokenizer_digest

__all__ = ["describe_weights", "record_source"]

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
# what other keys say: the token types of GGUF, and its chat templates
_ELSEWHERE = ("chat_template", "added_tokens_decoder")
_QUANTIZATION = "quantization_config"


def record_source(
    folder: Path, config: Mapping[str, Any], tokenizer: TokenizerResult, weights: Mapping[str, Mapping[str, Any]]
) -> dict[str, Field]:
    """Return the keys for a folder.

    ``config`` is its configuration, ``tokenizer`` what its tokenizer is in GGUF, and ``weights`` what :func:`describe_weights` returns.
    """
    kept = {"config": read_text(folder / "config.json")}
    if _QUANTIZATION in config:  # the weights are plain numbers now
        plain = {key: value for key, value in config.items() if key != _QUANTIZATION}
        kept["config"] = _text(plain, indent=2) + "\n"
    generation = folder / "generation_config.json"
    if generation.is_file():
        kept["generation_config"] = read_text(generation)
    kept["tokenizer_digest"] = tokenizer_digest(tokenizer.metadata)
    if tokenizer.found is not None:
        kept |= _tokenizer(tokenizer.found, tokenizer.metadata)
    kept |= {name: _compact(value) for name, value in weights.items() if value}
    return {PREFIX + name: string(text) for name, text in kept.items() if text and len(text.encode()) <= LONGEST}


def _tokenizer(files: TokenizerFiles, metadata: Mapping[str, Field]) -> dict[str, str]:
    kept = {}
    described = {key: value for key, value in files.tokenizer_config.items() if key not in _ELSEWHERE}
    if described:
        kept["tokenizer_config"] = _compact(described)
    if files.tokenizer is not None:
        kept["tokenizer"] = _compact(_structure(files.tokenizer, metadata))
    return kept


def _compact(value: object) -> str:
    return _text(value, separators=(",", ":"))


def _text(value: object, **options: Any) -> str:
    """Return JSON with characters as they are, but for lone surrogates, which no file of UTF-8 can hold and escapes can."""
    text = json.dumps(value, ensure_ascii=False, **options)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, **options)
    return text


def _structure(tokenizer: Mapping[str, Any], metadata: Mapping[str, Field]) -> dict[str, Any]:
    """Return a ``tokenizer.json`` without what GGUF has: of added tokens only the texts and flags that do not follow."""
    found = dict(tokenizer)
    model = found.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(model, dict):
        found["model"] = {key: value for key, value in model.items() if key not in ("vocab", "merges")}
        merges = model.get("merges")
        if isinstance(merges, list) and merges:
            found["merges_are_pairs"] = isinstance(merges[0], list)
    if isinstance(vocabulary, dict) and set(map(str, vocabulary.values())) == set(map(str, range(len(vocabulary)))):
        found["vocabulary_size"] = len(vocabulary)
    tokens = metadata["tokenizer.ggml.tokens"].value if "tokenizer.ggml.tokens" in metadata else ()
    added: dict[str, Any] = {}
    for entry in found.pop("added_tokens", None) or ():
        token = entry.get("id")  # the reader has seen that it is an object with a number
        if not isinstance(token, int):
            continue
        odd: dict[str, Any] = {flag: True for flag in _FLAGS if entry.get(flag) is True}
        if entry.get("special") is not True:
            odd["special"] = False
        text = entry.get("content")
        if isinstance(tokens, tuple) and not (token < len(tokens) and tokens[token] == text):
            odd["content"] = text
        added[str(token)] = odd
    plain = [int(token) for token, odd in added.items() if not odd]
    found["added"] = {"plain": _ranges(plain), "odd": {token: odd for token, odd in added.items() if odd}}
    return found


def _ranges(numbers: list[int]) -> list[list[int]]:
    """Return sorted numbers as first and last ones of runs."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return runs


def describe_weights(
    architecture: Architecture, names: NameMap, dtypes: Mapping[str, str], *, whole: bool
) -> dict[str, dict[str, Any]]:
    """Return what ``qconv.source.names`` and ``qconv.source.dtypes`` hold; ``dtypes`` are those of the checkpoint's tensors by name.

    ``whole`` says that the checkpoint is the text model alone, whose beginnings of names are to come back too.
    """
    used = [name for item in names.mapped for name in item.sources]
    if not used:
        return {}
    ((usual, _),) = Counter(dtypes[name] for name in used).most_common(1)
    types: dict[str, Any] = {"usual": usual}
    others = {name: dtypes[name] for name in used if dtypes[name] != usual}
    if others:
        types["others"] = others
    forms = sorted({item.entry.hf[0] for item in names.mapped if _is_alternative(architecture, item.entry.gguf)})
    written: dict[str, Any] = {"forms": forms} if forms else {}
    for beginning, expected in architecture.prefixes.items():
        if whole and expected and not any(name.startswith(expected) for name in used):
            written["prefix"] = [expected, beginning]
            break
    return {"names": written, "dtypes": types}


def _is_alternative(architecture: Architecture, gguf: tuple[str, ...]) -> bool:
    return sum(not set(entry.gguf).isdisjoint(gguf) for entry in architecture.tensors) > 1
