"""What a user asks of a recipe, and what is chosen for a tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ...errors import EncodingError, UsageError
from ..base import Encoding
from .tables import nearest

__all__ = ["Choice", "Overrides", "RecipeRequest", "TensorRule"]


@dataclass(frozen=True, slots=True)
class RecipeRequest:
    """The options of ``qconv quantize`` and ``hf-to-gguf`` that decide about types. Names are in any case.

    Attributes:
        type: name of a recipe, an alias, or a ``general.file_type`` number.
        compat: choose exactly as llama.cpp does, its traps included.
        tensor_rules: pairs (regular expression, encoding): ``--tensor-type``.
        output_tensor_type: encoding of ``output.weight``, or of the embedding that doubles as it.
        token_embedding_type: encoding of the token embeddings.
        leave_output_tensor: ``output.weight`` keeps its source's encoding.
        pure: every weight matrix gets the recipe's base encoding.
        allow_requantize: a tensor that is quantized already may be quantized again.
        importance: names of the tensors that the importance matrix has an entry for; empty without a matrix.
        no_fallback: refuse where a block does not fit, instead of taking another encoding.
        unquantized: what becomes of a tensor that is never quantized: it keeps its encoding, or floats become F32 as in llama.cpp's
            converter from Hugging Face folders.
        keep_order: with ``compat``, tensors are visited as given (``--keep-split``), not sorted.
    """

    type: str
    compat: bool = False
    tensor_rules: tuple[tuple[str, str], ...] = ()
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    leave_output_tensor: bool = False
    pure: bool = False
    allow_requantize: bool = False
    importance: frozenset[str] = frozenset()
    no_fallback: bool = False
    unquantized: Literal["keep", "F32"] = "keep"
    keep_order: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """The encoding chosen for one tensor.

    Attributes:
        name: the tensor.
        source: encoding that it has.
        encoding: encoding that it gets.
        wanted: encoding that it would have got, had its block fitted.
        why: the rule that decided, for the plan.
        is_fallback: whether ``encoding`` stands in for ``wanted``.
    """

    name: str
    source: str
    encoding: str
    wanted: str
    why: str
    is_fallback: bool = False

    @property
    def is_copy(self) -> bool:
        """Whether the bytes stay as they are."""
        return self.encoding == self.source


@dataclass(frozen=True, slots=True)
class TensorRule:
    """One ``--tensor-type``: tensors in whose name ``pattern`` is found get ``encoding``; ``text`` is the pattern as written."""

    pattern: re.Pattern[str]
    encoding: str
    text: str


@dataclass(frozen=True, slots=True)
class Overrides:
    """The encodings that a request names, checked against those that exist."""

    rules: tuple[TensorRule, ...]
    output: str | None
    embedding: str | None
    first_wins: bool

    @classmethod
    def read(cls, request: RecipeRequest, encodings: Mapping[str, Encoding]) -> Overrides:
        """Check the names and patterns; raises UnknownTypeError, EncodingError or UsageError."""
        if request.leave_output_tensor and request.output_tensor_type is not None:
            raise UsageError("--leave-output-tensor and --output-tensor-type exclude each other")
        rules = tuple(
            TensorRule(_compiled(text, request.compat), _encoding_name(name, encodings), text)
            for text, name in request.tensor_rules
        )
        output, embedding = request.output_tensor_type, request.token_embedding_type
        return cls(
            rules,
            None if output is None else _encoding_name(output, encodings),
            None if embedding is None else _encoding_name(embedding, encodings),
            first_wins=request.compat,
        )

    def rule_for(self, name: str) -> TensorRule | None:
        """Return the rule that decides about a tensor: the last that fits, or llama.cpp's first."""
        fitting = [rule for rule in self.rules if rule.pattern.search(name)]
        if not fitting:
            return None
        return fitting[0] if self.first_wins else fitting[-1]


def _compiled(text: str, compat: bool) -> re.Pattern[str]:
    """Compile a pattern; llama.cpp lower-cases it before, whatever that does to ``\\S``."""
    try:
        return re.compile(text.lower() if compat else text)
    except re.error as error:
        raise UsageError(f"--tensor-type {text!r} is no regular expression: {error}") from error


def _encoding_name(name: str, encodings: Mapping[str, Encoding]) -> str:
    """Return an encoding's exact name; raises where there is none, or none that holds weights."""
    upper = name.strip().upper()
    known = {known_name.upper(): encoding for known_name, encoding in encodings.items()}
    found = known.get(upper)
    if found is None:
        raise nearest(name, list(known), "encoding", "`qconv types` lists all.")
    if found.family in ("integer", "activation"):
        raise EncodingError(f"{found.name} does not hold weights", remedy="Choose a float or quantized encoding.")
    return found.name
