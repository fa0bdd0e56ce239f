"""``tokenizer.json`` from GGUF's keys: byte-level BPE, sentencepiece's BPE and unigram models, and BERT's word pieces."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ....errors import TokenizerError
from ...getters import get_flag, get_numbers, get_string, get_strings
from ...metadata import Field, ValueType
from ...pretokenizers import find_pre_tokenizer, pre_tokenizer_names, to_tokenizer_json
from ..tokenizing.ranked import RANKED
from ..tokenizing.vocabulary import TokenType
from ..tokenizing.wordpiece import LOWERCASE_KEY
from .source import Recorded
from .tokens import Tokens, added_tokens

__all__ = ["build_tokenizer_json", "merges_by_score"]

_SPACE = "▁"
_PARTS = (
    "version",
    "truncation",
    "padding",
    "added_tokens",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "model",
)


def build_tokenizer_json(
    kind: str, tokens: Tokens, metadata: Mapping[str, Field], recorded: Recorded, path: Path
) -> dict[str, Any]:
    """Return the object of a ``tokenizer.json`` for a tokenizer of the GGUF model ``kind``.

    What the source's file is known to have said, beyond lists, is taken over. Raises TokenizerError for a kind or a pre-tokenizer that is unknown.
    """
    builders = {"gpt2": _byte_level, "llama": _metaspace, RANKED: _ranked, "t5": _unigram, "bert": _word_pieces}
    if kind not in builders:
        raise TokenizerError(
            f"a tokenizer of GGUF's kind {kind!r} has no known form in a tokenizer.json (known: {', '.join(builders)})",
            path=path,
            remedy="Copy the tokenizer's files of the original model into the folder afterwards.",
        )
    found: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None}
    found |= builders[kind](tokens, metadata, recorded, path)
    found["added_tokens"] = added_tokens(tokens, recorded)
    if recorded.tokenizer:
        known = {key: value for key, value in recorded.tokenizer.items() if key in _PARTS}
        model = {
            **_mapping(known.pop("model", None)),
            **{key: found["model"][key] for key in ("vocab", "merges") if key in found["model"]},
        }
        found = {**found, **known, "model": model}
    return {key: found[key] for key in _PARTS if key in found}


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _vocabulary(tokens: Tokens, recorded: Recorded) -> dict[str, int]:
    """Return the base vocabulary; added tokens that are in it have the text that they are matched by."""
    matched = {entry["id"]: entry["content"] for entry in added_tokens(tokens, recorded)}
    return {matched.get(token, tokens.texts[token]): token for token in range(tokens.base)}


def _merges(pairs: Sequence[tuple[str, str]], recorded: Recorded) -> list[Any]:
    """Return merges as every version of the tokenizers package reads them; as pairs where the source has them so, or tokens have spaces."""
    as_pairs = recorded.tokenizer.get("merges_are_pairs") is True
    if as_pairs or any(" " in left or " " in right for left, right in pairs):
        return [list(pair) for pair in pairs]
    return [f"{left} {right}" for left, right in pairs]


def _bpe(vocabulary: Mapping[str, int], merges: list[Any], **more: Any) -> dict[str, Any]:
    usual = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    return {**usual, **more, "vocab": dict(vocabulary), "merges": merges}


# --- byte-level BPE ---------------------------------------------------------------------------------------------------------------


def _byte_level(tokens: Tokens, metadata: Mapping[str, Field], recorded: Recorded, path: Path) -> dict[str, Any]:
    name = get_string(metadata, "tokenizer.ggml.pre", path) or "default"
    known = find_pre_tokenizer(name)
    if known is None:
        raise TokenizerError(
            f"tokenizer.ggml.pre is {name!r}, which is no known way to cut text",
            path=path,
            remedy=f"Set it with --override-kv tokenizer.ggml.pre=str:NAME; known: {', '.join(pre_tokenizer_names())}.",
        )
    lines = get_strings(metadata, "tokenizer.ggml.merges", path) or ()
    pairs = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
    bytes_step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    around = _template(tokens, metadata, path)
    return {
        "normalizer": {"type": known.normalizer} if known.normalizer else None,
        "pre_tokenizer": to_tokenizer_json(known.stages),
        "post_processor": around or {**bytes_step, "trim_offsets": False},
        "decoder": {**bytes_step, "add_prefix_space": True, "use_regex": True},
        "model": _bpe(_vocabulary(tokens, recorded), _merges(pairs, recorded), ignore_merges=known.ignore_merges),
    }


def _template(tokens: Tokens, metadata: Mapping[str, Field], path: Path, **defaults: bool) -> dict[str, Any] | None:
    """Return the step that puts the begin and end tokens around a text, None where there are none to put."""
    before = get_flag(metadata, "tokenizer.ggml.add_bos_token", path)
    after = get_flag(metadata, "tokenizer.ggml.add_eos_token", path)
    wanted = {
        "bos": defaults.get("bos", False) if before is None else before,
        "eos": defaults.get("eos", False) if after is None else after,
    }
    return _around(tokens, "bos" if wanted["bos"] else None, "eos" if wanted["eos"] else None)


def _around(tokens: Tokens, before: str | None, after: str | None) -> dict[str, Any] | None:
    wanted = [role for role in (before, after) if role is not None and role in tokens.ids]
    used = {role: (tokens.ids[role], tokens.texts[tokens.ids[role]]) for role in wanted}
    if not used:
        return None

    def part(role: str | None, number: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": used[role][1], "type_id": number}}] if role is not None and role in used else []

    def text(name: str, number: int) -> list[dict[str, Any]]:
        return [*part(before, number), {"Sequence": {"id": name, "type_id": number}}, *part(after, number)]

    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": [*text("A", 0), *text("B", 1)],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]} for token, name in used.values()},
    }


# --- sentencepiece ----------------------------------------------------------------------------------------------------------------


def merges_by_score(tokens: Tokens) -> list[tuple[str, str]]:
    """Return every division of an ordinary token into two, those of tokens with the highest scores first."""
    usable = {text: token for token, text in enumerate(tokens.texts) if tokens.types[token] is TokenType.NORMAL}
    ranked = sorted(usable.items(), key=lambda item: -tokens.scores[item[1]])
    return [
        (text[:cut], text[cut:])
        for text, _ in ranked
        for cut in range(1, len(text))
        if text[:cut] in usable and text[cut:] in usable
    ]


def _metaspace(tokens: Tokens, metadata: Mapping[str, Field], recorded: Recorded, path: Path) -> dict[str, Any]:
    if not tokens.scores:
        raise TokenizerError("the vocabulary has no scores, which tell how its tokens are joined", path=path)
    adds_space = get_flag(metadata, "tokenizer.ggml.add_space_prefix", path) is not False
    marks = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    steps = [{"type": "Prepend", "prepend": _SPACE}, marks] if adds_space else [marks]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if adds_space:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    model = _bpe(
        _vocabulary(tokens, recorded),
        _merges(merges_by_score(tokens), recorded),
        unk_token=tokens.text("unk"),
        fuse_unk=True,
        byte_fallback=TokenType.BYTE in tokens.types,
    )
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": _template(tokens, metadata, path, bos=True),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def _ranked(tokens: Tokens, metadata: Mapping[str, Field], recorded: Recorded, path: Path) -> dict[str, Any]:
    """Gemma 4's: merges as GGUF has them; the step that cuts at spaces finds none, and is there as in the original."""
    lines = get_strings(metadata, "tokenizer.ggml.merges", path) or ()
    cuts = [(line, line.find(" ", 1)) for line in lines]
    model = _bpe(
        _vocabulary(tokens, recorded),
        _merges([(line[:cut], line[cut + 1 :]) for line, cut in cuts if cut > 0], recorded),
        unk_token=tokens.text("unk"),
        fuse_unk=True,
        byte_fallback=TokenType.BYTE in tokens.types,
    )
    spaces = {"String": " "}
    return {
        "normalizer": {"type": "Replace", "pattern": spaces, "content": _SPACE},
        "pre_tokenizer": {"type": "Split", "pattern": spaces, "behavior": "MergedWithPrevious", "invert": False},
        "post_processor": _template(tokens, metadata, path, bos=True),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": model,
    }


