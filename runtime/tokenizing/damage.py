"""Bytes that are no UTF-8, which texts hold as lone surrogates (Python's ``surrogateescape``), as llama.cpp's tokenizers read them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...formats.gguf.strings import decode_text, encode_text

__all__ = ["is_damaged", "readable", "stretches"]

_SURROGATES = re.compile("[\ud800-\udfff]")
_FOREIGN = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # surrogates that stand for no byte


def is_damaged(text: str) -> bool:
    """Whether ``text`` holds lone surrogates."""
    return not text.isascii() and _SURROGATES.search(text) is not None


def readable(text: str) -> str:
    r"""Return ``text`` with U+FFFD for each byte that is no UTF-8: what byte-level BPE is given.

    >>> readable("caf\udcc3\udca9 \udcff")
    'café \ufffd'
    """
    return _SURROGATES.sub("\ufffd", decode_text(_bytes(text))) if is_damaged(text) else text


def stretches(text: str) -> Iterator[str]:
    r"""Divide ``text`` into sound stretches and damaged characters: what sentencepiece-style BPE is given.

    A byte that starts a character claims as many bytes as its upper bits promise, whatever they are.

    >>> list(stretches("caf\udce9 noir"))
    ['caf', '\udce9 n', 'oir']
    """
    if not is_damaged(text):
        yield text
        return
    data = _bytes(text)
    sound = start = 0
    while start < len(data):
        lead = data[start]
        stop = start + (1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4)
        if lead >= 0x80:
            character = decode_text(data[start:stop])
            if is_damaged(character):
                if start > sound:
                    yield decode_text(data[sound:start])
                yield character
                sound = stop
        start = stop
    if sound < len(data):
        yield decode_text(data[sound:])


def _bytes(text: str) -> bytes:
    return encode_text(_FOREIGN.sub("\ufffd", text))
