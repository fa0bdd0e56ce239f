"""Examples on a page of the documentation."""

from __future__ import annotations

import re


def console_examples(page: str) -> list[tuple[str, str]]:
    """Commands of a page's console blocks, and what it says that they print."""
    blocks = re.findall(r"^```console\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    parts = re.split(r"^\$ (.+)\n", "".join(blocks), flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def comparable(text: str) -> str:
    """The text without the values of numbers, and without spaces at line ends, blank lines and line breaks within a message."""
    lines = (re.sub(r"\d[\d,.]*(e-\d+)?( [KMG]iB/s)?", "#", line).rstrip() for line in text.splitlines())
    return re.sub(r" +", " ", "\n".join(line for line in lines if line)).strip()
