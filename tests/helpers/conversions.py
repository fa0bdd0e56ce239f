"""Conversions by way of Python, for tests that look at what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import qconv
from qconv.convert.jobs import run_plan
from qconv.convert.plan import make_plan
from qconv.convert.settings import Settings
from qconv.convert.targets import find_target
from qconv.formats.base import Model
from qconv.formats.huggingface.out.source import PREFIX
from qconv.formats.metadata import string
from qconv.plugins.manager import load_plugins


def write_model(model: Model, output: Path, to: str, type_name: str = "auto", settings: Settings | None = None) -> Path:
    """Write an open model as another format; return ``output``."""
    registries = load_plugins("").registries()
    target = find_target(output, to, registries)
    chosen = replace(settings or Settings(threads=1), type_name=type_name)
    plan = make_plan(
        model,
        output,
        target,
        chosen,
        registries.encodings,
        float_source=model.format != "gguf",
        architectures=registries.architectures,
    )
    run_plan(plan, chosen.force, lambda count: None)
    return output


def without_source(model: Model) -> Model:
    """Return a model as llama.cpp's converter would have made it: without what qconv keeps of its source."""
    metadata: Mapping[str, object] = model.metadata
    kept = {key: model.metadata[key] for key in metadata if not key.startswith(PREFIX)}
    return replace(model, metadata=kept)


def convert_without_source(source: Path, output: Path, to: str, type_name: str = "auto") -> Path:
    """Convert a file as if it came from llama.cpp."""
    with qconv.open(source) as model:
        return write_model(without_source(model), output, to, type_name)


def relabelled(model: Model, name: str) -> Model:
    """Return a model whose ``general.architecture``, and prefix of keys, is another."""
    prefix = f"{model.architecture}."
    renamed = {
        f"{name}.{key.removeprefix(prefix)}" if key.startswith(prefix) else key: field
        for key, field in model.metadata.items()
    }
    return replace(model, metadata={**renamed, "general.architecture": string(name)})
