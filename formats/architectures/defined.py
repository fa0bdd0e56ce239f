"""Whether every name that a description mentions is defined before it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...errors import PluginError
from .base import Architecture, RuntimeFacts
from .expressions import Condition, Expression

__all__ = ["check_names"]


def check_names(architecture: Architecture, path: Path | None) -> None:
    """Raise PluginError for names in a description that no hyper-parameter defines, or defines too late."""
    defined: set[str] = set()

    def demand(names: frozenset[str] | set[str], user: str) -> None:
        for name in sorted(names - defined):
            raise PluginError(
                f"architecture {architecture.name!r}: {user} mentions {name!r}, which no hyper-parameter before it defines",
                path=path,
                remedy=f"Defined: {', '.join(sorted(defined))}.",
            )

    for parameter in architecture.hyper_parameters:
        if isinstance(parameter.default, Expression):
            demand(parameter.default.names, f"the default of {parameter.name!r}")
        if parameter.stored is not None:
            demand(parameter.stored.expression.names, f"'stored' of {parameter.name!r}")
        defined.add(parameter.name)
    for parameter in architecture.hyper_parameters:
        if parameter.recovered is not None:
            demand(parameter.recovered.names, f"'recovered' of {parameter.name!r}")
    layered = _check_layer_names(architecture, defined, demand)
    for check in architecture.checks:
        for expression in (check.equals, check.at_least):
            demand(expression.names if expression else frozenset(), f"the check of {check.config!r}")
        for condition in (check.where, check.holds):
            demand(condition.names - layered if condition else frozenset(), f"the check of {check.config!r}")
    if architecture.rope:
        for size in (architecture.rope.dimensions, architecture.rope.share_of, architecture.rope.local_dimensions):
            demand(size.names if size else frozenset(), "rope")
    facts = architecture.runtime
    if isinstance(facts, RuntimeFacts):
        demand(facts.attention_scale.names, "the attention scale")
        for period in (facts.sliding_period, facts.unrotated_period):
            demand(period.names if period else frozenset(), "a period of layers")
        demand(facts.rotated_when.names if facts.rotated_when else frozenset(), "'rotated_when'")
        demand(facts.parallel.names if isinstance(facts.parallel, Condition) else frozenset(), "'parallel'")
        demand(facts.plain_head_norms.names if facts.plain_head_norms else frozenset(), "'plain_head_norms'")
        if facts.indexer is not None:
            demand({"index_heads", "index_dim", "index_top", "kv_rank", "q_rank"}, "'indexer'")
            demand({"index_pool"} if facts.indexer == "pooled" else set(), "'indexer'")
        if facts.unrotated_temperature:
            demand({"temperature_slope", "temperature_length"}, "'unrotated_temperature'")
    demand({"layers"}, "{layer}")
    for tensor in architecture.tensors:
        user = f"tensor {', '.join(tensor.gguf)}"
        for argument in tensor.arguments.values():
            demand(argument.names - (layered if tensor.per_layer else set()), user)
        for shape in tensor.shapes:
            demand(frozenset().union(*(size.names for size in shape)) - (layered if tensor.per_layer else set()), user)
        if tensor.when:
            demand(tensor.when.names - (layered if tensor.per_layer else set()), user)
        if tensor.per_expert:
            demand({"experts"}, user)
        if tensor.omitted_when:
            demand({tensor.omitted_when}, user)


def _check_layer_names(
    architecture: Architecture, defined: set[str], demand: Callable[[frozenset[str] | set[str], str], None]
) -> set[str]:
    """Return the names that expressions about one layer may mention besides hyper-parameters; refuses those that nothing before defines."""
    layered = {"layer"}
    for parameter in architecture.per_layer:
        demand(parameter.default.names - layered, f"the default of {parameter.name!r}")
        if parameter.name in defined | layered:
            raise PluginError(f"architecture {architecture.name!r}: {parameter.name!r} is defined twice")
        layered.add(parameter.name)
    for parameter in architecture.per_layer:
        if parameter.recovered is not None:
            demand(parameter.recovered.names - layered, f"'recovered' of {parameter.name!r}")
    for source in (it.from_layers for it in architecture.hyper_parameters if it.from_layers is not None):
        if source.name not in layered - {"layer"}:
            raise PluginError(
                f"architecture {architecture.name!r}: there is no number per layer called {source.name!r}"
            )
        demand(source.where.names - layered if source.where else set(), "'from_layers'")
    return layered
