"""``qconv hf-to-gguf``: a Hugging Face folder becomes a GGUF file of any type, in one pass."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options
from .conversion_options import with_conversion_options

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    without = ("keep_split", "prune_layers")
    app.command("hf-to-gguf")(with_conversion_options(hf_to_gguf, without=without))


def hf_to_gguf(
    model: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="Folder with config.json and weights.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Output file, default NAME-TYPE.gguf in the current folder; {type} stands for the type.",
            rich_help_panel="Output",
        ),
    ] = None,
    type_name: options.TypeOrAuto = "auto",
    **words: Any,
) -> None:
    """Convert a Hugging Face folder to GGUF, quantized on the way: one pass, bounded memory, whole or absent."""
    from ...errors import UsageError
    from ...plugins.manager import load_plugins
    from ..opening import open_model
    from .conversion import convert
    from .settings import default_output, read_settings, refuse_idle, type_label

    label = type_label(type_name, words)
    refuse_idle(words)
    settings = read_settings(type_name, words)
    registries = load_plugins().registries()
    choices = (words["as_arch"], words["pre_tokenizer"], words["vocab_only"])
    with open_model(model, registries, *choices, expected="huggingface") as source:
        if source.format == "gguf":
            raise UsageError(f"{model} is a GGUF file already", remedy="Use `qconv quantize` to change its type.")
        path = default_output(output, Path.cwd() / model.resolve().name, label)
        target = registries.formats["gguf"]
        convert(source, path, target, settings, registries, dry_run=words["dry_run"], as_json=words["as_json"])
