"""The options that every conversion takes, declared once: ``convert`` has all, ``hf-to-gguf`` and ``quantize`` those that apply."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from . import options

__all__ = ["conversion_options", "with_conversion_options"]


def conversion_options(
    imatrix: options.Imatrix = None,
    include_weights: options.IncludeWeights = None,
    exclude_weights: options.ExcludeWeights = None,
    tensor_type: options.TensorType = None,
    output_tensor_type: options.OutputTensorType = None,
    token_embedding_type: options.TokenEmbeddingType = None,
    leave_output_tensor: options.LeaveOutputTensor = False,
    pure: options.Pure = False,
    no_fallback: options.NoFallback = False,
    allow_requantize: options.AllowRequantize = False,
    compat: options.Compat = None,
    effort: options.Effort = "default",
    objective: options.Objective = "ggml",
    calibration: options.Calibration = None,
    method: options.Method = "plain",
    damping: options.Damping = None,
    activation_order: options.ActivationOrder = False,
    size: options.Size = None,
    bpw: options.BitsPerWeight = None,
    measure_on: options.MeasureOn = None,
    measure_chunks: options.MeasureChunks = 8,
    recipe: options.Recipe = None,
    recipe_out: options.RecipeOut = None,
    figure: options.BudgetFigure = None,
    model_name: options.ModelName = None,
    override_kv: options.OverrideKv = None,
    alignment: options.Alignment = None,
    split_max_size: options.SplitMaxSize = None,
    split_max_tensors: options.SplitMaxTensors = None,
    keep_split: options.KeepSplit = False,
    prune_layers: options.PruneLayers = None,
    no_digests: options.NoDigests = False,
    vocab_only: options.VocabOnly = False,
    as_arch: options.AsArch = None,
    pre_tokenizer: options.PreTokenizer = None,
    validate: options.Validate = None,
    validate_context: options.ValidateContext = 512,
    validate_chunks: options.ValidateChunks = 16,
    max_kld: options.ValidateMaxKld = None,
    threads: options.Threads = None,
    force: options.Force = False,
    allow_nonfinite: options.AllowNonfinite = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Declare names, types and defaults; nobody calls this."""


def with_conversion_options(function: Callable[..., None], *, without: tuple[str, ...] = ()) -> Callable[..., None]:
    """Return ``function``, which takes ``**words``, with the options of every conversion but ``without`` declared in their place."""
    own = inspect.signature(function, eval_str=True)
    shared = inspect.signature(conversion_options, eval_str=True).parameters.values()
    first = [it for it in own.parameters.values() if it.kind is not inspect.Parameter.VAR_KEYWORD]

    def command(**words: Any) -> None:
        function(**words)

    command.__doc__ = function.__doc__
    parameters = [*first, *(it for it in shared if it.name not in without)]
    vars(command)["__signature__"] = own.replace(parameters=parameters)
    return command
