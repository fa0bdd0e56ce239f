"""A model's configuration: GGUF metadata, completed by the architecture's description."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from types import MappingProxyType

import numpy as np

from ...errors import ModelError
from ...formats.architectures import (
    Architecture,
    Expression,
    HyperParameter,
    answering,
    bears,
    built_in_architectures,
    unknown_architecture,
)
from ...formats.base import Model
from ...formats.getters import get_flag, get_integer, get_number
from ...formats.huggingface.out.values import recover_values
from ...formats.metadata import Field
from ...formats.strange_keys import note_strange_keys
from ...formats.window_patterns import with_period
from ..attention.rope_settings import logit_multiplier, read_local_rope, read_rope
from ..attention.temperature import read_temperature
from .configuration import Configuration, Layered
from .configuration_parts import (
    Values,
    read_cap,
    read_delta_heads,
    read_kimi_heads,
    read_latent,
    read_multiplier,
    read_routing,
    read_sparse,
    read_state_space,
    read_stream_mixing,
)

__all__ = ["read_configuration"]


def read_configuration(model: Model, architectures: Iterable[Architecture] | None = None) -> Configuration:
    """Return the configuration of ``model``; ``architectures`` are those to choose from, the built-in ones where None.

    Raises UnknownArchitectureError where none fits, FormatError for metadata of a wrong type, ModelError for metadata that are absent or absurd.
    """
    known = built_in_architectures() if architectures is None else tuple(architectures)
    architecture = _choose(model, known)
    model = with_period(architecture, model)
    facts = architecture.runtime
    if isinstance(facts, str):
        raise ModelError(
            f"there is no forward pass for the architecture {architecture.name}: {facts}",
            path=model.path,
            remedy="Convert and quantize it as any other; measure it with a program that runs such models, llama.cpp for one.",
        )
    values, layered = _hyper_parameters(model, architecture)
    size = partial(_size, model, values)
    heads, hidden, experts = size("heads"), size("hidden"), size("experts", 0)
    kv_heads, head_size = _shared_heads(model, values, layered, heads, hidden)
    _check_lent_keys(model, layered)
    rope = None
    if facts.rotated_when is None or facts.rotated_when.holds(values):
        rope = read_rope(model, architecture, _rotated_size(architecture, values, head_size), size("context", 0))
    scale = (
        read_multiplier(model, values, "attention_multiplier", 0.0) or facts.attention_scale.evaluate(values) ** -0.5
    )
    sparse = read_sparse(model, facts, values, rope)
    return Configuration(
        architecture=architecture.name,
        facts=facts,
        layers=size("layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size + (0 if sparse is None else sparse.cached),
        value_size=head_size if "head_dim" in layered else size("value_dim", head_size),
        context=size("context", 0),
        epsilon=_epsilon(model, values),
        parallel=facts.parallel if isinstance(facts.parallel, bool) else facts.parallel.holds(values),
        embedding_scale=read_multiplier(model, values, "embedding_multiplier")
        * (math.sqrt(hidden) if facts.scale_embedding else 1.0),
        residual_scale=read_multiplier(model, values, "residual_multiplier"),
        logit_scale=read_multiplier(model, values, "logit_multiplier")
        / read_multiplier(model, values, "logit_divisor"),
        attention_scale=scale * logit_multiplier(model, architecture, rope),
        attention_temperature=read_temperature(model, architecture, values, rope),
        attention_soft_cap=read_cap(values, "attention_soft_cap"),
        attention_clamp=read_cap(values, "attention_clamp"),
        final_soft_cap=read_cap(values, "final_soft_cap"),
        window=size("window", 0),
        sliding_period=0 if facts.sliding_period is None else facts.sliding_period.evaluate(values),
        unrotated_period=0 if facts.unrotated_period is None else facts.unrotated_period.evaluate(values),
        plain_head_norms=facts.plain_head_norms is not None and facts.plain_head_norms.holds(values),
        experts=experts,
        dense_layers=size("dense_layers", 0),
        expert_period=size("expert_period", 1) or 1,
        routing=read_routing(model, facts, values, experts),
        latent=read_latent(model, values, rope),
        sparse=sparse,
        delta_heads=read_delta_heads(model, facts, values),
        kimi_heads=read_kimi_heads(model, values, heads),
        state_space=read_state_space(model, values),
        rope=rope,
        local_rope=read_local_rope(model, architecture, rope, values),
        keys_as_values=bool(values.get("keys_as_values")),
        streams=size("streams", 1),
        stream_mixing=read_stream_mixing(model, values),
        activation_limit=read_cap(values, "activation_limit"),
        layer_input=size("layer_input", 0),
        layered=MappingProxyType(layered),
        notes=note_strange_keys(architecture, model.metadata, {**values, **layered}),
    )


def _size(model: Model, values: Values, name: str, default: int | None = None) -> int:
    """Return a whole number; raises ModelError where it is none, or, without a default, not above 0."""
    value = values.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or (value < 1 and default is None):
        raise ModelError(f"the model's {name} is {value!r}, which must be a whole number above 0", path=model.path)
    return value


def _epsilon(model: Model, values: Values) -> float:
    epsilon = values.get("epsilon")
    if not isinstance(epsilon, float) or not 0 <= epsilon < 1:
        raise ModelError(f"the model's epsilon is {epsilon!r}, which must be between 0 and 1", path=model.path)
    return epsilon


def _shared_heads(model: Model, values: Values, layered: Layered, heads: int, hidden: int) -> tuple[int, int]:
    """Return the most key and value heads of any layer, and the size of the largest head; raises ModelError where query heads cannot share them."""
    every_kv_heads = layered.get("kv_heads") or (_size(model, values, "kv_heads", heads),)
    head_sizes = layered.get("head_dim") or (_size(model, values, "head_dim", hidden // heads),)
    for kv_heads in filter(None, every_kv_heads):  # layers without attention have none
        if heads % kv_heads or not min(head_sizes):
            raise ModelError(f"{heads} query heads cannot share {kv_heads} key and value heads", path=model.path)
    return int(max(every_kv_heads)), int(max(head_sizes))


def _check_lent_keys(model: Model, layered: Layered) -> None:
    """Raise ModelError where a layer would read the keys of one that has none, or another kind of them."""
    sources = layered.get("keys_from", ())
    for layer, source in enumerate(sources):
        alike = 0 <= source <= layer and all(
            layered[name][layer] == layered[name][int(source)]
            for name in ("kv_heads", "head_dim", "sliding")
            if name in layered
        )
        if not alike or sources[int(source)] != source:
            raise ModelError(
                f"layer {layer} cannot read the keys and values of layer {source}",
                path=model.path,
                remedy="attention.shared_kv_layers and attention.sliding_window_pattern do not fit each other.",
            )


def _rotated_size(architecture: Architecture, values: Values, head_size: int) -> int:
    """Return the size of heads that rotary positions count on: those of layers that see everything, where layers differ."""
    if not architecture.per_layer or architecture.rope is None:
        return head_size
    return architecture.rope.dimensions.evaluate(values)


def _choose(model: Model, known: tuple[Architecture, ...]) -> Architecture:
    """Return the description: by ``general.architecture``, and where families share it, by the mark of one, or the one without."""
    name = model.architecture
    fitting = answering(known, name, model.metadata)
    if len(fitting) > 1:
        marked = [item for item in fitting if item.mark is not None and bears(model.metadata, name, item.mark)]
        fitting = marked[:1] or [item for item in fitting if item.mark is None]
    if all(isinstance(item.runtime, str) for item in fitting):
        fitting = fitting[:1]  # none of them runs, for reasons of their own
    if len(fitting) != 1:
        problem = f"the architecture {name!r} has no description that a forward pass could follow"
        raise unknown_architecture(problem, name, known, model.path)
    return fitting[0]


def _hyper_parameters(model: Model, architecture: Architecture) -> tuple[Values, Layered]:
    """Return values by the names that expressions use, and those that differ from layer to layer."""
    if not architecture.per_layer:
        return _model_values(model, architecture), {}
    found = recover_values(architecture, model)
    return (
        {name: value for name, value in found.items() if not isinstance(value, tuple)},
        {name: value for name, value in found.items() if isinstance(value, tuple)},
    )


def _model_values(model: Model, architecture: Architecture) -> Values:
    """Return values of the whole model: from metadata, else the description's default."""
    values: dict[str, bool | int | float] = {}
    for parameter in architecture.hyper_parameters:
        if parameter.recovered is not None:
            continue
        value = _metadata_value(model, architecture, parameter)
        if value is None:
            value = parameter.usual(values)
        if value is not None:
            values[parameter.name] = value
    for parameter in architecture.hyper_parameters:
        if isinstance(parameter.recovered, Expression):
            values[parameter.name] = parameter.recovered.evaluate(values)
        elif parameter.recovered is not None:
            values[parameter.name] = parameter.recovered.holds(values)
    return values


def _metadata_value(model: Model, architecture: Architecture, parameter: HyperParameter) -> bool | int | float | None:
    get = {"uint32": get_integer, "float32": get_number}.get(parameter.type, get_flag)
    keys = [f"{architecture.gguf}.{key}" for key in parameter.keys]
    read = [get(_one_for_all(model.metadata, key), key, model.path) for key in keys]
    found = {value for value in read if value is not None}
    if len(found) > 1:
        raise ModelError(
            f"{' and '.join(parameter.keys)} are {' and '.join(map(str, sorted(found)))}, which must be equal in this architecture",
            path=model.path,
        )
    value = next(iter(found), None)
    return float(value) if value is not None and parameter.type == "float32" else value


def _one_for_all(metadata: Mapping[str, Field], key: str) -> Mapping[str, Field]:
    """Return the metadata, or the one number at ``key`` where that is an array of nothing else, as for Granite 4 without state spaces."""
    field = metadata.get(key)
    if field is None or field.element is None or not isinstance(field.value, np.ndarray):
        return metadata
    different = np.unique(field.value)
    return {key: Field(field.element, different[0].item())} if len(different) == 1 else metadata
