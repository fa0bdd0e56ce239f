"""Llama 3's ``tokenizer.model``: lines of a token in base64 and its rank, as the tiktoken package reads them, as a GGUF vocabulary.

Ids are ranks; merges follow from them (:mod:`..byte_ranks`). 256 special tokens follow, whose names are not in the file.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from ...errors import FormatError, TokenizerError
from ..byte_ranks import TOKEN_MAX, check_ranks, ranked_merges, token_texts
from ..huggingface.tokenizing.files import read_bytes
from ..huggingface.tokenizing.vocabulary import MAX_TOKENS, TokenType, Vocabulary
from ..metadata import string, strings

__all__ = ["is_tiktoken", "tiktoken_vocabulary"]

SPECIAL_COUNT = 256

_NAMED = {
    False: {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"},
    True: {
        0: "begin_of_text",
        1: "end_of_text",
        4: "finetune_right_pad_id",
        6: "start_header_id",
        7: "end_header_id",
        8: "eom_id",
        9: "eot_id",
        10: "python_tag",
    },
}  # by position behind the ranks: Llama 3, and 3.1 and later


def is_tiktoken(path: Path) -> bool:
    """Whether the file's first line is a token in base64 and the rank 0; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            first, _, rest = file.read(2 * TOKEN_MAX).partition(b"\n")
    except OSError:
        return False
    word, _, rank = first.rstrip(b"\r").rpartition(b" ")
    return bool(rest) and rank == b"0" and _decoded(word) is not None


def tiktoken_vocabulary(path: Path, *, later: bool) -> Vocabulary:
    """Return the vocabulary of Llama 3 (``later`` False) or of Llama 3.1 and later, special tokens included.

    Raises FormatError for a line that is none, TokenizerError for ranks that are no sequence or tokens that are not unique.
    """
    ranks = _ranks(path)
    check_ranks(ranks, path)
    texts = token_texts(ranks)
    special = _special_names(later)
    count = len(ranks)
    return Vocabulary(
        model="gpt2",
        source=path,
        tokens=(*texts.values(), *special),
        types=(*[TokenType.NORMAL] * count, *[TokenType.CONTROL] * len(special)),
        scores=None,
        metadata={
            "tokenizer.ggml.pre": string("llama-bpe"),
            "tokenizer.ggml.merges": strings(ranked_merges(ranks, texts, path)),
        },
        special={"bos": count, "eos": count + 1},
    )


def _ranks(path: Path) -> dict[bytes, int]:
    """Return the tokens by rank, which is also their place."""
    ranks: dict[bytes, int] = {}
    offset = 0
    for line in read_bytes(path).split(b"\n"):
        if line:
            word, _, rank = line.rstrip(b"\r").rpartition(b" ")
            token = _decoded(word)
            if token is None or not rank.isdigit() or not 0 < len(token) <= TOKEN_MAX:
                raise FormatError(
                    "a line is not a token in base64, a space and a rank",
                    path=path,
                    offset=offset,
                    remedy="Download it again.",
                )
            if int(rank[:20]) != len(ranks) or len(ranks) >= MAX_TOKENS or token in ranks:
                raise TokenizerError(
                    f"the token of rank {rank[:20].decode()} is not the next one, or is there twice",
                    path=path,
                    offset=offset,
                )
            ranks[token] = len(ranks)
        offset += len(line) + 1
    return ranks


def _decoded(word: bytes) -> bytes | None:
    try:
        return base64.b64decode(word, validate=True) if word else None
    except binascii.Error:
        return None


def _special_names(later: bool) -> list[str]:
    """Return the names of the special tokens; those without a use are numbered."""
    names: list[str] = []
    reserved = 0
    for position in range(SPECIAL_COUNT):
        name = _NAMED[later].get(position)
        if name is None:
            name = f"reserved_special_token_{reserved}"
            reserved += 1
        names.append(f"<|{name}|>")
    return names
