"""The recipes as data: ``mixtures.json``, ``fallbacks.json`` and ``never_quantized.json``, read once and checked.

A mixture is one ``--type`` name. Its ``base`` encoding goes to every weight matrix that no other entry speaks of; ``output`` to the
output matrix (or the embedding that doubles as one), ``embedding`` to a token embedding that is only that. For the classes of
:data:`CLASSES` it may hold a list of ``[encoding, condition, …]``: the first whose conditions all hold decides. The conditions
are those of :data:`.situation.CONDITIONS`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

from ...errors import UnknownTypeError

if TYPE_CHECKING:
    from ..base import Encoding

__all__ = [
    "ALIASES",
    "CLASSES",
    "Fallbacks",
    "NeverQuantized",
    "Recipe",
    "Rule",
    "fallbacks",
    "find_recipe",
    "nearest",
    "never_quantized",
    "recipes",
]

ALIASES: Mapping[str, str] = MappingProxyType({"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"})
CLASSES = ("attn_v", "attn_k", "attn_q", "attn_output", "ffn_down", "ffn_gate_up")
Group = Literal["plain", "low bit", "experts"]


@dataclass(frozen=True, slots=True)
class Rule:
    """``encoding`` where all ``conditions`` hold."""

    encoding: str
    conditions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One ``--type`` name.

    Attributes:
        name: upper-case name (``Q4_K_M``).
        file_type: number for ``general.file_type``; None where the source's stays.
        about: one line for ``qconv types``.
        base: encoding of most weight matrices; None where each keeps its source's.
        rules: per class of :data:`CLASSES` the rules in order; a class without any gets ``base``.
        output: encoding of the output matrix; None where it is ``base``.
        embedding: encoding of a token embedding that is not the output matrix too.
        group: ``plain``, ``low bit`` (1 and 2 bits by codebook: own rules for attention), or ``experts`` (only experts get ``base``).
    """

    name: str
    file_type: int | None
    about: str
    base: str | None
    rules: Mapping[str, tuple[Rule, ...]]
    output: str | None = None
    embedding: str | None = None
    group: Group = "plain"

    @property
    def is_mixture(self) -> bool:
        """Whether it quantizes: floats and ``COPY`` have no rules at all."""
        return self.output is not None


@dataclass(frozen=True, slots=True)
class Fallbacks:
    """What an encoding becomes where its block does not fit: llama.cpp's table, qconv's additions, and the last resort."""

    llama_cpp: Mapping[str, str]
    added: Mapping[str, str]
    last: str


@dataclass(frozen=True, slots=True)
class NeverQuantized:
    """Names of tensors that are no weight matrices, or too delicate: whole names, parts of names, and parts per architecture."""

    equals: frozenset[str]
    contains: tuple[str, ...]
    architectures: Mapping[str, tuple[str, ...]]


def _load(name: str) -> Any:
    """Read one of the package's JSON files."""
    return json.loads(files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _recipe(name: str, row: dict[str, Any]) -> Recipe:
    """Build one recipe; raises ValueError for keys that no recipe has, since data is trusted but typing is not."""
    unknown = set(row) - {"file_type", "about", "base", "output", "embedding", "group", *CLASSES}
    if unknown or row.get("group", "plain") not in get_args(Group):
        raise ValueError(f"mixtures.json: {name}: unknown {sorted(unknown) or row['group']}")
    rules = {key: tuple(Rule(head, tuple(rest)) for head, *rest in row.pop(key)) for key in CLASSES if key in row}
    return Recipe(name=name, rules=MappingProxyType(rules), **row)


@cache
def recipes() -> Mapping[str, Recipe]:
    """Return every recipe by its upper-case name, in the order of a listing, ``COPY`` last."""
    return MappingProxyType({name: _recipe(name, row) for name, row in _load("mixtures.json").items()})


@cache
def fallbacks() -> Fallbacks:
    """Return the shape fallbacks."""
    row = _load("fallbacks.json")
    return Fallbacks(MappingProxyType(row["llama.cpp"]), MappingProxyType(row["added"]), row["last"])


@cache
def never_quantized() -> NeverQuantized:
    """Return the names that keep their encoding."""
    row = _load("never_quantized.json")
    per_architecture = {name: tuple(parts) for name, parts in row["architectures"].items()}
    return NeverQuantized(frozenset(row["equals"]), tuple(row["contains"]), MappingProxyType(per_architecture))


def find_recipe(name: str, encodings: Mapping[str, Encoding] = MappingProxyType({})) -> Recipe:
    """Return the recipe called ``name``, in any case, by an alias or by its ``general.file_type`` number.

    A name of ``encodings`` that is no recipe, such as a plugin's, gives one that uses this encoding for every weight matrix.
    Raises UnknownTypeError, with the nearest names.

    >>> find_recipe("q4_k").name
    'Q4_K_M'
    """
    known = recipes()
    upper = name.strip().upper()
    for recipe in known.values():
        if upper.isdigit() and recipe.file_type == int(upper):
            return recipe
    found = known.get(ALIASES.get(upper, upper))
    if found is None and upper in encodings and encodings[upper].load is not None:
        return Recipe(upper, None, f"{upper} throughout", upper, MappingProxyType({}), output=upper, embedding=upper)
    if found is None:
        raise nearest(name, [*known, *ALIASES], "type", "`qconv types` lists all.")
    return found


def nearest(name: str, known: list[str], what: str, remedy: str) -> UnknownTypeError:
    """Return the error for a name that is not among ``known``, with those that look like it."""
    close = get_close_matches(name.strip().upper().replace("-", "_"), known, n=4, cutoff=0.5)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    return UnknownTypeError(f"there is no {what} {name!r}{hint}", remedy=remedy)
