"""A vocabulary on its way into GGUF: tokens, types and scores by id, and what added tokens and embedding rows do to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType

from ....errors import TokenizerError
from ...metadata import Field

__all__ = [
    "MAX_TOKENS",
    "AddedToken",
    "TokenType",
    "Vocabulary",
    "add_tokens",
    "check_gaps",
    "check_tokens",
    "fit_rows",
    "set_types",
]

MAX_TOKENS = 1 << 21
"""Highest id plus one that is accepted; the largest vocabularies in use have about 300,000 tokens."""

_GAPS_MAX = 1 << 13  # ids without a token, beside as many as there are tokens

_ADDED_SCORE = -1000.0
_UNUSED_SCORE = -10000.0


class TokenType(IntEnum):
    """GGUF's token types (``tokenizer.ggml.token_type``)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is matched in the text before the tokenizer's model sees it.

    Attributes:
        id: its position in the vocabulary.
        text: what it matches.
        special: whether it is markup for the model (a control token) rather than text.
        strips: whether it takes the spaces around it with it.
        source: the file that defines it.
    """

    id: int
    text: str
    special: bool
    strips: bool
    source: str


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, with what GGUF says about them.

    Attributes:
        model: ``tokenizer.ggml.model``: ``llama`` (sentencepiece BPE), ``gpt2`` (byte-level BPE), ``gemma4`` (BPE over characters), ``t5`` (unigram),
            ``bert`` (word pieces).
        source: the file that it was read from.
        tokens: text of each token; byte-level tokens in GPT-2's byte alphabet.
        types: a :class:`TokenType` per token.
        scores: a score per token, None for BPE by merges and word pieces.
        metadata: further ``tokenizer.ggml.*`` keys.
        adds_space: whether text gets a space in front; False for byte-level BPE and word pieces.
        special: ids that the vocabulary file itself declares, by role (``bos``, ``eos``, ``unk``, ``pad``).
        notes: what the user should know.
    """

    model: str
    source: Path
    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    scores: tuple[float, ...] | None
    metadata: Mapping[str, Field]
    adds_space: bool = False
    special: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()


def check_gaps(length: int, known: int, path: Path) -> None:
    """Raise TokenizerError where ``length`` ids have only ``known`` tokens: each of the others would cost a placeholder."""
    if length > 2 * known + _GAPS_MAX:
        raise TokenizerError(
            f"the token {length - 1} has the largest id, but there are only {known} tokens",
            path=path,
            remedy="Restore the original tokenizer files.",
        )


def add_tokens(vocabulary: Vocabulary, added: Iterable[AddedToken]) -> Vocabulary:
    """Return ``vocabulary`` with added tokens put in place and gaps between ids filled with unused placeholders.

    Special tokens become CONTROL, others USER_DEFINED; a piece that already is UNKNOWN, CONTROL or BYTE and keeps its text keeps its
    type. Where an ordinary token elsewhere has the same text, no text can ever become it, and its slot is left unused. Raises
    TokenizerError where two added tokens share a text.
    """
    tokens, types = list(vocabulary.tokens), list(vocabulary.types)
    scores = None if vocabulary.scores is None else list(vocabulary.scores)
    ordered = sorted(added, key=lambda token: token.id)
    notes: list[str] = []
    owners = {token.text: token.id for token in ordered}
    for token in ordered:
        if owners[token.text] != token.id:
            raise TokenizerError(
                f"the added token {token.text!r} has the ids {token.id} and {owners[token.text]}",
                path=vocabulary.source.with_name(token.source),
                remedy="Remove one of the two.",
            )
    if ordered:
        last = ordered[-1]
        check_gaps(last.id + 1, len(tokens) + len(ordered), vocabulary.source.with_name(last.source))
        _extend(tokens, types, scores, last.id + 1)
    shadowed = 0
    for i, text in enumerate(tokens):
        if owners.get(text, i) != i:
            tokens[i], types[i] = f"[PAD{i}]", TokenType.UNUSED
            shadowed += 1
    replaced = []
    for token in ordered:
        # text is matched before spaces are written as ▁, so a token that stands for spaces has to hold spaces
        text = token.text if token.special else token.text.replace("▁", " ")
        old_text, old_type = tokens[token.id], types[token.id]
        if old_text == token.text and old_type in (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.BYTE):
            continue
        tokens[token.id] = text
        types[token.id] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
        if old_text in (token.text, text):
            continue
        if old_type is not TokenType.UNUSED:
            replaced.append(f"{token.id} ({old_text!r} by {text!r})")
        if scores is not None:
            scores[token.id] = _ADDED_SCORE
    stripping = sum(token.strips for token in ordered)
    if stripping:
        notes.append(
            f"{stripping} added tokens take the spaces around them with them; GGUF cannot tell that to runtimes"
        )
    if shadowed:
        notes.append(f"{shadowed} tokens have the text of an added token with another id; they are marked unused")
    if replaced:
        notes.append(f"added tokens replace others: {_some(replaced)}")
    return replace(
        vocabulary,
        tokens=tuple(tokens),
        types=tuple(types),
        scores=None if scores is None else tuple(scores),
        notes=(*vocabulary.notes, *notes),
    )


