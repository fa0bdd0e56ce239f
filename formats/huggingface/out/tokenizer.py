"""The tokenizer's files of a folder: ``tokenizer.json``, ``tokenizer_config.json`` with the chat templates, and ``tokenizer.model``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ....errors import TokenizerError
from ...base import Model
from ...getters import get_flag, get_string, get_strings
from ...metadata import Field
from ...pretokenizers import find_pre_tokenizer
from .sentencepiece import build_sentencepiece
from .source import Recorded
from .tokenizer_json import build_tokenizer_json
from .tokens import Tokens, read_tokens

__all__ = ["rebuild_tokenizer"]

_ROLES = ("bos", "eos", "unk", "sep", "pad", "mask")
_TEMPLATE = "tokenizer.chat_template"


def rebuild_tokenizer(model: Model, recorded: Recorded, context: int) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Return the files by name, and notes; ``context`` is the model's, 0 where it is not known.

    Raises TokenizerError for a vocabulary that has no form in a ``tokenizer.json``.
    """
    metadata = model.metadata
    tokens = read_tokens(metadata, recorded, model.path)
    kind = get_string(metadata, "tokenizer.ggml.model", model.path) or ""
    if tokens is None:
        return {}, ("the model has no vocabulary, so no tokenizer is written",)
    built = build_tokenizer_json(kind, tokens, metadata, recorded, model.path)
    config = dict(recorded.tokenizer_config) or _configuration(tokens, metadata, kind, context)
    template = _templates(metadata)
    if template is not None:
        config["chat_template"] = template
    try:
        files = {"tokenizer.json": _text(built), "tokenizer_config.json": _text(config)}
    except UnicodeEncodeError as error:
        raise TokenizerError("a token or a template is no valid Unicode", path=model.path) from error
    pieces = build_sentencepiece(kind, tokens, metadata, model.path)
    if pieces is not None:
        files["tokenizer.model"] = pieces
    return files, ()


def _text(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _configuration(tokens: Tokens, metadata: Mapping[str, Field], kind: str, context: int) -> dict[str, Any]:
    """Return a configuration by which transformers takes ``tokenizer.json`` as it is, or for Llama's kind, as it takes Llama's own."""
    known = find_pre_tokenizer(get_string(metadata, "tokenizer.ggml.pre") or "") if kind == "gpt2" else None
    found: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": known is not None and known.clean_spaces,
    }
    if _is_llama(tokens, metadata, kind):
        found["tokenizer_class"] = "LlamaTokenizer"
        found["legacy"] = True  # a space after every special token, as runtimes of GGUF have it
        found["add_bos_token"] = get_flag(metadata, "tokenizer.ggml.add_bos_token") is not False
        found["add_eos_token"] = get_flag(metadata, "tokenizer.ggml.add_eos_token") is True
    if context:
        found["model_max_length"] = context
    for role in _ROLES:
        text = tokens.text(role)
        if text is not None:
            found[f"{role}_token"] = text
    return found


def _is_llama(tokens: Tokens, metadata: Mapping[str, Field], kind: str) -> bool:
    spaced = get_flag(metadata, "tokenizer.ggml.add_space_prefix") is not False
    return kind == "llama" and spaced and all(role in tokens.ids for role in ("unk", "bos", "eos"))


def _templates(metadata: Mapping[str, Field]) -> str | list[dict[str, str]] | None:
    """Return the chat template, or where there are several a list of them by name."""
    default = get_string(metadata, _TEMPLATE)
    named: dict[str, str] = {}
    for name in get_strings(metadata, "tokenizer.chat_templates") or ():
        text = get_string(metadata, f"{_TEMPLATE}.{name}")
        if text is not None:
            named[name] = text
    if not named:
        return default
    if default is not None:
        named = {"default": default, **named}
    return [{"name": name, "template": text} for name, text in named.items()]
