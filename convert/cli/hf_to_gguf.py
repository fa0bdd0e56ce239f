"""``qconv hf-to-gguf``: a Hugging Face folder becomes a GGUF file of any type, in one pass."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("hf-to-gguf")(hf_to_gguf)


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
    type_name: Annotated[
        str,
        typer.Option(
            "--type",
            "-T",
            metavar="TYPE",
            help="Such as q4_k_m, q8_0, bf16 (see qconv types); auto keeps the source's.",
        ),
    ] = "auto",
    imatrix: options.Imatrix = None,
    include_weights: options.IncludeWeights = None,
    exclude_weights: options.ExcludeWeights = None,
    tensor_type: options.TensorType = None,
    output_tensor_type: options.OutputTensorType = None,
    token_embedding_type: options.TokenEmbeddingType = None,
    leave_output_tensor: options.LeaveOutputTensor = False,
    pure: options.Pure = False,
    no_fallback: options.NoFallback = False,
    compat: options.Compat = None,
    effort: options.Effort = "default",
    objective: options.Objective = "ggml",
    model_name: options.ModelName = None,
    override_kv: options.OverrideKv = None,
    alignment: options.Alignment = None,
    split_max_size: options.SplitMaxSize = None,
    split_max_tensors: options.SplitMaxTensors = None,
    no_digests: options.NoDigests = False,
    vocab_only: Annotated[
        bool, typer.Option("--vocab-only", help="Write metadata and tokenizer only.", rich_help_panel="Output")
    ] = False,
    as_arch: options.AsArch = None,
    pre_tokenizer: options.PreTokenizer = None,
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
    """Convert a Hugging Face folder to GGUF, quantized on the way: one pass, bounded memory, whole or absent."""
    from ...errors import UsageError
    from ...plugins.manager import load_plugins
    from ..opening import open_model
    from .conversion import convert
    from .settings import default_output, read_settings

    settings = read_settings(locals())
    registries = load_plugins().registries()
    with open_model(model, registries, as_arch, pre_tokenizer, vocab_only, expected="huggingface") as source:
        if source.format == "gguf":
            raise UsageError(f"{model} is a GGUF file already", remedy="Use `qconv quantize` to change its type.")
        target = default_output(output, Path.cwd() / model.resolve().name, type_name)
        convert(source, target, settings, registries, dry_run=dry_run, as_json=as_json)
