"""A model's words on standard output, as they come."""

from __future__ import annotations

import sys

__all__ = ["say", "summary"]


def say(text: str) -> None:
    """Write text at once.

    On a terminal, control characters other than line feed and tab become U+FFFD: a model's words must not move the cursor or change settings. What
    the encoding of the output lacks becomes a question mark.
    """
    if not text:
        return
    if sys.stdout.isatty():
        text = "".join(it if it in "\n\t" or it.isprintable() or it.isspace() else "\ufffd" for it in text)
        text = text.replace("\r", "")
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def summary(prompt: int, tokens: int, prompt_seconds: float, speed: float | None) -> str:
    """Return one line about the work.

    >>> summary(5, 40, 0.5, 21.26)
    '5 prompt tokens in 0.50 s, 40 tokens at 21.3 tokens/s'
    """
    rate = "" if speed is None else f" at {speed:.1f} tokens/s"
    return f"{prompt} prompt tokens in {prompt_seconds:.2f} s, {tokens} tokens{rate}"
