"""Options that several commands share, each declared once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from ...errors import UsageError

_OUTPUT, _TYPES, _WORK, _SAMPLING, _VALIDATION = "Output", "Types", "Work", "Sampling", "Validation"
_MAX_KLD = "Largest mean KL divergence; default: by the result's type."


def finite(option: typer.CallbackParam, value: float | None) -> float | None:
    """Refuse NaN and infinity, which a limit lets pass."""
    if value is not None and not math.isfinite(value):
        raise UsageError(f"{option.opts[0]} is a number, not {value}")
    return value


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", "-t", min=1, metavar="N", help="Worker threads; default: one per core.", rich_help_panel=_WORK
    ),
]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace an existing output.", rich_help_panel=_OUTPUT)]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the exact plan and write nothing.", rich_help_panel=_WORK)
]
AllowNonfinite = Annotated[
    bool,
    typer.Option("--allow-nonfinite", help="Write zeros for NaN and infinity in the source.", rich_help_panel=_WORK),
]
TypeOrAuto = Annotated[
    str,
    typer.Option(
        "--type",
        "-T",
        metavar="TYPE",
        help="Such as q4_k_m, q8_0, bf16 (see qconv types); auto keeps the source's.",
    ),
]
Imatrix = Annotated[
    Path | None,
    typer.Option("--imatrix", metavar="FILE", help="Importance matrix (GGUF or .dat).", rich_help_panel=_TYPES),
]
IncludeWeights = Annotated[
    list[str] | None,
    typer.Option(
        "--include-weights", metavar="TEXT", help="Use importance only for names with TEXT.", rich_help_panel=_TYPES
    ),
]
ExcludeWeights = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude-weights", metavar="TEXT", help="Ignore importance for names with TEXT.", rich_help_panel=_TYPES
    ),
]
TensorType = Annotated[
    list[str] | None,
    typer.Option(
        "--tensor-type",
        metavar="REGEX=TYPE",
        help="Type for tensors whose name matches; may be repeated, the last match wins.",
        rich_help_panel=_TYPES,
    ),
]
OutputTensorType = Annotated[
    str | None,
    typer.Option("--output-tensor-type", metavar="TYPE", help="Type of output.weight.", rich_help_panel=_TYPES),
]
TokenEmbeddingType = Annotated[
    str | None,
    typer.Option("--token-embedding-type", metavar="TYPE", help="Type of token_embd.weight.", rich_help_panel=_TYPES),
]
LeaveOutputTensor = Annotated[
    bool, typer.Option("--leave-output-tensor", help="Keep output.weight as it is.", rich_help_panel=_TYPES)
]
Pure = Annotated[bool, typer.Option("--pure", help="One type for every matrix, no mixture.", rich_help_panel=_TYPES)]
NoFallback = Annotated[
    bool,
    typer.Option("--no-fallback", help="Fail where a row does not fit the type's block.", rich_help_panel=_TYPES),
]
AllowRequantize = Annotated[
    bool,
    typer.Option("--allow-requantize", help="Accept tensors that are quantized already.", rich_help_panel=_TYPES),
]
KeepSplit = Annotated[
    bool, typer.Option("--keep-split", help="Cut the output as the input is.", rich_help_panel=_OUTPUT)
]
PruneLayers = Annotated[
    str | None,
    typer.Option("--prune-layers", metavar="1,3,5-7", help="Leave these layers out.", rich_help_panel=_OUTPUT),
]
VocabOnly = Annotated[
    bool, typer.Option("--vocab-only", help="Write metadata and tokenizer only.", rich_help_panel=_OUTPUT)
]
Compat = Annotated[
    str | None,
    typer.Option(
        "--compat",
        metavar="llama.cpp",
        help="Choose types exactly as llama.cpp does, traps included (docs/recipes.md).",
        rich_help_panel=_TYPES,
    ),
]
Effort = Annotated[
    str, typer.Option("--effort", metavar="fast|default|best", help="How hard to search.", rich_help_panel=_TYPES)
]
Objective = Annotated[
    str,
    typer.Option(
        "--objective",
        metavar="ggml|plain|importance",
        help="Which error encoders minimise (docs/encodings.md).",
        rich_help_panel=_TYPES,
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="File of qconv calibrate, made of this model: for --method gptq, and as an importance matrix where none is given.",
        rich_help_panel=_TYPES,
    ),
]
Method = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="plain|gptq",
        help="gptq: what rounding a column loses, the columns behind it make up for.",
        rich_help_panel=_TYPES,
    ),
]
Damping = Annotated[
    float | None,
    typer.Option(
        "--damping",
        min=0,
        metavar="X",
        callback=finite,
        help="gptq: trust the calibration less.",
        rich_help_panel=_TYPES,
    ),
]
ActivationOrder = Annotated[
    bool,
    typer.Option(
        "--activation-order", help="gptq: begin with the columns that have the largest inputs.", rich_help_panel=_TYPES
    ),
]
OverrideKv = Annotated[
    list[str] | None,
    typer.Option(
        "--override-kv",
        metavar="KEY=TYPE:VALUE",
        help="Set a metadata value; may be repeated.",
        rich_help_panel=_OUTPUT,
    ),
]
Alignment = Annotated[
    int | None,
    typer.Option("--alignment", metavar="N", help="Alignment of tensor data in bytes.", rich_help_panel=_OUTPUT),
]
SplitMaxSize = Annotated[
    str | None,
    typer.Option("--split-max-size", metavar="N[M|G]", help="Split into parts of at most N.", rich_help_panel=_OUTPUT),
]
SplitMaxTensors = Annotated[
    int | None,
    typer.Option(
        "--split-max-tensors",
        min=1,
        metavar="N",
        help="Split into parts of at most N tensors.",
        rich_help_panel=_OUTPUT,
    ),
]
NoDigests = Annotated[
    bool,
    typer.Option("--no-digests", help="Leave the SHA-256 of each tensor out of the file.", rich_help_panel=_OUTPUT),
]
AsArch = Annotated[
    str | None,
    typer.Option("--as-arch", metavar="NAME", help="Read the model as this architecture.", rich_help_panel=_WORK),
]
PreTokenizer = Annotated[
    str | None,
    typer.Option(
        "--pre-tokenizer",
        metavar="NAME",
        help="Name of the pre-tokenizer where its structure is not recognised.",
        rich_help_panel=_WORK,
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option("--model-name", metavar="TEXT", help="general.name of the output.", rich_help_panel=_OUTPUT),
]
Texts = Annotated[
    list[Path] | None,
    typer.Option("--text", metavar="FILE", help="Text to measure on (UTF-8); may be repeated."),
]
Context = Annotated[int, typer.Option("--context", "-c", metavar="N", help="Tokens per window.")]
Chunks = Annotated[
    int | None, typer.Option("--chunks", min=1, metavar="N", help="Use the first N windows of each text.")
]
CacheType = Annotated[
    str,
    typer.Option("--cache-type", metavar="f32|q8_0|q4_0", help="How keys and values of earlier positions are held."),
]
Temperature = Annotated[
    float,
    typer.Option("--temperature", metavar="T", help="Above 0: draw tokens; 0: the best.", rich_help_panel=_SAMPLING),
]
TopK = Annotated[
    int,
    typer.Option("--top-k", metavar="K", help="Draw from the K best tokens; 0: from all.", rich_help_panel=_SAMPLING),
]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p", metavar="P", help="Draw from the best that have P together; 1: all.", rich_help_panel=_SAMPLING
    ),
]
Seed = Annotated[
    int | None, typer.Option("--seed", metavar="N", help="Draw the same tokens again.", rich_help_panel=_SAMPLING)
]
Memory = Annotated[
    float | None,
    typer.Option(
        "--memory",
        min=0,
        metavar="GiB",
        callback=finite,
        help="Decoded weights to keep in memory; default: half of what is free. The rest is read anew for every token.",
        rich_help_panel=_WORK,
    ),
]
Validate = Annotated[
    list[Path] | None,
    typer.Option(
        "--validate",
        metavar="TEXT",
        help="Compare the result with its source on this text before it is sealed; may be repeated.",
        rich_help_panel=_VALIDATION,
    ),
]
ValidateContext = Annotated[
    int, typer.Option("--validate-context", metavar="N", help="Tokens per window.", rich_help_panel=_VALIDATION)
]
ValidateChunks = Annotated[
    int,
    typer.Option("--validate-chunks", min=1, metavar="N", help="Use the first N windows.", rich_help_panel=_VALIDATION),
]
MaxKld = Annotated[float | None, typer.Option("--max-kld", min=0, metavar="X", callback=finite, help=_MAX_KLD)]
ValidateMaxKld = Annotated[
    float | None,
    typer.Option("--max-kld", min=0, metavar="X", callback=finite, help=_MAX_KLD, rich_help_panel=_VALIDATION),
]
Size = Annotated[
    str | None,
    typer.Option(
        "--size", metavar="4.5GiB", help="Choose types for a file of this size.", rich_help_panel="Types for a size"
    ),
]
BitsPerWeight = Annotated[
    float | None,
    typer.Option(
        "--bpw",
        metavar="4.25",
        min=0.1,
        callback=finite,
        help="Choose types for this average.",
        rich_help_panel="Types for a size",
    ),
]
MeasureOn = Annotated[
    list[Path] | None,
    typer.Option(
        "--measure-on",
        metavar="TEXT",
        help="Measure on this text what each tensor's errors cost: a pass per tensor.",
        rich_help_panel="Types for a size",
    ),
]
MeasureChunks = Annotated[
    int,
    typer.Option(
        "--measure-chunks", min=1, metavar="N", help="Most windows of each text.", rich_help_panel="Types for a size"
    ),
]
RecipeOut = Annotated[
    Path | None,
    typer.Option("--recipe-out", metavar="FILE", help="Write the choice here.", rich_help_panel="Types for a size"),
]
BudgetFigure = Annotated[
    Path | None,
    typer.Option(
        "--figure",
        metavar="FILE.svg",
        help="Draw this size, others and the named mixtures against the divergence.",
        rich_help_panel="Types for a size",
    ),
]
Recipe = Annotated[
    Path | None,
    typer.Option(
        "--recipe", metavar="FILE", help="Take every tensor's type from here.", rich_help_panel="Types for a size"
    ),
]
