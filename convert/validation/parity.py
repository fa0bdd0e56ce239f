"""Whether two models make the same tokens of the same text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ...runtime.measuring.identity import Text
from ...runtime.tokenizing.tokenizer import Tokenizer

__all__ = ["Parity", "compare_tokenizers"]

_ROLES = ("bos", "eos")
_FLAGS = ("adds_bos", "adds_eos")


@dataclass(frozen=True)
class Parity:
    """What a comparison of tokenizers found.

    Attributes:
        same: whether both make the same tokens and begin and end texts alike.
        difference: the first difference, for people; empty where there is none.
        source: digest of the source's tokenizer.
        result: digest of the result's.
    """

    same: bool
    difference: str
    source: str
    result: str

    def to_dict(self) -> dict[str, object]:
        """Return plain data with stable keys."""
        return asdict(self)


def compare_tokenizers(source: Tokenizer, result: Tokenizer, texts: Sequence[Text]) -> Parity:
    """Compare sizes, special tokens, flags, and the tokens of all texts."""
    found = _difference(source, result, texts)
    return Parity(not found, found, source.digest(), result.digest())


def _difference(source: Tokenizer, result: Tokenizer, texts: Sequence[Text]) -> str:
    if source.digest() == result.digest():
        return ""
    if source.size != result.size:
        return f"the source has {source.size} tokens, the result {result.size}"
    for role in _ROLES:
        one, other = getattr(source, role), getattr(result, role)
        if one != other:
            return f"the {role.upper()} token is {one} in the source, {other} in the result"
    for flag in _FLAGS:
        if getattr(source, flag) != getattr(result, flag):
            verb, role = ("begins", "BOS") if flag == "adds_bos" else ("ends", "EOS")
            which, not_which = ("source", "result") if getattr(source, flag) else ("result", "source")
            return f"the {which} {verb} texts with {role}, the {not_which} does not"
    for text in texts:
        one, other = source.encode(text.content), result.encode(text.content)
        if not np.array_equal(one, other):
            return _first_difference(text, one, other, source, result)
    return ""


def _first_difference(text: Text, one: np.ndarray, other: np.ndarray, source: Tokenizer, result: Tokenizer) -> str:
    shorter = min(len(one), len(other))
    places = np.nonzero(one[:shorter] != other[:shorter])[0]
    place = int(places[0]) if len(places) else shorter
    named = [
        f"{int(ids[place])} ({tokenizer.decode(ids[place : place + 1], special=True)!r})"
        if place < len(ids)
        else "none"
        for ids, tokenizer in ((one, source), (other, result))
    ]
    return f"token {place} of {text.name} is {named[0]} in the source, {named[1]} in the result"
