"""From the words of a command line to :class:`qconv.convert.settings.Settings`."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast, get_args

from ...errors import UsageError
from ...formats.base import WriteOptions
from ...formats.gguf.names import split_name
from ...formats.metadata import Field, string
from ..overrides import parse_override
from ..prune import parse_layers
from ..settings import Budget, Method, Settings, choose, encode_options, parse_rule, parse_size
from .conversion_options import conversion_options

__all__ = ["default_output", "default_stem", "read_settings", "refuse_idle", "type_label"]

# options that nothing reads unless one of those behind them is given
_IDLE_WITHOUT: Final = MappingProxyType(
    {
        "damping": ("method gptq",),
        "activation_order": ("method gptq",),
        "include_weights": ("imatrix", "calibration"),
        "exclude_weights": ("imatrix", "calibration"),
        "measure_chunks": ("measure_on",),
        "validate_context": ("validate",),
        "validate_chunks": ("validate",),
        "max_kld": ("validate",),
    }
)


def read_settings(type_name: str, words: Mapping[str, Any]) -> Settings:
    """Return the settings that a conversion command's type and options state; raises UsageError for what makes no sense."""
    if words.get("keep_split") and (words["split_max_size"] or words["split_max_tensors"]):
        raise UsageError("--keep-split and limits of parts exclude each other")
    if words["compat"] is not None:
        choose("--compat", words["compat"], ("llama.cpp",))
    overrides: dict[str, Field] = dict(parse_override(text) for text in words["override_kv"] or ())
    if words["model_name"] is not None:
        overrides["general.name"] = string(words["model_name"])
    split_size = words["split_max_size"]
    # what has a default that only other modules know is left out where the user says nothing
    choices = {key: words[key] for key in ("threads", "damping") if words[key] is not None}
    return Settings(
        type_name=type_name,
        tensor_rules=tuple(parse_rule(text) for text in words["tensor_type"] or ()),
        output_tensor_type=words["output_tensor_type"],
        token_embedding_type=words["token_embedding_type"],
        leave_output_tensor=words["leave_output_tensor"],
        pure=words["pure"],
        compat=words["compat"] is not None,
        allow_requantize=words.get("allow_requantize", False),
        no_fallback=words["no_fallback"],
        imatrix=words["imatrix"],
        include_weights=tuple(words["include_weights"] or ()),
        exclude_weights=tuple(words["exclude_weights"] or ()),
        encode=encode_options(words["effort"], words["objective"]),
        overrides=overrides,
        write=WriteOptions(
            alignment=words["alignment"],
            split_max_size=None if split_size is None else parse_size(split_size),
            split_max_tensors=words["split_max_tensors"],
            digests=not words["no_digests"],
        ),
        keep_split=words.get("keep_split", False),
        prune=parse_layers(words["prune_layers"]) if words.get("prune_layers") else frozenset(),
        validate=tuple(words["validate"] or ()),
        validate_context=words["validate_context"],
        validate_chunks=words["validate_chunks"],
        max_kld=words["max_kld"],
        force=words["force"],
        allow_nonfinite=words["allow_nonfinite"],
        calibration=words["calibration"],
        method=cast("Method", choose("--method", words["method"], get_args(Method))),
        activation_order=words["activation_order"],
        budget=_budget(words),
        recipe=words["recipe"],
        **choices,
    )


def _budget(words: Mapping[str, Any]) -> Budget | None:
    size, bits = words["size"], words["bpw"]
    if size is None and bits is None:
        if words["measure_on"] or words["recipe_out"] or words["figure"]:
            raise UsageError("--measure-on, --recipe-out and --figure go with --size or --bpw")
        return None
    if size is not None and bits is not None:
        raise UsageError("--size and --bpw exclude each other")
    return Budget(
        size=None if size is None else parse_size(size),
        bits_per_weight=bits,
        texts=tuple(words["measure_on"] or ()),
        chunks=words["measure_chunks"],
        recipe_out=words["recipe_out"],
        figure=words["figure"],
    )


def refuse_idle(words: Mapping[str, Any]) -> None:
    """Raise UsageError for an option of a conversion that changes nothing without another one, which is not given."""
    for name, needed in _IDLE_WITHOUT.items():
        if _is_given(name, words) and not any(_is_given(each.split()[0], words) for each in needed):
            alternatives = " or ".join(map(_option, needed))
            raise UsageError(f"{_option(name)} changes nothing without {alternatives}", remedy="Give both, or neither.")


def _is_given(name: str, words: Mapping[str, Any]) -> bool:
    return bool(words[name] != signature(conversion_options).parameters[name].default)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def type_label(type_name: str, words: Mapping[str, Any]) -> str:
    """Return what stands for the type in a default file name; raises UsageError where nothing says what types to use, or two things do."""
    size, bits, recipe = words["size"], words["bpw"], words["recipe"]
    if size is None and bits is None and recipe is None:
        if not type_name:
            raise UsageError(
                "--type is missing",
                remedy="Name one, such as --type q4_k_m (`qconv types` lists all), or a --size, a --bpw or a --recipe.",
            )
        return type_name
    if type_name.lower() not in ("", "auto"):
        raise UsageError("--type, and --size, --bpw or --recipe, exclude each other")
    if bits is not None:
        return f"{bits:g}bpw"
    return str(size) if recipe is None else recipe.stem


def default_stem(model: Path) -> Path:
    """Return what an output beside ``model`` is called by default, but for the type: its name without ending, and without the number of a part.

    >>> default_stem(Path("a/model-00001-of-00003.gguf"))
    PosixPath('a/model')
    """
    if model.is_dir():
        return model if model.name not in ("", "..") else model.resolve()
    part = split_name(model)
    return model.with_suffix("") if part is None else model.with_name(part[0])


def default_output(output: Path | None, stem: Path, type_name: str) -> Path:
    """Return the output that the user names, ``{type}`` filled in, or ``STEM-TYPE.gguf``."""
    label = type_name.upper()
    if output is None:
        suffix = "" if type_name.lower() == "auto" else f"-{label}"
        return stem.with_name(f"{stem.name}{suffix}.gguf")
    path = Path(str(output).replace("{type}", label).replace("{ftype}", label))
    path = path.resolve() if path.name in ("", "..") else path  # temporary names go beside a name
    if not path.name:
        raise UsageError(f"{output} is no name for an output", remedy="Name a file or a folder in it.")
    return path
