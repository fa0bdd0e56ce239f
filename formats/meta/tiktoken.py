"""Llama 3's ``tokenizer.model``: lines of a token in base64 and its rank, as the tiktoken package reads them, as a GGUF vocabulary.

Ids are ranks. tiktoken joins the neighbours whose union has the lowest rank, whichever two tokens they are; GGUF wants the pairs, so each token
contributes every pair of tokens that it can be divided into, in the order of the ranks. 256 special tokens follow, whose names are not in the file.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from ...errors import FormatError, TokenizerError
from ..huggingface.tokenizer_files import read_bytes
from ..huggingface.tokenizer_vocabulary import MAX_TOKENS, TokenType, Vocabulary
from ..metadata import string, strings

__all__ = ["is_tiktoken", "tiktoken_vocabulary"]

TOKEN_MAX = 1 << 10  # bytes
DIVISIONS_MAX = 1 << 24  # over all tokens
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
    alphabet = _byte_alphabet()
    absent = next((value for value in range(256) if bytes([value]) not in ranks), None)
    if absent is not None:
        raise TokenizerError(f"no token is the byte 0x{absent:02x}, so not every text can be written", path=path)
    texts = {token: "".join(alphabet[value] for value in token) for token in ranks}
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
            "tokenizer.ggml.merges": strings(_merges(ranks, texts, path)),
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
    if sum(map(len, ranks)) > DIVISIONS_MAX:
        raise TokenizerError("its tokens are longer than those of any model", path=path)
    return ranks


def _decoded(word: bytes) -> bytes | None:
    try:
        return base64.b64decode(word, validate=True) if word else None
    except binascii.Error:
        return None


def _merges(ranks: dict[bytes, int], texts: dict[bytes, str], path: Path) -> list[str]:
    merges = []
    for token in ranks:
        pairs = [
            (ranks[token[:place]], ranks[token[place:]], place)
            for place in range(1, len(token))
            if token[:place] in ranks and token[place:] in ranks
        ]
        pairs.sort()
        merges += [f"{texts[token[:place]]} {texts[token[place:]]}" for _, _, place in pairs]
    if not merges:
        raise TokenizerError("no token is made of two others", path=path)
    return merges


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


def _byte_alphabet() -> list[str]:
    """Return GPT-2's printable character for every byte: itself where it is one, else the next character from 256 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    alphabet = []
    shifted = 0
    for value in range(256):
        if value in printable:
            alphabet.append(chr(value))
        else:
            alphabet.append(chr(256 + shifted))
            shifted += 1
    return alphabet