def fit_rows(vocabulary: Vocabulary, rows: int, needed: Mapping[int, str]) -> Vocabulary:
    """Return ``vocabulary`` with exactly ``rows`` tokens, one per row of the embedding matrix.

    Rows beyond the tokens (matrices padded for speed) get unused placeholders ``[PADn]``. Tokens beyond the rows have no embedding:
    they are dropped if they are placeholders or added tokens that nothing refers to, with a note. ``needed`` maps the ids that
    something refers to, to what that is. Raises TokenizerError where a needed or ordinary token would be lost.
    """
    tokens, types = list(vocabulary.tokens), list(vocabulary.types)
    scores = None if vocabulary.scores is None else list(vocabulary.scores)
    notes: list[str] = []
    for i in range(rows, len(tokens)):
        if i in needed or types[i] not in (TokenType.UNUSED, TokenType.CONTROL, TokenType.USER_DEFINED):
            reason = needed.get(i, "an ordinary token")
            raise TokenizerError(
                f"the vocabulary has {len(tokens)} tokens, but the embedding matrix {rows} rows, and token {i} {tokens[i]!r} is "
                f"{reason}",
                path=vocabulary.source,
                remedy="Use the tokenizer that the model was trained with, or resize the model's embeddings.",
            )
    lost = [tokens[i] for i in range(rows, len(tokens)) if types[i] is not TokenType.UNUSED]
    if lost:
        notes.append(f"dropped {len(lost)} added tokens that have no embedding: {_some(map(repr, lost))}")
    if rows > len(tokens):
        notes.append(f"the embedding matrix has {rows - len(tokens)} rows beyond the vocabulary; they are named [PADn]")
    del tokens[rows:], types[rows:]
    if scores is not None:
        del scores[rows:]
    _extend(tokens, types, scores, rows)
    return replace(
        vocabulary,
        tokens=tuple(tokens),
        types=tuple(types),
        scores=None if scores is None else tuple(scores),
        notes=(*vocabulary.notes, *notes),
    )


def set_types(vocabulary: Vocabulary, types: Mapping[int, TokenType]) -> Vocabulary:
    """Return ``vocabulary`` with ordinary tokens turned into others: ``types`` by id; tokens of another type stay."""
    return replace(
        vocabulary,
        types=tuple(types.get(i, old) if old is TokenType.NORMAL else old for i, old in enumerate(vocabulary.types)),
    )


def check_tokens(vocabulary: Vocabulary) -> Vocabulary:
    """Return ``vocabulary`` with texts that GGUF runtimes can hold: unique, not empty, without NUL, valid Unicode.

    Empty texts and texts with NUL become unused placeholders, with a note. Raises TokenizerError for duplicates and lone surrogates.
    """
    tokens, types = list(vocabulary.tokens), list(vocabulary.types)
    unreadable = [i for i, text in enumerate(tokens) if not text or "\0" in text]
    for i in unreadable:
        tokens[i], types[i] = f"[PAD{i}]", TokenType.UNUSED
    seen: dict[str, int] = {}
    for i, text in enumerate(tokens):
        if types[i] is TokenType.UNUSED:
            continue
        if text in seen:
            raise TokenizerError(
                f"the tokens {seen[text]} and {i} have the same text {text!r}, which GGUF runtimes refuse",
                path=vocabulary.source,
                remedy="Give one of them another text.",
            )
        _check_unicode(text, i, vocabulary.source)
        seen[text] = i
    for i, placeholder in enumerate(tokens):
        text = placeholder
        if types[i] is TokenType.UNUSED:
            _check_unicode(text, i, vocabulary.source)
            while text in seen:
                text += "-"
            tokens[i], seen[text] = text, i
    note = f"{len(unreadable)} tokens with an empty text or NUL are marked unused: {_some(map(str, unreadable))}"
    return replace(
        vocabulary,
        tokens=tuple(tokens),
        types=tuple(types),
        notes=(*vocabulary.notes, *([note] if unreadable else [])),
    )


def _check_unicode(text: str, token: int, source: Path) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise TokenizerError(f"token {token} {text!r} is no valid Unicode", path=source) from None


def _extend(tokens: list[str], types: list[TokenType], scores: list[float] | None, length: int) -> None:
    gap = range(len(tokens), length)
    tokens += [f"[PAD{i}]" for i in gap]
    types += [TokenType.UNUSED] * len(gap)
    if scores is not None:
        scores += [_UNUSED_SCORE] * len(gap)


def _some(items: Iterable[str], limit: int = 5) -> str:
    shown = list(items)
    return ", ".join(shown[:limit]) + (f" and {len(shown) - limit} more" if len(shown) > limit else "")
