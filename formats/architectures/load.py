"""An architecture's JSON to :class:`Architecture`; unknown keys are refused, and every name that is used must be defined."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

from ...errors import PluginError
from .base import (
    Alias,
    Architecture,
    Check,
    Dropped,
    HyperParameter,
    Mark,
    Measured,
    Rope,
    RuntimeFacts,
    Stored,
    TensorMap,
)
from .defined import check_names
from .expressions import Condition, Expression, parse_condition, parse_expression
from .fields import Fields
from .per_layer import FromLayers, LayerParameter
from .transforms import TRANSFORMS

__all__ = ["built_in_architectures", "load_architecture"]


def load_architecture(source: str | Path) -> Architecture:
    """Return the architecture that a JSON file (a Path) or a JSON text (a str) describes; raises PluginError with the place of a mistake."""
    path = source if isinstance(source, Path) else None
    try:
        text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
        value = json.loads(text, object_pairs_hook=_unique)
    except (OSError, ValueError, RecursionError) as error:
        raise PluginError(f"the architecture cannot be read: {error}", path=path) from error
    architecture = _architecture(value, path)
    check_names(architecture, path)
    return architecture


@cache
def built_in_architectures() -> tuple[Architecture, ...]:
    """Return the architectures that ship with qconv, by name."""
    files = (item for item in resources.files(__package__).iterdir() if item.name.endswith(".json"))
    return tuple(
        load_architecture(item.read_text(encoding="utf-8"))
        for item in sorted(files, key=lambda f: f.name.removesuffix(".json"))
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} occurs twice in one object")
        found[key] = value
    return found


def _architecture(value: object, path: Path | None) -> Architecture:
    fields = Fields(value, "the architecture", path)
    name = fields.text("name")
    fields = Fields(value, f"architecture {name!r}", path)
    where = f"architecture {name!r}"
    architecture = Architecture(
        name=fields.text("name"),
        description=fields.text("description"),
        gguf=fields.text("gguf"),
        mark=_mark(fields.take("mark"), where, path) if "mark" in fields else None,
        aliases=tuple(_alias(item, where, path) for item in fields.items("aliases")),
        classes=fields.texts("classes"),
        model_types=fields.texts("model_types"),
        chosen_where=MappingProxyType({key: tuple(words) for key, words in fields.object("chosen_where").items()}),
        config_section=fields.text("config_section") if "config_section" in fields else None,
        prefixes=MappingProxyType(_text_map(fields, "prefixes")),
        hyper_parameters=tuple(
            _hyper_parameter(key, item, where, path) for key, item in fields.object("hyper_parameters").items()
        ),
        per_layer=tuple(_layer_parameter(key, item, where, path) for key, item in fields.object("per_layer").items()),
        checks=tuple(_check(item, where, path) for item in fields.items("checks")),
        rope=_rope(fields.take("rope"), where, path) if "rope" in fields else None,
        tensors=tuple(_tensor(item, where, path) for item in fields.items("tensors")),
        dropped=tuple(_dropped(item, where, path) for item in fields.items("dropped")),
        full_layer_keys=MappingProxyType(_text_map(fields, "full_layer_keys")),
        tokenizer=MappingProxyType(fields.scalars("tokenizer")),
        runtime=_runtime(fields.take("runtime"), where, path),
    )
    fields.finish()
    return architecture


def _mark(value: object, where: str, path: Path | None) -> Mark:
    fields = Fields(value, f"{where}: mark", path)
    mark = Mark(fields.text("key"), int(fields.number("at_least")))
    fields.finish()
    return mark


def _alias(value: object, where: str, path: Path | None) -> Alias:
    fields = Fields(value, f"{where}: an alias", path)
    alias = Alias(fields.text("gguf"), _mark(fields.take("mark"), where, path))
    fields.finish()
    return alias


def _text_map(fields: Fields, key: str) -> dict[str, str]:
    found = fields.scalars(key)
    if not all(isinstance(value, str) for value in found.values()):
        fields.fail(f"has {key!r}, whose values must be strings")
    return cast("dict[str, str]", found)


def _hyper_parameter(name: str, value: object, where: str, path: Path | None) -> HyperParameter:
    fields = Fields(value, f"{where}: hyper-parameter {name!r}", path)
    kind = fields.choice("type", ("uint32", "float32", "bool", "presence"))
    required = "default" not in fields
    default = None if required else fields.take("default")
    if isinstance(default, str):
        default = parse_expression(default)
    elif default is not None and not isinstance(default, bool | int | float):
        fields.fail(f"has the default {default!r}, which must be a number, a truth value, an expression or null")
    measured = None
    if "measured" in fields:
        inner = Fields(fields.take("measured"), f"{where}: hyper-parameter {name!r}: measured", path)
        measured = Measured(inner.text("tensor"), int(inner.number("axis")))
        inner.finish()
    words = fields.object("words")
    if not all(isinstance(meaning, bool) for meaning in words.values()):
        fields.fail("has 'words' whose values must be true or false")
    found = HyperParameter(
        name=name,
        config=fields.texts("config"),
        type=cast("Literal['uint32', 'float32', 'bool', 'presence']", kind),
        keys=fields.texts("keys"),
        required=required,
        default=default,
        measured=measured,
        recovered=_recovered(fields, kind),
        minimum=int(fields.number("minimum")) if "minimum" in fields else 1,
        stored=_stored(fields.take("stored"), f"{where}: hyper-parameter {name!r}", path)
        if "stored" in fields
        else None,
        from_layers=_from_layers(fields.take("from_layers"), f"{where}: hyper-parameter {name!r}", path)
        if "from_layers" in fields
        else None,
        counted=fields.texts("counted"),
        from_source=fields.flag("from_source", False),
        words=MappingProxyType(dict(words)),
    )
    fields.finish()
    if required and not found.config:
        fields.fail("needs 'config', or a 'default'")
    return found


def _recovered(fields: Fields, kind: str) -> Expression | Condition | None:
    if "recovered" not in fields:
        return None
    return _expression(fields, "recovered") if kind == "uint32" else parse_condition(fields.text("recovered"))


def _stored(value: object, where: str, path: Path | None) -> Stored:
    fields = Fields(value, f"{where}: stored", path)
    rule = "over_root_of" if "over_root_of" in fields else "quotient_of"
    found = Stored(cast("Literal['over_root_of', 'quotient_of']", rule), _expression(fields, rule))
    fields.finish()
    return found


def _from_layers(value: object, where: str, path: Path | None) -> FromLayers:
    fields = Fields(value, f"{where}: from_layers", path)
    found = FromLayers(fields.text("name"), parse_condition(fields.text("where")) if "where" in fields else None)
    fields.finish()
    return found


def _layer_parameter(name: str, value: object, where: str, path: Path | None) -> LayerParameter:
    fields = Fields(value, f"{where}: number per layer {name!r}", path)
    words = fields.object("words")
    if not all(type(number) is int for number in words.values()):
        fields.fail("has 'words' whose values must be whole numbers")
    found = LayerParameter(
        name=name,
        config=fields.texts("config"),
        words=MappingProxyType(dict(words)),
        type=_choice(fields, "type", ("uint32", "float32", "bool")),
        keys=fields.texts("keys"),
        default=_expression(fields, "default"),
        recovered=_optional_expression(fields, "recovered"),
        quantile=fields.flag("quantile", False),
        numbered=MappingProxyType(dict(fields.object("numbered"))),
    )
    if not all(type(number) is int for number in found.numbered.values()):
        fields.fail("has 'numbered' whose values must be whole numbers")
    fields.finish()
    return found


def _check(value: object, where: str, path: Path | None) -> Check:
    fields = Fields(value, f"{where}: a check", path)
    config = fields.text("config")
    fields = Fields(value, f"{where}: the check of {config!r}", path)
    check = Check(
        config=fields.text("config"),
        problem=fields.text("problem"),
        severity=cast("Literal['error', 'note']", fields.choice("severity", ("error", "note"))),
        allowed=tuple(fields.items("allowed")),
        equals=_optional_expression(fields, "equals"),
        at_least=_optional_expression(fields, "at_least"),
        absent=fields.take("absent") if "absent" in fields else None,
        holds=_optional_condition(fields, "holds"),
        where=_optional_condition(fields, "where"),
    )
    fields.finish()
    expected = (check.equals, check.at_least, check.holds)
    if [bool(check.allowed), *(it is not None for it in expected)].count(True) != 1:
        fields.fail("needs exactly one of 'allowed', 'equals', 'at_least' and 'holds'")
    if check.where is not None and check.holds is None:
        fields.fail("has 'where' without 'holds'")
    return check


def _rope(value: object, where: str, path: Path | None) -> Rope:
    fields = Fields(value, f"{where}: rope", path)
    rope = Rope(
        order=cast("Literal['neox', 'interleaved']", fields.choice("order", ("neox", "interleaved"))),
        dimensions=_expression(fields, "dimensions"),
        theta=fields.number("theta"),
        scalings=fields.texts("scalings"),
        frequency_table=fields.flag("frequency_table", False),
        partial=fields.flag("partial", False),
        share=fields.number("share") if "share" in fields else 1.0,
        share_of=_optional_expression(fields, "share_of"),
        local_theta=fields.number("local_theta") if "local_theta" in fields else None,
        log_multiplier=fields.flag("log_multiplier", False),
        temperature=fields.flag("temperature", False),
        sections=_sections(fields),
        local_dimensions=_optional_expression(fields, "local_dimensions"),
        usual=fields.text("usual") if "usual" in fields else "default",
        temperature_length=fields.flag("temperature_length", False),
    )
    fields.finish()
    if rope.usual not in ("default", *rope.scalings):
        fields.fail(f"has the usual scaling {rope.usual!r}, which is none of its 'scalings'")
    return rope


def _sections(fields: Fields) -> tuple[int, ...]:
    found = fields.items("sections")
    if not all(type(size) is int and size >= 0 for size in found):
        fields.fail(f"has 'sections': {found!r}, which must be whole numbers from 0")
    return tuple(found)


def _tensor(value: object, where: str, path: Path | None) -> TensorMap:
    fields = Fields(value, f"{where}: a tensor", path)
    gguf, hf = fields.texts("gguf"), fields.texts("hf")
    fields = Fields(value, f"{where}: tensor {', '.join(gguf)}", path)
    if not gguf or not hf:
        fields.fail("needs both 'gguf' and 'hf' names")
    shapes = fields.items("shape")
    if len(hf) == 1 and not any(isinstance(shape, list) for shape in shapes):
        shapes = [shapes]
    if len(shapes) != len(hf) or not all(isinstance(shape, list) and shape for shape in shapes):
        fields.fail("needs a 'shape' (a list of sizes), or a list of shapes, one per 'hf' name")
    transform = fields.text("transform") if "transform" in fields else "copy"
    known = TRANSFORMS.get(transform)
    if known is None:
        fields.fail(f"has the unknown transform {transform!r}", remedy=f"Known: {', '.join(TRANSFORMS)}.")
    arguments = {key: parse_expression(size) for key, size in fields.object("arguments").items()}
    if set(arguments) != set(known.arguments):
        fields.fail(f"gives {transform!r} the arguments {sorted(arguments)}, not {sorted(known.arguments)}")
    found = TensorMap(
        gguf=fields.texts("gguf"),
        hf=fields.texts("hf"),
        shapes=tuple(tuple(parse_expression(size) for size in shape) for shape in shapes),
        transform=transform,
        arguments=MappingProxyType(arguments),
        required=fields.flag("required", True),
        omitted_when=fields.text("omitted_when") if "omitted_when" in fields else None,
        when=parse_condition(fields.text("when")) if "when" in fields else None,
        configuration=MappingProxyType(fields.scalars("configuration")),
    )
    fields.finish()
    if len({("{layer}" in name) for name in found.gguf + found.hf}) != 1:
        fields.fail("must have '{layer}' in all of its names or in none")
    if any("{expert}" in name for name in found.gguf) or len({("{expert}" in name) for name in found.hf}) != 1:
        fields.fail("must have '{expert}' in all of its 'hf' names or in none, and never in 'gguf'")
    return found


def _dropped(value: object, where: str, path: Path | None) -> Dropped:
    if isinstance(value, str):
        return Dropped(value, None)
    fields = Fields(value, f"{where}: dropped", path)
    found = Dropped(fields.text("pattern"), fields.text("reason"))
    fields.finish()
    return found


def _runtime(value: object, where: str, path: Path | None) -> RuntimeFacts | str:
    if isinstance(value, str):
        return value
    fields = Fields(value, f"{where}: runtime", path)
    facts = RuntimeFacts(
        norm=_choice(fields, "norm", ("rms", "layer")),
        activation=_choice(fields, "activation", ("silu", "gelu", "gelu_tanh", "relu_squared", "swiglu_oai")),
        feed_forward=_choice(fields, "feed_forward", ("gated", "gated_fused", "plain")),
        positions=_choice(fields, "positions", ("rope", "learned", "none")),
        attention_scale=_expression(fields, "attention_scale"),
        indexer=_choice(fields, "indexer", ("neox", "interleaved", "pooled")) if "indexer" in fields else None,
        scale_embedding=fields.flag("scale_embedding", False),
        sliding_period=_optional_expression(fields, "sliding_period"),
        chunked=fields.flag("chunked", False),
        rotated=_choice(fields, "rotated", ("all", "sliding")) if "rotated" in fields else "all",
        rotated_when=parse_condition(fields.text("rotated_when")) if "rotated_when" in fields else None,
        unrotated_period=_optional_expression(fields, "unrotated_period"),
        unrotated_temperature=fields.flag("unrotated_temperature", False),
        normalised_after_rotation=fields.flag("normalised_after_rotation", False),
        normalised_values=fields.flag("normalised_values", False),
        plain_head_norms=parse_condition(fields.text("plain_head_norms")) if "plain_head_norms" in fields else None,
        single_parts=fields.flag("single_parts", False),
        plain_norms=fields.flag("plain_norms", False),
        attention_norm=fields.texts("attention_norm") if "attention_norm" in fields else ("attn_norm",),
        feed_forward_norm=fields.texts("feed_forward_norm") if "feed_forward_norm" in fields else ("ffn_norm",),
        parallel=_parallel(fields),
        expert_gating=_choice(fields, "expert_gating", ("softmax_top_k_normalised", "softmax", "sigmoid"))
        if "expert_gating" in fields
        else None,
        expert_weighting=_choice(fields, "expert_weighting", ("results", "inputs"))
        if "expert_weighting" in fields
        else "results",
        expert_groups=_choice(fields, "expert_groups", ("maximum", "two_largest"))
        if "expert_groups" in fields
        else "two_largest",
        gated_attention=fields.flag("gated_attention", False),
        value_heads=_choice(fields, "value_heads", ("grouped", "tiled")) if "value_heads" in fields else None,
    )
    fields.finish()
    return facts


def _choice(fields: Fields, key: str, allowed: tuple[str, ...]) -> Any:
    """Return one of ``allowed``, as a literal of the attribute's type."""
    return fields.choice(key, allowed)


def _parallel(fields: Fields) -> bool | Condition:
    if "parallel" not in fields:
        return False
    value = fields.take("parallel")
    if isinstance(value, str):
        return parse_condition(value)
    if not isinstance(value, bool):
        fields.fail(f"has 'parallel': {value!r}, which must be true, false or a condition")
    return value


def _expression(fields: Fields, key: str) -> Expression:
    value = fields.take(key)
    if isinstance(value, bool) or not isinstance(value, str | int):
        fields.fail(f"has {key!r}: {value!r}, which must be an expression or an integer")
    return parse_expression(value)


def _optional_expression(fields: Fields, key: str) -> Expression | None:
    return _expression(fields, key) if key in fields else None


def _optional_condition(fields: Fields, key: str) -> Condition | None:
    return parse_condition(fields.text(key)) if key in fields else None
