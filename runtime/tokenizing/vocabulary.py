"""The vocabulary of a model, read from its GGUF metadata and checked: everything that a tokenizer is made of."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...errors import TokenizerError
from ...formats.base import Model
from ...formats.getters import get_flag, get_integer, get_numbers, get_string, get_strings
from ...formats.gguf.strings import encode_text
from ...formats.huggingface.tokenizing.vocabulary import TokenType
from ...formats.metadata import Field, ValueType
from ...formats.pretokenizers import find_pre_tokenizer
from .special import SPECIAL_KEYS, find_roles, generation_ends, space_strippers

__all__ = ["Vocabulary", "read_vocabulary"]

_PREFIX = "tokenizer.ggml."
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
_KINDS = {"llama": "sentencepiece-style BPE", "gpt2": "byte-level BPE", "gemma4": "Gemma 4's BPE"}
_OTHER_KINDS = {"t5": "unigram", "bert": "WordPiece", "rwkv": "RWKV", "plamo2": "PLaMo 2"}
_DEFAULT_ROLES: Mapping[str, Mapping[str, int]] = {
    "llama": {"unk": 0, "bos": 1, "eos": 2},
    "gpt2": {"bos": 11, "eos": 11},
    "gemma4": {},
}
# pre-tokenizers whose texts start with the token bos, or that have none, unless metadata tells otherwise
_ADDS_BOS = ("llama-bpe", "tekken", "chameleon")
_WITHOUT_BOS = ("glm4",)
_CONVERT_AGAIN = "Convert the model again from its original files."


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer is made of.

    Attributes:
        kind: ``llama`` (sentencepiece-style BPE), ``gpt2`` (byte-level BPE) or ``gemma4`` (Gemma 4's BPE over characters).
        pre: name of the pre-tokenizer, ``default`` where the file gives none.
        tokens: text of each token; in GPT-2's byte alphabet where ``kind`` is ``gpt2``.
        ids: the id of each text.
        types: type of each token, after llama.cpp's corrections by text.
        scores: score of each token, empty for others than ``llama``.
        merges: pairs separated by a space, best first; empty for ``llama``.
        roles: ids by role (``bos``, ``eos``, ``eot``, ``eom``, ``unk``, ``pad``, ``fim_pre`` …).
        ends: tokens after which generation stops.
        strippers: special tokens that take the white space behind them with them.
        add_bos: whether a text starts with the token ``bos``.
        add_eos: whether a text ends with the token ``eos``.
        add_space: whether text gets a space in front, also behind special tokens.
    """

    kind: str
    pre: str
    tokens: Sequence[str] = field(repr=False)
    ids: Mapping[str, int] = field(repr=False)
    types: Sequence[TokenType] = field(repr=False)
    scores: Sequence[float] = field(repr=False)
    merges: Sequence[str] = field(repr=False)
    roles: Mapping[str, int]
    ends: frozenset[int]
    strippers: frozenset[int]
    add_bos: bool
    add_eos: bool
    add_space: bool

    def digest(self) -> str:
        """Return the SHA-256 (hexadecimal) of all that decides which tokens a text becomes, and what they mean."""
        known = find_pre_tokenizer(self.pre)
        result = hashlib.sha256()
        flags = (self.add_bos, self.add_eos, self.add_space)
        roles = sorted(f"{role}={token}" for role, token in self.roles.items())
        for part in (
            [self.kind, self.pre if known is None else known.name, *map(str, flags)],
            roles,
            self.tokens,
            self.merges,
        ):
            encoded = [encode_text(text) for text in part]
            # lengths first, so that no other division of the same bytes has this digest
            result.update(np.array([len(encoded), *map(len, encoded)], "<i8").tobytes())
            result.update(b"".join(encoded))
        result.update(np.array(self.types, "<i4").tobytes())
        result.update(np.array(self.scores, "<f4").tobytes())
        return result.hexdigest()


def read_vocabulary(model: Model) -> Vocabulary:
    """Return the vocabulary of ``model``, whatever format it has.

    Raises TokenizerError where there is none, its kind or pre-tokenizer is not known here, or its parts contradict each other;
    FormatError where a key has another type than GGUF prescribes.
    """
    metadata, path = model.metadata, model.path
    kind = _read_kind(metadata, path)
    pre = (get_string(metadata, f"{_PREFIX}pre", path) or "default") if kind == "gpt2" else "default"
    tokens, ids = _read_tokens(metadata, path)
    types = _read_types(metadata, path, tokens)
    roles = find_roles(_named_roles(metadata, path, kind, pre, len(tokens)), ids, types)
    ends = generation_ends(roles, ids, types)
    merges = () if kind == "llama" else get_strings(metadata, f"{_PREFIX}merges", path)
    if merges is None:
        raise TokenizerError("the vocabulary has no merges (tokenizer.ggml.merges)", path=path, remedy=_CONVERT_AGAIN)
    known = find_pre_tokenizer(pre)
    affixes = {}
    defaults = {"bos": kind == "llama" or (known is not None and known.name in _ADDS_BOS), "eos": False}
    for role, default in defaults.items():
        key = f"{_PREFIX}add_{role}_token"
        flag = get_flag(metadata, key, path)
        affixes[role] = default if flag is None else flag
        if kind == "gemma4" and role == "bos":
            affixes[role] = True  # whatever the file says, as in llama.cpp
        if affixes[role] and role not in roles:
            raise TokenizerError(
                f"texts should get a token {role}, but the file names none",
                path=path,
                remedy=f"Set {_PREFIX}{SPECIAL_KEYS[role]}, or set {key} to false.",
            )
    add_space = get_flag(metadata, f"{_PREFIX}add_space_prefix", path)
    return Vocabulary(
        kind=kind,
        pre=pre,
        tokens=tokens,
        ids=ids,
        types=types,
        scores=_read_scores(metadata, path, len(tokens)) if kind == "llama" else (),
        merges=tuple(merges),
        roles=roles,
        ends=ends,
        strippers=space_strippers(get_string(metadata, "general.name", path) or "", tokens, types),
        add_bos=affixes["bos"],
        add_eos=affixes["eos"],
        add_space=kind == "llama" and add_space is not False,
    )


