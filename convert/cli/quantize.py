"""``qconv quantize``: a GGUF file becomes one of another type."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .conversion_options import with_conversion_options

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("quantize")(with_conversion_options(quantize, without=("vocab_only", "as_arch", "pre_tokenizer")))


def quantize(
    model: Annotated[Path, typer.Argument(metavar="IN.gguf", help="GGUF file; of a split model the first part.")],
    output: Annotated[
        Path | None,
        typer.Argument(metavar="[OUT.gguf]", help="Output, default IN-TYPE.gguf beside the input; {type} is the type."),
    ] = None,
    type_name: Annotated[
        str, typer.Option("--type", "-T", metavar="TYPE", help="Such as q4_k_m, q8_0, bf16 (see qconv types).")
    ] = "",
    **words: Any,
) -> None:
    """Quantize a GGUF file: one pass, bounded memory, whole or absent."""
    from ...plugins.manager import load_plugins
    from ..opening import open_model
    from .conversion import convert
    from .settings import default_output, default_stem, read_settings, refuse_idle, type_label

    label = type_label(type_name, words)
    refuse_idle(words)
    settings = read_settings(type_name or "auto", words)
    registries = load_plugins().registries()
    with open_model(model, registries) as source:
        path = default_output(output, default_stem(model), label)
        target = registries.formats["gguf"]
        convert(source, path, target, settings, registries, dry_run=words["dry_run"], as_json=words["as_json"])
