"""Vocabularies of ranked byte strings, as the tiktoken package has them, in the terms of byte-level BPE.

tiktoken joins the neighbours whose union has the lowest rank, whichever two tokens they are; GGUF wants the pairs, so each token contributes every pair of
tokens that it can be divided into, in the order of the ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import TokenizerError

__all__ = ["DIVISIONS_MAX", "TOKEN_MAX", "byte_alphabet", "check_ranks", "ranked_merges", "token_texts"]

TOKEN_MAX = 1 << 10  # bytes
DIVISIONS_MAX = 1 << 24  # over all tokens


def byte_alphabet() -> list[str]:
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


def check_ranks(ranks: Mapping[bytes, int], path: Path) -> None:
    """Raise TokenizerError where the tokens are longer than any model's, or a byte is no token."""
    if sum(map(len, ranks)) > DIVISIONS_MAX:
        raise TokenizerError("its tokens are longer than those of any model", path=path)
    absent = next((value for value in range(256) if bytes([value]) not in ranks), None)
    if absent is not None:
        raise TokenizerError(f"no token is the byte 0x{absent:02x}, so not every text can be written", path=path)


def token_texts(ranks: Mapping[bytes, int]) -> dict[bytes, str]:
    """Return each token in GPT-2's byte alphabet."""
    alphabet = byte_alphabet()
    return {token: "".join(alphabet[value] for value in token) for token in ranks}


def ranked_merges(ranks: Mapping[bytes, int], texts: Mapping[bytes, str], path: Path) -> list[str]:
    """Return the pairs that lead to each token, in the order of the ranks, which is that of ``ranks``; raises TokenizerError for none."""
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