def _read_kind(metadata: Mapping[str, Field], path: Path) -> str:
    kind = get_string(metadata, f"{_PREFIX}model", path)
    if kind in _KINDS:
        return kind
    known = "; ".join(f"{name} ({what})" for name, what in _KINDS.items())
    if kind is None or kind in ("none", "no_vocab"):
        raise TokenizerError(
            "the model has no tokenizer (tokenizer.ggml.model)",
            path=path,
            remedy="Convert it again with the tokenizer's files in its folder.",
        )
    what = f" ({_OTHER_KINDS[kind]})" if kind in _OTHER_KINDS else ""
    raise TokenizerError(
        f"its tokenizer is of the kind {kind!r}{what}, and the runtime knows {known}",
        path=path,
        remedy="Tokenize for this model with another runtime.",
    )


def _read_tokens(metadata: Mapping[str, Field], path: Path) -> tuple[Sequence[str], Mapping[str, int]]:
    found = get_strings(metadata, f"{_PREFIX}tokens", path)
    if not found:
        raise TokenizerError("the vocabulary has no tokens (tokenizer.ggml.tokens)", path=path, remedy=_CONVERT_AGAIN)
    # llama.cpp's name for an empty token, which no text can become
    tokens = tuple(text or f"[EMPTY_{i}]" for i, text in enumerate(found))
    ids = {text: i for i, text in enumerate(tokens)}
    if len(ids) != len(tokens):
        i = next(i for i, text in enumerate(tokens) if ids[text] != i)
        raise TokenizerError(
            f"the tokens {i} and {ids[tokens[i]]} have the same text {tokens[i]!r}", path=path, remedy=_CONVERT_AGAIN
        )
    return tokens, ids


def _read_types(metadata: Mapping[str, Field], path: Path, tokens: Sequence[str]) -> list[TokenType]:
    found = get_numbers(metadata, f"{_PREFIX}token_type", (ValueType.INT32,), path)
    if found is None:
        return [TokenType.NORMAL] * len(tokens)
    _check_count("types", len(found), len(tokens), path)
    members = {int(kind): kind for kind in TokenType}
    types = [members.get(kind, TokenType.UNUSED) for kind in found.tolist()]
    for i, kind in enumerate(types):
        if kind is TokenType.BYTE and not _BYTE.fullmatch(tokens[i]):
            raise TokenizerError(
                f"token {i} {tokens[i]!r} should be a byte, spelled <0x00> to <0xFF>", path=path, remedy=_CONVERT_AGAIN
            )
    return types


def _read_scores(metadata: Mapping[str, Field], path: Path, count: int) -> Sequence[float]:
    found = get_numbers(metadata, f"{_PREFIX}scores", (ValueType.FLOAT32, ValueType.INT32), path)
    if found is None:
        return array("d", bytes(8 * count))
    _check_count("scores", len(found), count, path)
    scores = found.astype(np.float32)
    if np.isnan(scores).any():
        token = int(np.isnan(scores).argmax())
        raise TokenizerError(f"the score of token {token} is no number", path=path, remedy=_CONVERT_AGAIN)
    return array("d", scores.astype(np.float64).tobytes())  # a fourth of what a list of objects takes


def _check_count(what: str, found: int, count: int, path: Path) -> None:
    if found != count:
        raise TokenizerError(f"there are {found} {what} for {count} tokens", path=path, remedy=_CONVERT_AGAIN)


def _named_roles(metadata: Mapping[str, Field], path: Path, kind: str, pre: str, count: int) -> dict[str, int]:
    roles = {role: token for role, token in _DEFAULT_ROLES[kind].items() if token < count}
    known = find_pre_tokenizer(pre)
    if known is not None and known.name in _WITHOUT_BOS:
        roles.pop("bos", None)
    for role, key in SPECIAL_KEYS.items():
        token = get_integer(metadata, _PREFIX + key, path)
        if token is None:
            continue
        if not 0 <= token < count:
            raise TokenizerError(
                f"{_PREFIX}{key} is {token}, but the vocabulary has {count} tokens",
                path=path,
                remedy=f"Correct it, or remove the key {_PREFIX}{key}.",
            )
        roles[role] = token
    return roles
