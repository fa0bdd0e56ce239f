"""``qconv quantize``: a GGUF file becomes one of another type."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("quantize")(quantize)


def quantize(
    model: Annotated[Path, typer.Argument(metavar="IN.gguf", help="GGUF file; of a split model the first part.")],
    output: Annotated[
        Path | None,
        typer.Argument(metavar="[OUT.gguf]", help="Output, default IN-TYPE.gguf beside the input; {type} is the type."),
    ] = None,
    type_name: Annotated[
        str, typer.Option("--type", "-T", metavar="TYPE", help="Such as q4_k_m, q8_0, bf16 (see qconv types).")
    ] = "",
    imatrix: options.Imatrix = None,
    include_weights: options.IncludeWeights = None,
    exclude_weights: options.ExcludeWeights = None,
    tensor_type: options.TensorType = None,
    output_tensor_type: options.OutputTensorType = None,
    token_embedding_type: options.TokenEmbeddingType = None,
    leave_output_tensor: options.LeaveOutputTensor = False,
    pure: options.Pure = False,
    no_fallback: options.NoFallback = False,
    allow_requantize: Annotated[
        bool,
        typer.Option("--allow-requantize", help="Accept tensors that are quantized already.", rich_help_panel="Types"),
    ] = False,
    compat: options.Compat = None,
    effort: options.Effort = "default",
    objective: options.Objective = "ggml",
    model_name: options.ModelName = None,
    override_kv: options.OverrideKv = None,
    alignment: options.Alignment = None,
    split_max_size: options.SplitMaxSize = None,
    split_max_tensors: options.SplitMaxTensors = None,
    keep_split: Annotated[
        bool, typer.Option("--keep-split", help="Cut the output as the input is.", rich_help_panel="Output")
    ] = False,
    prune_layers: Annotated[
        str | None,
        typer.Option("--prune-layers", metavar="1,3,5-7", help="Leave these layers out.", rich_help_panel="Output"),
    ] = None,
    no_digests: options.NoDigests = False,
    validate: options.Validate = None,
    validate_context: options.ValidateContext = 512,
    validate_chunks: options.ValidateChunks = 16,
    max_kld: options.MaxKld = None,
    threads: options.Threads = None,
    force: options.Force = False,
    allow_nonfinite: options.AllowNonfinite = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Quantize a GGUF file: one pass, bounded memory, whole or absent."""
    from ...errors import UsageError
    from ...plugins.manager import load_plugins
    from ..opening import open_model
    from .conversion import convert
    from .settings import default_output, read_settings

    if not type_name:
        raise UsageError("--type is missing", remedy="Name one, such as --type q4_k_m; `qconv types` lists all.")
    settings = read_settings(locals())
    registries = load_plugins().registries()
    with open_model(model, registries) as source:
        target = default_output(output, model.with_suffix(""), type_name)
        convert(source, target, settings, registries, dry_run=dry_run, as_json=as_json)