def _unigram(tokens: Tokens, metadata: Mapping[str, Field], recorded: Recorded, path: Path) -> dict[str, Any]:
    if not tokens.scores:
        raise TokenizerError("the vocabulary has no scores, which a unigram model chooses by", path=path)
    scheme = "never" if get_flag(metadata, "tokenizer.ggml.add_space_prefix", path) is False else "always"
    spaces = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": scheme, "split": True}
    steps: list[dict[str, Any]] = []
    charsmap = get_numbers(metadata, "tokenizer.ggml.precompiled_charsmap", (ValueType.UINT8, ValueType.INT8), path)
    if charsmap is not None:
        rule = base64.b64encode(charsmap.astype("u1").tobytes()).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": rule})
    if get_flag(metadata, "tokenizer.ggml.remove_extra_whitespaces", path):
        steps += [
            {"type": "Strip", "strip_left": False, "strip_right": True},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": _SPACE},
        ]
    matched = {token: text for text, token in _vocabulary(tokens, recorded).items()}
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "pre_tokenizer": spaces,
        "post_processor": _template(tokens, metadata, path, eos=True),
        "decoder": spaces,
        "model": {
            "type": "Unigram",
            "unk_id": tokens.ids.get("unk"),
            "vocab": [[matched[token], tokens.scores[token]] for token in range(tokens.base)],
            "byte_fallback": TokenType.BYTE in tokens.types,
        },
    }


# --- word pieces ------------------------------------------------------------------------------------------------------------------


def _word_pieces(tokens: Tokens, metadata: Mapping[str, Field], recorded: Recorded, path: Path) -> dict[str, Any]:
    """GGUF marks the pieces that begin a word with ``▁``; BERT marks the others with ``##``."""
    special = {entry["id"] for entry in added_tokens(tokens, recorded)}
    pieces = {
        text if token in special or tokens.types[token] is not TokenType.NORMAL else _word_piece(text): token
        for token, text in enumerate(tokens.texts[: tokens.base])
    }
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": get_flag(metadata, LOWERCASE_KEY, path) is not False,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _around(tokens, "bos", "sep" if "sep" in tokens.ids else "eos"),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": tokens.text("unk") or "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": pieces,
        },
    }


def _word_piece(text: str) -> str:
    return text.removeprefix(_SPACE) if text.startswith(_SPACE) else f"##{text}"
