"""Text to tokens and back, for a model of any format, by the ``tokenizer.ggml.*`` keys of its metadata.

::

    tokenizer = load_tokenizer(model)
    tokens = tokenizer.encode("Some text")               # int32 (count,), as llama.cpp's perplexity tool makes them
    tokenizer.decode(tokens)                             # 'Some text'
    stream = tokenizer.stream(after=tokens)              # for generation, token by token
    print(stream.feed(next_token), end="")

Texts are str; bytes that are no UTF-8 are lone surrogates (read with ``errors="surrogateescape"``).
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ...errors import UsageError
from ...formats.base import Model
from ...formats.gguf.strings import encode_text
from ...formats.huggingface.tokenizing.vocabulary import TokenType
from .byte_level import ByteLevelMerger, from_byte_alphabet
from .ranked import RankMerger
from .sentencepiece import SPACE, ScoreMerger
from .special import partition
from .vocabulary import Vocabulary, read_vocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TextStream", "Tokenizer", "load_tokenizer"]

_SPECIAL = (TokenType.CONTROL, TokenType.UNKNOWN)
_SOUGHT = (*_SPECIAL, TokenType.USER_DEFINED)


def load_tokenizer(model: Model) -> Tokenizer:
    """Return the tokenizer of ``model``.

    Raises TokenizerError where the model has none, or one that the runtime does not know (unigram, WordPiece …), or one that contradicts
    itself; FormatError where a key has another type than GGUF prescribes.
    """
    vocabulary = read_vocabulary(model)
    if vocabulary.kind == "llama":
        return Tokenizer(vocabulary, ScoreMerger(vocabulary, model.path).encode)
    if vocabulary.kind == "gemma4":
        return Tokenizer(vocabulary, RankMerger(vocabulary, model.path).encode)
    return Tokenizer(vocabulary, ByteLevelMerger(vocabulary, model.path).encode)


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A vocabulary, and what turns ordinary text into its tokens.

    Attributes:
        vocabulary: tokens, types, roles and flags.
        encode_text: tokens of a text without special tokens.
    """

    vocabulary: Vocabulary
    encode_text: Callable[[str], list[int]]

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.vocabulary.tokens)

    @property
    def bos(self) -> int | None:
        """The token that begins a text, None for none."""
        return self.vocabulary.roles.get("bos")

    @property
    def eos(self) -> int | None:
        """The token that ends a text, None for none."""
        return self.vocabulary.roles.get("eos")

    @property
    def eot(self) -> int | None:
        """The token that ends a turn of a conversation, None for none."""
        return self.vocabulary.roles.get("eot")

    @property
    def adds_bos(self) -> bool:
        """Whether :meth:`encode` puts ``bos`` in front."""
        return self.vocabulary.add_bos

    @property
    def adds_eos(self) -> bool:
        """Whether :meth:`encode` puts ``eos`` behind."""
        return self.vocabulary.add_eos

    def is_end_of_generation(self, token: int) -> bool:
        """Whether a model that gives ``token`` has finished."""
        return token in self.vocabulary.ends

    def digest(self) -> str:
        """Return the SHA-256 (hexadecimal) of the vocabulary: equal for tokenizers that give the same tokens."""
        return self._digest

    def encode(
        self,
        text: str,
        *,
        add_special: bool = True,
        parse_special: bool = False,
        after: Sequence[int] | NDArray[np.int32] = (),
    ) -> NDArray[np.int32]:
        """Return the tokens of ``text``, as llama.cpp makes them.

        Args:
            text: any text; lone surrogates stand for bytes that are no UTF-8.
            add_special: put ``bos`` in front and ``eos`` behind, where the vocabulary asks for it.
            parse_special: let the text of a control token become that token. User-defined tokens are always found.
            after: the tokens that the text follows: behind ordinary ones it gets no space in front.

        Returns int32 (count,). Raises TokenizerError for a character that the vocabulary cannot express at all.
        """
        vocabulary = self.vocabulary
        tokens: list[int] = []
        if add_special and vocabulary.add_bos:
            tokens.append(vocabulary.roles["bos"])
        behind_special = self._begins(after)
        for fragment in partition(text, self._all_markers if parse_special else self._markers, vocabulary.strippers):
            if isinstance(fragment, int):
                tokens.append(fragment)
                behind_special = True
                continue
            prefix = " " if vocabulary.add_space and behind_special else ""
            tokens += self.encode_text(prefix + fragment)
            behind_special = False
        if add_special and vocabulary.add_eos:
            tokens.append(vocabulary.roles["eos"])
        return np.array(tokens, np.int32)

    def decode(self, tokens: Iterable[int] | NDArray[np.int32], *, special: bool = False) -> str:
        """Return the text of ``tokens``; bytes that are no UTF-8 become U+FFFD.

        Args:
            tokens: ids.
            special: whether control tokens show their text; without, they are left out.

        Undoes :meth:`encode`: the space that it puts in front, and behind special tokens, is taken away. Raises UsageError for an id
        that is no token.
        """
        return self.decode_bytes(tokens, special=special).decode("utf-8", "replace")

    def decode_bytes(self, tokens: Iterable[int] | NDArray[np.int32], *, special: bool = False) -> bytes:
        """Return the bytes of ``tokens``, which need not be UTF-8; otherwise as :meth:`decode`."""
        pieces = []
        behind_special = True
        for token in tokens.tolist() if isinstance(tokens, np.ndarray) else tokens:
            pieces.append(self.piece(token, special=special, first=behind_special))
            behind_special = self.vocabulary.types[token] in _SOUGHT
        return b"".join(pieces)

    def stream(self, after: Sequence[int] | NDArray[np.int32] = (), *, special: bool = False) -> TextStream:
        """Return a decoder that takes tokens one by one, as they follow the tokens ``after``."""
        return TextStream(self, self._begins(after), special)

    def piece(self, token: int, *, special: bool = False, first: bool = False) -> bytes:
        """Return the bytes of one token.

        Args:
            token: its id.
            special: whether a control token shows its text; without, it has none.
            first: whether it stands first or behind a special token, where it may begin with a space that :meth:`encode` put there.
        """
        vocabulary = self.vocabulary
        if not 0 <= token < self.size:
            raise UsageError(f"there is no token {token}: the vocabulary has {self.size}")
        kind, text = vocabulary.types[token], vocabulary.tokens[token]
        if kind is TokenType.USER_DEFINED or (special and kind in _SPECIAL):
            return encode_text(text)
        if kind is TokenType.BYTE:
            return bytes([int(text[3:5], 16)])
        if kind is not TokenType.NORMAL:
            return b""
        if vocabulary.kind == "gpt2":
            return from_byte_alphabet(text)
        text = text.replace(SPACE, " ")
        return encode_text(text[1:] if first and vocabulary.add_space and text.startswith(" ") else text)

    def _begins(self, after: Sequence[int] | NDArray[np.int32]) -> bool:
        """Return whether what follows ``after`` stands first or behind a special token."""
        return not len(after) or self.vocabulary.types[int(after[-1])] in _SOUGHT

    @cached_property
    def _digest(self) -> str:
        return self.vocabulary.digest()

    @cached_property
    def _all_markers(self) -> tuple[tuple[str, int], ...]:
        """Texts and ids of all tokens that are sought in texts, longest first."""
        vocabulary = self.vocabulary
        found = [(vocabulary.tokens[i], i) for i, kind in enumerate(vocabulary.types) if kind in _SOUGHT]
        return tuple(sorted(found, key=lambda marker: -len(encode_text(marker[0]))))

    @cached_property
    def _markers(self) -> tuple[tuple[str, int], ...]:
        """Those of them that are ordinary text: user-defined tokens."""
        types = self.vocabulary.types
        return tuple(marker for marker in self._all_markers if types[marker[1]] is TokenType.USER_DEFINED)


class TextStream:
    """Text from tokens as they come: a character whose bytes are spread over tokens appears with the last of them.

    Args:
        tokenizer: whose tokens they are.
        first: whether the next token stands first in its text or behind a special token.
        special: whether control tokens show their text.
    """

    def __init__(self, tokenizer: Tokenizer, first: bool, special: bool) -> None:
        self._tokenizer = tokenizer
        self._first = first
        self._special = special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """Return the text that ``token`` completes, perhaps none."""
        piece = self._tokenizer.piece(token, special=self._special, first=self._first)
        self._first = self._tokenizer.vocabulary.types[token] in _SOUGHT
        return self._decoder.decode(piece)

    def finish(self) -> str:
        """Return U+FFFD where the last character is unfinished, else nothing."""
        return self._decoder.decode(b"", final=True)
