"""Gemma 4's ``tokenizer.json`` as GGUF's ``gemma4``: BPE over characters by the ranks of merges, ``▁`` for spaces, bytes for what has no token.

Unlike ``llama`` (see :mod:`.tokenizing.metaspace`) this kind keeps the merges. llama.cpp cuts text at runs of newlines, and takes a run that is a
token as it is; the source cuts nowhere. The two agree where no token holds newlines beside other characters, and merges lead to all runs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ....errors import TokenizerError
from ...metadata import string, strings
from .files import expect
from .metaspace import check_spaces
from .sentencepiece import NO_BYTES_NOTE
from .structure import Structure, first_unreachable
from .vocabulary import TokenType, Vocabulary, check_gaps

__all__ = ["RANKED", "ranked_bpe"]

RANKED: Final = "gemma4"
"""GGUF's name of the kind."""

_BYTE: Final = re.compile(r"<0x[0-9A-F]{2}>")


def ranked_bpe(
    model: Mapping[str, Any],
    structure: Structure,
    ids: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    path: Path,
    *,
    added: Collection[str],
    accept: bool,
) -> Vocabulary:
    """Return the ``gemma4`` vocabulary of a BPE ``model`` with ``▁`` for spaces.

    ``added`` are the texts of added tokens, which no merge has to make. ``accept`` writes it even if llama.cpp would make other tokens of newlines.
    Raises TokenizerError for that, and for a structure that is not Gemma's.
    """
    adds_space, notes = check_spaces(structure, ids, path)
    if adds_space or model.get("ignore_merges") is True:
        raise TokenizerError(
            "it puts a space before text, or prefers tokens to merges, and runtimes of Gemma's BPE do neither",
            path=path,
        )
    spaced = next((pair for pair in merges if " " in pair[0] or " " in pair[1]), None)
    if spaced is not None:
        raise TokenizerError(f"the merge {spaced!r} holds a space, which GGUF's merges cannot", path=path)
    problem = _newlines(ids, merges, added)
    if problem is not None:
        if not accept:
            raise TokenizerError(
                f"{problem}, and llama.cpp would make other tokens of such text",
                path=path,
                remedy="Pass --pre-tokenizer default to accept other tokens.",
            )
        notes.append(f"{problem}; llama.cpp makes other tokens of such text")
    length = max(ids.values()) + 1
    check_gaps(length, len(ids), path)
    tokens, types = [f"[PAD{i}]" for i in range(length)], [TokenType.UNUSED] * length
    for text, token in ids.items():
        tokens[token] = text
        types[token] = TokenType.BYTE if _BYTE.fullmatch(text) else TokenType.NORMAL
    unknown = expect(model.get("unk_token") or "<unk>", str, "model.unk_token", path)
    special = {}
    if unknown in ids:
        special["unk"] = ids[unknown]
        types[ids[unknown]] = TokenType.UNKNOWN
    if types.count(TokenType.BYTE) < 256 or model.get("byte_fallback") is not True:
        notes.append(NO_BYTES_NOTE)
    return Vocabulary(
        model=RANKED,
        source=path,
        tokens=tuple(tokens),
        types=tuple(types),
        scores=None,
        metadata={
            "tokenizer.ggml.pre": string(RANKED),
            "tokenizer.ggml.merges": strings(f"{left} {right}" for left, right in merges),
        },
        special=special,
        notes=tuple(notes),
    )


def _newlines(ids: Mapping[str, int], merges: Sequence[tuple[str, str]], added: Collection[str]) -> str | None:
    """Return what keeps llama.cpp from treating newlines as the source does, None where nothing does."""
    merged = [text for text in ids if "\n" in text and text not in added]
    runs = [text for text in merged if not text.strip("\n")]
    mixed = next((text for text in merged if text.strip("\n")), None)
    if mixed is not None:
        return f"the token {mixed!r} holds newlines beside other characters"
    unreachable = first_unreachable(runs, [pair for pair in merges if not "".join(pair).strip("\n")])
    return None if unreachable is None else f"merges do not lead to the token {unreachable!r}"
