"""Tensor names of a checkpoint against an architecture's map, all of them before any weight is read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from .base import Architecture, TensorMap
from .per_layer import at_layer

__all__ = ["MappedTensor", "NameMap", "canonical_order", "fill_name", "least_distance", "map_names"]


@dataclass(frozen=True, slots=True)
class MappedTensor:
    """One application of an entry of the map.

    Attributes:
        entry: the entry.
        layer: the layer, None for tensors outside of layers.
        sources: names in the checkpoint, in the order of the transform's inputs.
        gguf: canonical names of the transform's outputs.
    """

    entry: TensorMap
    layer: int | None
    sources: tuple[str, ...]
    gguf: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NameMap:
    """What became of every name.

    Attributes:
        mapped: in canonical order: tensors before the layers, each layer's, tensors after them.
        dropped: checkpoint names left out, with the reason to tell, or None.
        unmapped: checkpoint names that nothing accounts for.
        missing: Hugging Face names that the architecture needs and the checkpoint lacks.
        ambiguous: pairs of checkpoint names that mean one tensor.
    """

    mapped: tuple[MappedTensor, ...]
    dropped: tuple[tuple[str, str | None], ...]
    unmapped: tuple[str, ...]
    missing: tuple[str, ...]
    ambiguous: tuple[tuple[str, str], ...]


def map_names(architecture: Architecture, names: Collection[str], values: Mapping[str, object]) -> NameMap:
    """Map checkpoint ``names``; ``values`` are the hyper-parameters (``layers``, ``experts`` and those of ``omitted_when`` count)."""
    known = {_template(name) for entry in architecture.tensors for name in entry.hf}
    by_canonical: dict[str, str] = {}
    ambiguous = []
    for name in names:
        canonical = _canonical(name, architecture.prefixes, known)
        if canonical in by_canonical:
            ambiguous.append((by_canonical[canonical], name))
        by_canonical[canonical] = name
    mapped, missing, omitted = _apply(architecture, by_canonical, values)
    used = {source for item in mapped for source in item.sources}
    layers = str(_count(values, "layers"))
    patterns = [(rule, rule.pattern.replace("{layers}", layers)) for rule in architecture.dropped]
    dropped, unmapped = [], []
    for canonical, name in by_canonical.items():
        if name in used:
            continue
        rule = next((rule for rule, pattern in patterns if fnmatchcase(name, pattern)), None)
        if rule is not None:
            dropped.append((name, rule.reason))
        elif canonical in omitted:
            dropped.append((name, omitted[canonical]))
        else:
            unmapped.append(name)
    return NameMap(tuple(mapped), tuple(dropped), tuple(unmapped), tuple(missing), tuple(ambiguous))


def least_distance(architecture: Architecture, names: Collection[str], values: Mapping[str, object]) -> int:
    """Return a number that the unmapped and missing names of :func:`map_names` together are not below; cheap, whatever the configuration says."""
    known = {_template(name) for entry in architecture.tensors for name in entry.hf}
    patterns = [rule.pattern.replace("{layers}", str(_count(values, "layers"))) for rule in architecture.dropped]
    strange = sum(
        _template(_canonical(name, architecture.prefixes, known)) not in known
        and not any(fnmatchcase(name, pattern) for pattern in patterns)
        for name in names
    )
    numbers = {part for name in names for part in name.split(".") if part.isdecimal()}
    always = any(entry.per_layer and entry.required and entry.when is None for entry in architecture.tensors)
    return strange + always * max(0, _count(values, "layers") - len(numbers))


def _template(name: str) -> str:
    """Return the name with ``#`` in the place of each number or placeholder that is a whole component."""
    return ".".join(
        "#" if part in ("{layer}", "{expert}") or (part.isdecimal() and part.isascii()) else part
        for part in name.split(".")
    )


def _canonical(name: str, prefixes: Mapping[str, str], known: Collection[str]) -> str:
    """Return the name with the family's usual prefix, where a rewriting leads to a name that the map knows."""
    if _template(name) in known:
        return name
    for prefix, replacement in prefixes.items():
        if name.startswith(prefix):
            candidate = replacement + name.removeprefix(prefix)
            if _template(candidate) in known:
                return candidate
    return name


def _apply(
    architecture: Architecture, by_canonical: Mapping[str, str], values: Mapping[str, object]
) -> tuple[list[MappedTensor], list[str], dict[str, str]]:
    """Return the mapped tensors in canonical order, the missing Hugging Face names, and the omitted ones with the reason."""
    mapped: list[MappedTensor] = []
    missing: list[str] = []
    omitted: dict[str, str] = {}
    produced: set[str] = set()
    wanted: list[tuple[tuple[str, ...], list[str]]] = []
    scopes: dict[int | None, Mapping[str, object]] = {}
    for entry, layer in canonical_order(architecture, _count(values, "layers")):
        if layer not in scopes:
            scopes[layer] = at_layer(values, layer)
        if entry.when is not None and not entry.when.holds(scopes[layer]):
            continue
        gguf = tuple(fill_name(name, layer) for name in entry.gguf)
        experts = range(_count(values, "experts")) if entry.per_expert else (None,)
        sources = [fill_name(name, layer, expert) for expert in experts for name in entry.hf]
        absent = [name for name in sources if name not in by_canonical]
        if entry.omitted_when is not None and values.get(entry.omitted_when) is True:
            omitted |= dict.fromkeys(sources, f"left out, since {entry.omitted_when} is set in the configuration")
        elif produced.isdisjoint(gguf) and not absent and sources:
            mapped.append(MappedTensor(entry, layer, tuple(by_canonical[name] for name in sources), gguf))
            produced.update(gguf)
        elif absent and (entry.required or len(absent) < len(sources)):
            wanted.append((gguf, absent))
    listed: set[str] = set()
    for gguf, absent in wanted:
        if not (produced.issuperset(gguf) or listed.issuperset(gguf)):
            missing.extend(absent)
            listed.update(gguf)
    return mapped, missing, omitted


def canonical_order(architecture: Architecture, layers: int) -> list[tuple[TensorMap, int | None]]:
    """Return the entries of the map with the layers that they run over: before the layers, layer by layer, after them."""
    inside = [index for index, entry in enumerate(architecture.tensors) if entry.per_layer]
    first = inside[0] if inside else len(architecture.tensors)
    order: list[tuple[TensorMap, int | None]] = [(entry, None) for entry in architecture.tensors[:first]]
    order += [(architecture.tensors[index], layer) for layer in range(layers) for index in inside]
    order += [(entry, None) for entry in architecture.tensors[first:] if not entry.per_layer]
    return order


def fill_name(template: str, layer: int | None, expert: int | None = None) -> str:
    """Return a name of the map with the numbers of layer and expert in their places."""
    return template.replace("{layer}", str(layer)).replace("{expert}", str(expert))


def _count(values: Mapping[str, object], name: str) -> int:
    value = values.get(name)
    return value if isinstance(value, int) else 0
