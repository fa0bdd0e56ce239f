"""What EXL2 can make of a matrix: which share of the inputs gets how many bits, and how many inputs share scales.

An option is written ``4@128:.1 3@128:.9``: 10 % of the inputs, the most important, with 4 bits in groups of 128, the rest with 3. ExLlamaV2 has
a table of options for the matrices of an attention, one for those of a feed-forward, and one for the output; they are data, ``exl2_options.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any, Final

from ...errors import EncodingError

__all__ = [
    "PADDING",
    "SCALE_BITS",
    "WIDTHS",
    "Exl2Group",
    "Exl2Option",
    "attention_options",
    "feed_forward_options",
    "head_options",
    "option_groups",
    "parse_option",
    "storage_bits",
]

WIDTHS: Final = (2, 3, 4, 5, 6, 8)
SCALE_BITS: Final = 4
PADDING: Final = 32
"""Outputs are filled up to a multiple of it, and inputs must be one."""


@dataclass(frozen=True, slots=True)
class Exl2Option:
    """Shares of inputs, the most important first.

    Attributes:
        bits: of each share, descending.
        group_sizes: inputs that share scales, of each share; multiples of 32.
        shares: of all inputs; they add up to 1.
    """

    bits: tuple[int, ...]
    group_sizes: tuple[int, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.bits) == len(self.group_sizes) == len(self.shares) > 0:
            raise EncodingError("an EXL2 option needs bits, group sizes and shares, as many of each")
        if any(bits not in WIDTHS for bits in self.bits) or any(a < b for a, b in pairwise(self.bits)):
            raise EncodingError(f"an EXL2 option has bits {self.bits}, not of {WIDTHS}, descending")
        if any(size < 1 or size % PADDING for size in self.group_sizes):
            raise EncodingError(f"an EXL2 option has groups of {self.group_sizes}, not multiples of {PADDING}")
        if any(share <= 0 for share in self.shares) or abs(sum(self.shares) - 1) > 1e-6:
            raise EncodingError(f"an EXL2 option has shares {self.shares}, which are not 1 together")

    def __str__(self) -> str:
        """Return it as :func:`parse_option` reads it."""
        shares = zip(self.bits, self.group_sizes, self.shares, strict=True)
        return " ".join(f"{bits}@{size}:{share:g}" for bits, size, share in shares)

    def to_dict(self) -> dict[str, Any]:
        """Return it as ``measurement.json`` has it."""
        sizes = {str(bits): size for bits, size in zip(self.bits, self.group_sizes, strict=True)}
        return {
            "group_size": sizes,
            "bits": list(self.bits),
            "bits_prop": list(self.shares),
            "scale_bits": SCALE_BITS,
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Exl2Option:
        """Return what :meth:`to_dict` or ExLlamaV2 wrote: group sizes by bits, in a list, or one for all. Raises EncodingError."""
        try:
            bits = tuple(int(it) for it in found["bits"])
            sizes = found["group_size"]
            if isinstance(sizes, Mapping):
                sizes = [sizes[str(it)] for it in bits]
            elif not isinstance(sizes, Sequence):
                sizes = [sizes] * len(bits)
            shares = tuple(float(it) for it in found["bits_prop"])
            option = cls(bits, tuple(int(it) for it in sizes), shares)
            scale_bits = int(found.get("scale_bits", SCALE_BITS))
        except (KeyError, TypeError, ValueError) as error:
            raise EncodingError(f"{found!r:.120} is no EXL2 option") from error
        if scale_bits != SCALE_BITS:
            raise EncodingError(f"an EXL2 option has scales of {scale_bits} bits, not {SCALE_BITS}")
        return option


@dataclass(frozen=True, slots=True)
class Exl2Group:
    """Inputs ``start`` to ``stop``, in packed order, of one width and one scale per output."""

    bits: int
    start: int
    stop: int


@cache
def parse_option(text: str) -> Exl2Option:
    """Return the option that ``4@128:.1 3@128:.9`` stands for; raises EncodingError.

    >>> parse_option("4@128:1").bits
    (4,)
    """
    try:
        words = [word.replace("@", ":").split(":") for word in text.split()]
        bits, sizes, shares = zip(*((int(b), int(size), float(share)) for b, size, share in words), strict=True)
    except ValueError as error:
        raise EncodingError(f"{text!r} is no EXL2 option", remedy="Write it as 4@128:.1 3@128:.9.") from error
    return Exl2Option(bits, sizes, shares)


@cache
def _tables() -> Any:
    return json.loads(Path(__file__).with_name("exl2_options.json").read_text(encoding="utf-8"))


@cache
def attention_options() -> tuple[tuple[Exl2Option, ...], ...]:
    """Return ExLlamaV2's options for an attention, by size: those of query, key, value and output."""
    return tuple(tuple(map(parse_option, row)) for row in _tables()["attention"])


@cache
def feed_forward_options() -> tuple[tuple[Exl2Option, ...], ...]:
    """Return ExLlamaV2's options for a feed-forward, by size: those of gate, up and down."""
    return tuple(tuple(map(parse_option, row)) for row in _tables()["feed_forward"])


@cache
def head_options() -> dict[int, Exl2Option]:
    """Return ExLlamaV2's options for the output, by ``--head-bits``."""
    return {int(bits): parse_option(text) for bits, text in _tables()["head"].items()}


def option_groups(option: Exl2Option, inputs: int) -> tuple[Exl2Group, ...]:
    """Return the groups of a matrix, in packed order; shares are rounded up to whole groups, from the first on, and the last group may be shorter.

    Raises EncodingError where ``inputs`` is no multiple of 32: words would hold weights of two groups.
    """
    if inputs < PADDING or inputs % PADDING:
        raise EncodingError(
            f"EXL2 holds rows of a multiple of {PADDING} weights, not of {inputs}",
            remedy="This model cannot be written as EXL2; choose another format.",
        )
    groups: list[Exl2Group] = []
    done = 0
    for bits, size, share in zip(option.bits, option.group_sizes, option.shares, strict=True):
        for _ in range(max(0, ceil(min(inputs * share, inputs - done) / size))):
            groups.append(Exl2Group(bits, done, min(done + size, inputs)))
            done = groups[-1].stop
    return tuple(groups)


def storage_bits(groups: Sequence[Exl2Group], outputs: int) -> int:
    """Return the bits that a matrix of so many outputs, filled up, takes: codes, scales, groups and the order of the inputs."""
    filled = -(-outputs // PADDING) * PADDING
    inputs = groups[-1].stop
    codes = sum((group.stop - group.start) * group.bits for group in groups) * filled
    return codes + len(groups) * (16 + 32 + SCALE_BITS * filled) + 32 * inputs
