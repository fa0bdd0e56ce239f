"""Which family's description turns a model in canonical form back into Hugging Face's, and its tensors with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ....errors import MissingTensorError, ModelError, ShapeError, UnmappedTensorError
from ...architectures import (
    TRANSFORMS,
    Architecture,
    TensorMap,
    answering,
    at_layer,
    bears,
    unknown_architecture,
    whole,
)
from ...architectures.names import canonical_order, fill_name
from ...architectures.rows import under
from ...architectures.transforms import constant
from ...base import Model, Tensor
from ...metadata import Field
from ...rounded import exact_values, skipped_rows
from ...window_patterns import with_period
from ..configuration import Values
from .source import Recorded
from .values import recover_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Family", "find_family", "invert_tensors"]

_ROTARY = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_LISTED = 6


@dataclass(frozen=True)
class Family:
    """A model's description, its hyper-parameters by the description's names, and the entries of the name map that apply."""

    architecture: Architecture
    values: Values
    entries: tuple[tuple[TensorMap, int | None], ...]


def find_family(
    model: Model, architectures: Mapping[str, Architecture], config: Mapping[str, Any] | None, recorded: Recorded
) -> Family:
    """Return the family that answers to ``general.architecture``, and to the source's configuration where that is known.

    Of several that share the GGUF name the marked ones come first; the first that has a place for every tensor is taken. Raises
    UnknownArchitectureError where none has the name, and what is wrong with the first one where none fits.
    """
    named = answering(architectures.values(), model.architecture or "", model.metadata)
    if not named:
        name = model.architecture or ""
        problem = f"no description tells how {name or 'a model without architecture'} looks in Hugging Face's form"
        raise unknown_architecture(problem, name, architectures.values(), model.path)
    candidates = sorted(named, key=lambda it: _preference(it, model.metadata, config))
    first: ModelError | None = None
    for architecture in candidates:
        try:
            return _fit(architecture, model, recorded, config)
        except ModelError as error:
            first = first or error
    assert first is not None
    raise first


def _preference(
    architecture: Architecture, metadata: Mapping[str, Field], config: Mapping[str, Any] | None
) -> tuple[bool, int]:
    classes = (config or {}).get("architectures")
    is_source = isinstance(classes, list) and bool(set(map(str, classes)) & set(architecture.classes))
    if not is_source and config is not None:
        is_source = config.get("model_type") in architecture.model_types
    mark = architecture.mark
    if mark is None:
        return not is_source, 1
    return not is_source, 0 if bears(metadata, architecture.gguf, mark) else 2


def _fit(architecture: Architecture, model: Model, recorded: Recorded, config: Mapping[str, Any] | None) -> Family:
    section = (config or {}).get(architecture.config_section) if architecture.config_section else None
    model = with_period(architecture, model)
    values = recover_values(architecture, model, section if isinstance(section, dict) else config)
    if not model.tensors:
        return Family(architecture, values, ())
    placed: set[str] = set()
    entries: list[tuple[int, TensorMap, int | None]] = []
    wanted: list[str] = []
    order = [
        (index, entry, layer)
        for index, (entry, layer) in enumerate(canonical_order(architecture, whole(values, "layers")))
        if entry.when is None or entry.when.holds(at_layer(values, layer))
    ]
    for index, entry, layer in sorted(order, key=lambda it: it[1].hf[0] not in recorded.forms):
        gguf = [fill_name(name, layer) for name in entry.gguf]
        if not placed.isdisjoint(gguf):
            continue  # another form of the same tensors
        if all(name in model.tensors for name in gguf):
            placed.update(gguf)
            entries.append((index, entry, layer))
        elif entry.required and not (entry.omitted_when and values.get(entry.omitted_when)):
            wanted += [name for name in gguf if name not in model.tensors]
    missing = [name for name in dict.fromkeys(wanted) if name not in placed]
    unknown = [name for name in model.tensors if name not in placed and name not in _ROTARY]
    if unknown:
        raise UnmappedTensorError(
            f"the architecture {architecture.name} has no place for {_list(unknown)}", path=model.path
        )
    if missing:
        raise MissingTensorError(f"the architecture {architecture.name} needs {_list(missing)}", path=model.path)
    entries.sort(key=lambda it: it[0])
    return Family(architecture, values, tuple((entry, layer) for _, entry, layer in entries))


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)} tensors ({', '.join(names[:_LISTED])}{more})" if len(names) > 1 else f"the tensor {names[0]}"


def invert_tensors(family: Family, model: Model, recorded: Recorded) -> dict[str, Tensor]:
    """Return the tensors under Hugging Face's names, in the description's order.

    Raises ShapeError where one has another shape than the hyper-parameters give.
    """
    found: dict[str, Tensor] = {}
    exact = exact_values(model.metadata, model.tensors, model.path)
    skipped = skipped_rows(model.metadata, model.tensors, model.path)
    for entry, layer in family.entries:
        sources = [model.tensors[fill_name(name, layer)] for name in entry.gguf]
        scope = at_layer(family.values, layer)
        arguments = {name: size.evaluate(scope) for name, size in entry.arguments.items()}
        results = TRANSFORMS[entry.transform].inverse(sources, arguments)
        if len(sources) == 1 and sources[0].name in exact:
            values = exact[sources[0].name]
            known = (
                values.reshape(results[0].shape) if values.size == results[0].row_count * results[0].columns else values
            )
            results = _restored(entry, sources[0], known, arguments) or results
        if entry.transform == "skip_rows" and sources[0].name in skipped:
            rows = np.asarray(skipped[sources[0].name], np.float32)
            results = (under(rows, sources[0]),) if len(rows) == arguments["first"] else results
        experts = range(whole(family.values, "experts")) if entry.per_expert else (None,)
        names = [fill_name(name, layer, expert) for expert in experts for name in entry.hf]
        if len(names) != len(results):
            raise ShapeError(
                f"it holds {len(results)} matrices, the configuration gives {len(names)}",
                path=model.path,
                tensor=sources[0].name,
            )
        for index, (name, result) in enumerate(zip(names, results, strict=True)):
            shape = tuple(size.evaluate(scope) for size in entry.shapes[index % len(entry.shapes)])
            if result.shape != shape:
                raise ShapeError(
                    f"its shape gives {name} {result.shape}, the metadata give {shape}",
                    path=model.path,
                    tensor=sources[0].name,
                )
            stored = recorded.stored_name(name)
            found[stored] = replace(result, name=stored)
    return found


def _restored(
    entry: TensorMap, source: Tensor, values: NDArray[np.generic], arguments: Mapping[str, int]
) -> tuple[Tensor, ...] | None:
    """Return the original values, where their transform gives what the model holds; else None."""
    original = constant(source.name, np.asarray(values, np.float32), source.origin)
    (transformed,) = TRANSFORMS[entry.transform].forward((original,), arguments)
    same = source.shape == transformed.shape and np.array_equal(
        source.rows(0, source.row_count), transformed.rows(0, source.row_count)
    )
    return (original,) if same else None
