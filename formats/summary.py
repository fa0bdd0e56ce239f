"""What ``qconv inspect`` says about a model of any format, as plain data with stable keys.

Only headers are looked at: no weight is read, and of a vocabulary only the special tokens are decoded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from .getters import get_integer, get_string, get_strings
from .gguf.constants import DIGEST_ALGORITHM_KEY
from .gguf.file_types import file_type_name
from .metadata import Field, Scalar, ValueType

if TYPE_CHECKING:
    from .base import Model

__all__ = [
    "SpecialToken",
    "Summary",
    "TensorLine",
    "TokenizerSummary",
    "TypeShare",
    "plain_value",
    "printable",
    "summarize",
    "summarize_tensors",
]

_SPECIAL = re.compile(r"tokenizer\.ggml\.(\w+)_token_id")
_FLAG = re.compile(r"tokenizer\.ggml\.(add_\w+)")
_TEMPLATE = re.compile(r"tokenizer\.chat_template(?:\.(?P<name>.+))?")
_LONGEST_ARRAY = 1024


@dataclass(frozen=True, slots=True)
class TypeShare:
    """How much of a model one encoding holds."""

    type: str
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class TensorLine:
    """One tensor: its shape in NumPy order (the last axis is the row)."""

    name: str
    shape: tuple[int, ...]
    type: str
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A token with a role; ``text`` is None where the vocabulary has no such id."""

    id: int
    text: str | None


