"""``tekken.json``: Mistral's ranked vocabulary of byte strings, behind special tokens, as a GGUF vocabulary.

======================================= ============================================================================================
``config.pattern``                      how text is cut into words, a regular expression
``config.default_num_special_tokens``   N: the ids 0 … N - 1 are special, those without a name are called ``<SPECIAL_i>``
``config.default_vocab_size``           number of all tokens; ``vocab`` may hold more, which nobody uses
``vocab``                               objects with ``rank`` and ``token_bytes`` in base64, by rank; the id is N + rank, the first 256 are bytes
``special_tokens``                      objects with ``rank``, ``token_str`` and ``is_control``; files of the oldest versions have none
======================================= ============================================================================================

(mistral-common's ``Tekkenizer``, which runs tiktoken.)
"""

from __future__ import annotations

import base64
import binascii
import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from ...errors import TokenizerError
from ..byte_ranks import TOKEN_MAX, check_ranks, ranked_merges, token_texts
from ..huggingface.json_files import read_json_object
from ..huggingface.tokenizing.files import expect
from ..huggingface.tokenizing.structure import Structure, chosen_pre_tokenizer, identify_pre_tokenizer
from ..huggingface.tokenizing.vocabulary import MAX_TOKENS, TokenType, Vocabulary
from ..metadata import string, strings
from ..pretokenizers import PreTokenizer, Stage, canonical_pattern

__all__ = ["NAME", "tekken_vocabulary"]

NAME = "tekken.json"
_ROLES = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}
_REMEDY = "Restore the original tekken.json."


def tekken_vocabulary(path: Path, pre_tokenizer: str | None) -> Vocabulary:
    """Return the vocabulary, special tokens included.

    ``pre_tokenizer`` names the way to cut text, where the user has chosen one. Raises FormatError for a file that is none, TokenizerError for ranks that
    are no sequence, numbers that do not fit together, and a pattern that no GGUF runtime knows.
    """
    found = read_json_object(path, "the vocabulary")
    config = expect(found.get("config"), dict, "config", path)
    count = _size(config, "default_num_special_tokens", path)
    size = _size(config, "default_vocab_size", path)
    names, types = _special_tokens(found.get("special_tokens"), count, path)
    ranks = _ranks(expect(found.get("vocab"), list, "vocab", path), size - count, path)
    check_ranks(ranks, path)
    texts = token_texts(ranks)
    merges = ranked_merges(ranks, texts, path)
    known, notes = _pre_tokenizer(config, pre_tokenizer, names, path)
    return Vocabulary(
        model="gpt2",
        source=path,
        tokens=(*names, *texts.values()),
        types=(*types, *[TokenType.NORMAL] * len(ranks)),
        scores=None,
        metadata={"tokenizer.ggml.pre": string(known.name), "tokenizer.ggml.merges": strings(merges)},
        special={role: names.index(text) for role, text in _ROLES.items() if text in names},
        notes=notes,
    )


def _size(config: dict[str, Any], key: str, path: Path) -> int:
    size = expect(config.get(key), int, f"config.{key}", path)
    if not 0 < size <= MAX_TOKENS:
        raise TokenizerError(f"config.{key} is {size}, which must be from 1 to {MAX_TOKENS}", path=path, remedy=_REMEDY)
    return size


def _special_tokens(value: object, count: int, path: Path) -> tuple[list[str], list[TokenType]]:
    """Return names and types of the special tokens, all ``count`` of them."""
    names = [f"<SPECIAL_{rank}>" for rank in range(count)]
    types = [TokenType.CONTROL] * count
    if value is None:
        usual = _usual_special_tokens()[:count]
        return [*usual, *names[len(usual) :]], types
    taken: set[int] = set()
    for entry in expect(value, list, "special_tokens", path):
        token = expect(entry, dict, "an entry of special_tokens", path)
        rank = expect(token.get("rank"), int, "the rank of a special token", path)
        text = expect(token.get("token_str"), str, f"token_str of the special token {rank}", path)
        if not 0 <= rank < count or rank in taken or not text:
            raise TokenizerError(
                f"special_tokens has the rank {rank} for {text!r}, which must be another one below {count}",
                path=path,
                remedy=_REMEDY,
            )
        taken.add(rank)
        names[rank] = text
        if token.get("is_control") is False:
            types[rank] = TokenType.USER_DEFINED
    return names, types


def _ranks(entries: list[Any], count: int, path: Path) -> dict[bytes, int]:
    """Return the first ``count`` tokens by rank, which is also their place."""
    if not 0 < count <= len(entries):
        raise TokenizerError(
            f"config asks for {count} tokens beside the special ones, vocab has {len(entries)}",
            path=path,
            remedy=_REMEDY,
        )
    ranks: dict[bytes, int] = {}
    for place, entry in enumerate(entries[:count]):
        token = expect(entry, dict, f"the entry {place} of vocab", path)
        value = _decoded(token.get("token_bytes"))
        if value is None or not 0 < len(value) <= TOKEN_MAX:
            raise TokenizerError(
                f"the entry {place} of vocab has no token of 1 to {TOKEN_MAX} bytes in base64",
                path=path,
                remedy=_REMEDY,
            )
        if token.get("rank") != place or value in ranks:
            raise TokenizerError(
                f"the entry {place} of vocab has another rank, or its token is there twice", path=path, remedy=_REMEDY
            )
        ranks[value] = place
    return ranks


def _decoded(word: object) -> bytes | None:
    try:
        return base64.b64decode(word, validate=True) if isinstance(word, str) else None
    except (binascii.Error, ValueError):  # the latter for characters outside ASCII
        return None


def _pre_tokenizer(
    config: dict[str, Any], chosen: str | None, special: list[str], path: Path
) -> tuple[PreTokenizer, tuple[str, ...]]:
    """Return how text is cut, and notes; tiktoken takes a word that is a token whole, whatever could be merged."""
    if chosen is not None:
        known = chosen_pre_tokenizer(chosen, path)
        notes: tuple[str, ...] = (f"--pre-tokenizer {chosen} is used whatever {path.name} says",)
    else:
        pattern = expect(config.get("pattern"), str, "config.pattern", path)
        structure = Structure((Stage("split", canonical_pattern(pattern)), Stage("bytes")), (), False)
        known = identify_pre_tokenizer(
            structure, path, ignore_merges=True, clean_spaces=None, tokens=(), added=special, merges=()
        )
        notes = ()
    return known, (*notes, known.deviation) if known.deviation else notes


@cache
def _usual_special_tokens() -> list[str]:
    """Return those that files of the first versions mean."""
    names: list[str] = json.loads(files(__package__).joinpath("special_tokens.json").read_text(encoding="utf-8"))
    return names
