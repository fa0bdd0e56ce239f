"""Sentencepiece's BPE and unigram models in their ``tokenizer.json`` form, where ``▁`` stands for a space.

llama.cpp's ``llama`` tokenizer knows no merges: of all neighbours that are a token together, it joins those with the highest score.
So the score of a token is minus the rank of the first merge that makes it: neighbours with the lowest rank are joined first, as the
tokenizers package does. The two agree where every division of a token into two tokens is a merge, which holds for all models that
come from sentencepiece; where it does not, llama.cpp would join what the source keeps apart, and that is refused.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ....errors import TokenizerError
from ...metadata import Field, boolean, string
from .files import expect
from .sentencepiece import NO_BYTES_NOTE, NO_FALLBACK_NOTE, charsmap_field
from .structure import Structure
from .vocabulary import MAX_TOKENS, TokenType, Vocabulary

__all__ = ["check_spaces", "metaspace_bpe", "unigram"]

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_DIGITS = re.compile(r"\d\d")
_UNMERGED_SCORE = -1e6


def metaspace_bpe(
    model: Mapping[str, Any],
    structure: Structure,
    ids: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    path: Path,
    *,
    added: Collection[str],
    accept: bool,
) -> Vocabulary:
    """Return the ``llama`` vocabulary of a BPE ``model`` with ``▁`` for spaces.

    ``added`` are the texts of added tokens, which no merge has to make. ``accept`` writes it even if llama.cpp would join tokens that the source keeps apart. Raises TokenizerError for that, and
    for a structure that is neither this nor byte-level.
    """
    adds_space, notes = check_spaces(structure, ids, path)
    unmerged = _missing_divisions(ids, merges, added)
    if unmerged:
        example = " + ".join(map(repr, unmerged[0]))
        message = f"{len(unmerged)} pairs of tokens are a token together, but no merge joins them (such as {example})"
        if not accept:
            raise TokenizerError(
                f"{message}, and llama.cpp would join them",
                path=path,
                remedy="Pass --pre-tokenizer default to accept other tokens.",
            )
        notes.append(f"{message}; llama.cpp joins them")
    length = max(ids.values()) + 1
    tokens = [f"[PAD{i}]" for i in range(length)]
    types = [TokenType.UNUSED] * length
    scores = [_UNMERGED_SCORE] * length
    for text, token in ids.items():
        tokens[token] = text
        types[token] = TokenType.BYTE if _BYTE.fullmatch(text) else TokenType.NORMAL
        if len(text) == 1:
            scores[token] = 0.0
    for rank in range(len(merges) - 1, -1, -1):
        scores[ids["".join(merges[rank])]] = float(-rank)
    special = {}
    unknown = expect(model.get("unk_token") or "<unk>", str, "model.unk_token", path)
    if unknown in ids:
        special["unk"] = ids[unknown]
        types[ids[unknown]] = TokenType.UNKNOWN
    if TokenType.BYTE not in types or model.get("byte_fallback") is not True:
        notes.append(NO_BYTES_NOTE)
    return Vocabulary(
        model="llama",
        source=path,
        tokens=tuple(tokens),
        types=tuple(types),
        scores=tuple(scores),
        metadata={"tokenizer.ggml.pre": string("default")},
        adds_space=adds_space,
        special=special,
        notes=tuple(notes),
    )


def unigram(model: Mapping[str, Any], structure: Structure, path: Path) -> Vocabulary:
    """Return the ``t5`` vocabulary of a unigram ``model``; raises FormatError where it is malformed."""
    tokens, scores = [], []
    entries = expect(model.get("vocab"), list, "model.vocab", path)
    if not 0 < len(entries) <= MAX_TOKENS:
        raise TokenizerError(f"model.vocab has {len(entries)} entries", path=path)
    for entry in entries:
        match entry:
            case [str() as text, float() | int() as score] if abs(score) < 1e30:
                tokens.append(text)
                scores.append(float(score))
            case _:
                raise TokenizerError(f"{str(entry)[:60]} is no pair of a token and its score", path=path)
    unknown = model.get("unk_id")
    types = [TokenType.BYTE if _BYTE.fullmatch(text) else TokenType.NORMAL for text in tokens]
    special = {}
    if unknown is not None:
        unknown = expect(unknown, int, "model.unk_id", path)
        if not 0 <= unknown < len(tokens):
            raise TokenizerError(f"model.unk_id is {unknown}, but there are {len(tokens)} tokens", path=path)
        special["unk"] = unknown
        types[unknown] = TokenType.UNKNOWN
    metadata: dict[str, Field] = {"tokenizer.ggml.pre": string("default")}
    notes: list[str] = []
    drops_spaces = adds_space = False
    for step in (*structure.normalizers, *_other_steps(structure)):
        match step:
            case {"type": "Precompiled", "precompiled_charsmap": str() as charsmap}:
                metadata["tokenizer.ggml.precompiled_charsmap"] = charsmap_field(_decode(charsmap, path))
            case {"type": "Replace", "pattern": {"Regex": " {2,}"}} | {"type": "Strip"} | {"type": "WhitespaceSplit"}:
                drops_spaces = True
            case {"type": "Metaspace"}:
                adds_space = _prepends(step)
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                pass
            case {"type": "Prepend", "prepend": "▁"}:
                adds_space = True
            case _:
                notes.append(f"llama.cpp does not do what {step.get('type')} does to text before tokens are sought")
    if TokenType.BYTE in types:
        notes.append(NO_FALLBACK_NOTE)
    cuts = [str(stage) for stage in structure.stages if stage.kind != "other"]
    if cuts:
        notes.append(f"llama.cpp does not cut text before tokens are sought ({'; '.join(cuts)})")
    metadata["tokenizer.ggml.remove_extra_whitespaces"] = boolean(drops_spaces)
    return Vocabulary(
        model="t5",
        source=path,
        tokens=tuple(tokens),
        types=tuple(types),
        scores=tuple(scores),
        metadata=metadata,
        adds_space=adds_space,
        special=special,
        notes=tuple(notes),
    )


def check_spaces(structure: Structure, ids: Mapping[str, int], path: Path) -> tuple[bool, list[str]]:
    """Return whether text gets a space in front, and notes; raises TokenizerError where text is treated otherwise than by marking spaces."""
    marks_spaces = adds_space = False
    notes: list[str] = []
    unknown: list[str] = []
    for step in structure.normalizers:
        match step:
            case {"type": "Prepend", "prepend": "▁"}:
                adds_space = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                marks_spaces = True
            case {"type": "NFC" | "NFKC" | "Precompiled" as rule}:
                notes.append(
                    f"the tokenizer normalizes text ({rule}); GGUF runtimes do not, so such text gives other tokens"
                )
            case _:
                unknown.append(str(dict(step)))
    for stage in structure.stages:
        if stage.kind == "digits" and not any(_DIGITS.search(text) and not _BYTE.fullmatch(text) for text in ids):
            continue  # no token has two digits, so to cut between digits changes nothing
        if stage.kind != "other":
            unknown.append(str(stage))
    for step in _other_steps(structure):
        match step:
            case {"type": "Metaspace"}:
                marks_spaces, adds_space = True, _prepends(step)
            case {"type": "Split", "pattern": {"String": " "}} if marks_spaces:
                pass  # no space is left to split at
            case _:
                unknown.append(str(dict(step)))
    if unknown or not marks_spaces:
        what = "; ".join(unknown)[:300] or "spaces are neither marked with ▁ nor spelled in the byte alphabet"
        raise TokenizerError(
            f"its structure is none that GGUF runtimes know: {what}",
            path=path,
            remedy="Convert from the tokenizer.model of the same model, if there is one.",
        )
    return adds_space, notes


def _other_steps(structure: Structure) -> list[Mapping[str, Any]]:
    return [json.loads(stage.detail) for stage in structure.stages if stage.kind == "other"]


def _prepends(metaspace: Mapping[str, Any]) -> bool:
    scheme = metaspace.get("prepend_scheme")
    return scheme != "never" if scheme is not None else metaspace.get("add_prefix_space") is not False


def _missing_divisions(
    ids: Mapping[str, int], merges: Sequence[tuple[str, str]], added: Collection[str]
) -> list[tuple[str, str]]:
    known = set(merges)
    return [
        (text[:i], text[i:])
        for text in ids
        if len(text) > 1 and text not in added and not _BYTE.fullmatch(text)
        for i in range(1, len(text))
        if text[:i] in ids and text[i:] in ids and (text[:i], text[i:]) not in known
    ]


def _decode(text: str, path: Path) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise TokenizerError("normalizer.precompiled_charsmap is no base64", path=path) from None