@dataclass(frozen=True, slots=True)
class TokenizerSummary:
    """The vocabulary at a glance.

    Attributes:
        model: kind of tokenizer (``gpt2``, ``llama``), None where the file does not say.
        pre: name of the pre-tokenizer, if there is one.
        size: number of tokens.
        merges: number of merge rules.
        special: role (``bos``) to token.
        flags: what is added without being asked for (``add_bos_token``).
        templates: names of the chat templates, the unnamed one being ``default``.
    """

    model: str | None
    pre: str | None
    size: int
    merges: int
    special: Mapping[str, SpecialToken]
    flags: Mapping[str, bool]
    templates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """A model at a glance.

    Attributes:
        path: what the user named.
        files: every file that belongs to it.
        format: name of the format.
        container: facts about the container (GGUF: version, byte order, alignment, parts).
        architecture: ``general.architecture``, None where the file has none (an importance matrix, an adapter).
        name: ``general.name``.
        file_type: llama.cpp's name for the mixture of types.
        parameters: number of weights in all tensors.
        tensors: number of tensors.
        tensor_bytes: bytes of all tensors.
        file_bytes: bytes of all files.
        bits_per_weight: average over all tensors, None where there are none.
        types: share of each encoding, the largest first.
        context_length: tokens that the model was made for.
        hyper_parameters: the architecture's own keys, without its name.
        tokenizer: the vocabulary, None where there is none.
        digests: whether the file carries digests that ``qconv verify`` can check.
        notes: what the reader found odd.
    """

    path: str
    files: tuple[str, ...]
    format: str
    container: Mapping[str, Scalar]
    architecture: str | None
    name: str | None
    file_type: str | None
    parameters: int
    tensors: int
    tensor_bytes: int
    file_bytes: int
    bits_per_weight: float | None
    types: tuple[TypeShare, ...]
    context_length: int | None
    hyper_parameters: Mapping[str, object]
    tokenizer: TokenizerSummary | None
    digests: bool
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Return plain data for ``--json``."""
        return asdict(self)


def summarize(model: Model) -> Summary:
    """Return the summary of ``model``; raises FormatError where a key has another type than it must have."""
    metadata, path = model.metadata, model.path
    architecture = get_string(metadata, "general.architecture", path)
    name = get_string(metadata, "general.name", path)
    lines = summarize_tensors(model)
    parameters = sum(line.parameters for line in lines)
    tensor_bytes = sum(line.bytes for line in lines)
    file_type = get_integer(metadata, "general.file_type", path)
    return Summary(
        path=str(path),
        files=tuple(map(str, model.files)),
        format=model.format,
        container=dict(model.container),
        architecture=None if architecture is None else printable(architecture),
        name=None if name is None else printable(name),
        file_type=None if file_type is None else file_type_name(file_type),
        parameters=parameters,
        tensors=len(lines),
        tensor_bytes=tensor_bytes,
        file_bytes=sum(file.stat().st_size for file in model.files),
        bits_per_weight=8 * tensor_bytes / parameters if parameters else None,
        types=_shares(lines),
        context_length=get_integer(metadata, f"{architecture}.context_length", path),
        hyper_parameters={
            printable(key.removeprefix(f"{architecture}.")): plain_value(field)
            for key, field in metadata.items()
            if key.startswith(f"{architecture}.")
        },
        tokenizer=_tokenizer(metadata, path),
        digests=DIGEST_ALGORITHM_KEY in metadata,
        notes=model.notes,
    )


def summarize_tensors(model: Model) -> tuple[TensorLine, ...]:
    """Return one line per tensor, in file order."""
    return tuple(
        TensorLine(printable(tensor.name), tensor.shape, tensor.encoding.name, prod(tensor.shape), tensor.nbytes)
        for tensor in model.tensors.values()
    )


def plain_value(field: Field) -> object:
    """Return a metadata value as JSON holds it; of an array of more than 1024 elements only the length is told."""
    value = field.value
    if isinstance(value, str):
        return printable(value)
    if field.type is ValueType.FLOAT32:
        return float(str(np.float32(cast("float", value))))  # 1e-05, not the float64 beside it
    if isinstance(value, bool | int | float):
        return value
    if len(value) > _LONGEST_ARRAY:
        return f"{len(value)} values"
    if isinstance(value, np.ndarray):
        plain: list[object] = value.tolist()
        return plain
    return [printable(element) for element in value]


def printable(text: str) -> str:
    """Return ``text`` safe for any terminal: control characters and bytes that are no UTF-8 are escaped, line ends and tabs kept.

    >>> printable("a\\x1b[2J\\udcff")
    'a\\\\x1b[2J\\\\xff'
    """
    return "".join(map(_printable_character, text))


def _printable_character(character: str) -> str:
    if character.isprintable() or character in "\n\t":
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that surrogateescape carried through
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("ascii", "backslashreplace").decode("ascii") if code > 0x7F else f"\\x{code:02x}"


def _shares(lines: Sequence[TensorLine]) -> tuple[TypeShare, ...]:
    by_type: dict[str, list[TensorLine]] = {}
    for line in lines:
        by_type.setdefault(line.type, []).append(line)
    shares = [
        TypeShare(kind, len(of_type), sum(line.parameters for line in of_type), sum(line.bytes for line in of_type))
        for kind, of_type in by_type.items()
    ]
    return tuple(sorted(shares, key=lambda share: (-share.bytes, share.type)))


def _tokenizer(metadata: Mapping[str, Field], path: Path) -> TokenizerSummary | None:
    tokens = get_strings(metadata, "tokenizer.ggml.tokens", path)
    model = get_string(metadata, "tokenizer.ggml.model", path)
    if tokens is None and model is None:
        return None
    pre = get_string(metadata, "tokenizer.ggml.pre", path)
    vocabulary: Sequence[str] = () if tokens is None else tokens
    special: dict[str, SpecialToken] = {}
    flags: dict[str, bool] = {}
    templates: list[str] = []
    for key, field in metadata.items():
        value = field.value
        if (role := _SPECIAL.fullmatch(key)) and isinstance(value, int):
            special[role[1]] = SpecialToken(value, _text(vocabulary, value))
        elif (flag := _FLAG.fullmatch(key)) and isinstance(value, bool):
            flags[flag[1]] = value
        elif template := _TEMPLATE.fullmatch(key):
            templates.append(printable(template["name"] or "default"))
    return TokenizerSummary(
        model=None if model is None else printable(model),
        pre=None if pre is None else printable(pre),
        size=len(vocabulary),
        merges=len(get_strings(metadata, "tokenizer.ggml.merges", path) or ()),
        special=special,
        flags=flags,
        templates=tuple(templates),
    )


def _text(vocabulary: Sequence[str], index: int) -> str | None:
    return printable(vocabulary[index]) if 0 <= index < len(vocabulary) else None
