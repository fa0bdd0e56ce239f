"""Every choice that a conversion leaves to the user, as one value."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, cast, get_args

from ..errors import UsageError
from ..formats.base import WriteOptions
from ..formats.metadata import Field
from ..quantizers.base import DEFAULT_OPTIONS, EncodeOptions
from ..quantizers.rounding.feedback import DAMPING

__all__ = ["Budget", "Settings", "choose", "parse_size"]


Effort = Literal["fast", "default", "best"]
Objective = Literal["ggml", "plain", "importance"]
Method = Literal["plain", "gptq"]


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Budget:
    """A size to be met by choosing every tensor's type.

    Attributes:
        size: bytes of the whole output, or None.
        bits_per_weight: average over all tensors, or None; one of both is given.
        texts: on which the tensors' sensitivities are measured; none: they are guessed.
        context: tokens per window of these.
        chunks: most windows of each.
        recipe_out: where to write the choice, or None.
        figure: where to draw size against divergence, a .png, .svg or .pdf, or None.
    """

    size: int | None = None
    bits_per_weight: float | None = None
    texts: tuple[Path, ...] = ()
    context: int = 512
    chunks: int = 8
    recipe_out: Path | None = None
    figure: Path | None = None


@dataclass(frozen=True)
class Settings:
    """How to convert.

    Attributes:
        type_name: a recipe (``q4_k_m``), an encoding, or ``auto``: the type that most of the source's weights have.
        tensor_rules: (regular expression, type) pairs; the last that matches a tensor's name wins.
        output_tensor_type: type of ``output.weight``, or None.
        token_embedding_type: type of ``token_embd.weight``, or None.
        leave_output_tensor: keep ``output.weight`` as the source has it.
        pure: one type for every matrix.
        compat: choose types exactly as llama.cpp does.
        allow_requantize: accept quantized source tensors.
        no_fallback: fail where a row does not fit a type's block, instead of taking another type.
        imatrix: file of the importance matrix, or None.
        include_weights: use importance only for names that contain one of these.
        exclude_weights: ignore importance for names that contain one of these.
        encode: effort and objective of the encoders.
        overrides: metadata to set, by key.
        write: layout of the output.
        keep_split: cut the output into parts as the source is.
        prune: numbers of the blocks to leave out.
        threads: worker threads.
        validate: texts to validate the result on before it is sealed; none: no validation.
        validate_context: tokens per window.
        validate_chunks: most windows of each text.
        max_kld: largest mean divergence from the source, None for the default of the result's type.
        force: replace an existing output.
        allow_nonfinite: write zeros for NaN and infinity.
        calibration: file of second moments, whose diagonals stand in for an importance matrix, or None.
        method: ``plain``, or ``gptq`` for rounding with error feedback by ``calibration``.
        damping: added to second moments' diagonals, relative to their mean.
        activation_order: with ``gptq``, round blocks of columns with the largest inputs first.
        budget: choose types for a size instead of by ``type_name``, or None.
        recipe: file that names every tensor's type, or None.
    """

    type_name: str = "auto"
    tensor_rules: tuple[tuple[str, str], ...] = ()
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    leave_output_tensor: bool = False
    pure: bool = False
    compat: bool = False
    allow_requantize: bool = False
    no_fallback: bool = False
    imatrix: Path | None = None
    include_weights: tuple[str, ...] = ()
    exclude_weights: tuple[str, ...] = ()
    encode: EncodeOptions = DEFAULT_OPTIONS
    overrides: Mapping[str, Field] = field(default_factory=lambda: MappingProxyType({}))
    write: WriteOptions = field(default_factory=WriteOptions)
    keep_split: bool = False
    prune: frozenset[int] = frozenset()
    threads: int = field(default_factory=_cores)
    validate: tuple[Path, ...] = ()
    validate_context: int = 512
    validate_chunks: int = 16
    max_kld: float | None = None
    force: bool = False
    allow_nonfinite: bool = False
    calibration: Path | None = None
    method: Method = "plain"
    damping: float = DAMPING
    activation_order: bool = False
    budget: Budget | None = None
    recipe: Path | None = None


def parse_size(text: str) -> int:
    """Return the bytes that ``500M``, ``4.5GiB`` or ``2G`` names; K, M and G are decimal, as llama.cpp's split sizes are.

    >>> parse_size("2G"), parse_size("1.5 KiB")
    (2000000000, 1536)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(I?)B?", text.strip().upper())
    if match is None or (match[3] and not match[2]) or not float(match[1]):
        raise UsageError(f"{text!r} is no size", remedy="Write a number and K, M or G, such as 2G or 4.5GiB.")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " KMGT".index(match[2] or " "))


def parse_rule(text: str) -> tuple[str, str]:
    """Split ``REGEX=TYPE`` at its last equals sign; raises UsageError where a half is missing or the expression is wrong."""
    pattern, _, type_name = text.rpartition("=")
    if not pattern or not type_name:
        raise UsageError(f"{text!r} is no tensor rule", remedy="Write REGEX=TYPE, such as 'attn_v=q6_k'.")
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{pattern!r} is no regular expression ({error})") from error
    return pattern, type_name


def encode_options(effort: str, objective: str) -> EncodeOptions:
    """Return the options, or raise UsageError for a word that is none of them."""
    return EncodeOptions(
        cast("Effort", choose("--effort", effort, get_args(Effort))),
        cast("Objective", choose("--objective", objective, get_args(Objective))),
    )


def choose(option: str, value: str, allowed: tuple[str, ...]) -> str:
    """Return ``value`` if it is allowed, or raise UsageError."""
    if value not in allowed:
        raise UsageError(f"{option} is one of {', '.join(allowed)}, not {value!r}")
    return value
