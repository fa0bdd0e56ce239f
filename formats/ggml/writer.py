"""Lay out a Llama as ggjt version 3, the last format before GGUF.

Whoever reads such a file takes for granted what it has no room for: RMS norms, a rotary base of 10000 without scaling, as many
key and value heads as query heads (but for Llama 2 70B), a sentencepiece vocabulary with fixed special tokens. What contradicts that is
refused. The context length, the epsilon of the norms and all descriptive metadata are left out: users of the time gave them to the
program, or never knew them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from struct import Struct
from types import MappingProxyType
from typing import Final

from ...errors import OutputError, UsageError
from ..base import Layout, OutputTensor, Part, Placement, WriteOptions
from ..getters import get_integer, get_number, get_string
from ..gguf.constants import padded
from ..metadata import Field
from . import constants as c
from .hyper_parameters import Dimensions
from .layouts import TYPE_NAMES
from .names import NamedTensor, find_by_gguf_name, named_tensors
from .vocabulary import serialize_vocabulary

__all__ = ["lay_out_ggjt"]

_HEADER = Struct("<4s8I")
_NUMBER = Struct("<I")
# Number of the mixture of types that is called after the type of most weights.
_FILE_TYPES: Final = MappingProxyType(
    {
        "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9,
        "Q2_K": 10, "Q3_K": 11, "Q4_K": 14, "Q5_K": 16, "Q6_K": 18,
    }
)  # fmt: skip
_KNOWN_FILE_TYPES = frozenset(c.FILE_TYPES) - {4, 5, 6}  # those had been given up by version 3
_GGUF = "Write GGUF instead."
_MULTIPLE = 256  # of which Meta's feed-forward lengths are multiples
_LAYERS_OF_70B, _SHARING_OF_70B = 80, 8
_NEUTRAL_BASE = 10000.0


def lay_out_ggjt(
    path: Path, metadata: Mapping[str, Field], tensors: Sequence[OutputTensor], options: WriteOptions
) -> Layout:
    """Return which bytes go where for a model named ``path``: one file, in the order of the old converters.

    The format has no room for digests, other alignments or parts. :func:`prepare_for_ggjt` makes a Llama with shared key and value heads,
    or with an output tied to its embeddings, fit.

    Raises UsageError for options that ggjt does not have, OutputError for a model that it cannot hold.
    """
    _check_options(options)
    count, vocabulary = serialize_vocabulary(metadata)
    _check_metadata(metadata)
    placed = _match(tensors)
    numbers = _numbers(metadata, placed, count)
    header = _HEADER.pack(c.WRITTEN_MAGIC, c.WRITTEN_VERSION, *numbers) + vocabulary
    position = len(header)
    records: list[tuple[int, bytes]] = []
    placements: list[Placement] = []
    for named, tensor in placed:
        record = _serialize_record(named, tensor)
        records.append((position, record))
        offset = padded(position + len(record), c.ALIGNMENT)
        placements.append(Placement(tensor, offset))
        position = offset + tensor.nbytes
    return Layout((Part(path, position, tuple(placements), lambda _: header, tuple(records)),))


def _check_options(options: WriteOptions) -> None:
    split = options.split_max_size or options.split_max_tensors or options.metadata_only_first
    if split or any((options.part_of or {}).values()):
        raise UsageError("a ggjt file cannot be split", remedy=_GGUF)
    if options.alignment not in (None, c.ALIGNMENT):
        raise UsageError(f"ggjt aligns to {c.ALIGNMENT} bytes, not to {options.alignment}")


def _check_metadata(metadata: Mapping[str, Field]) -> None:
    """Refuse what readers of ggjt would not know and therefore compute wrongly."""
    architecture = get_string(metadata, "general.architecture")
    if architecture != "llama":
        raise OutputError(f"ggjt holds models of the architecture llama, not {architecture or 'of none'}", remedy=_GGUF)
    base = get_number(metadata, "llama.rope.freq_base")
    if base is not None and base != _NEUTRAL_BASE:
        raise OutputError(
            f"the rotary base is {base:g}; ggjt has no room for it, and readers assume 10000", remedy=_GGUF
        )
    stretched = get_string(metadata, "llama.rope.scaling.type") not in (None, "none")
    if stretched or get_number(metadata, "llama.rope.scale_linear") not in (None, 1.0):
        raise OutputError("the model stretches its rotary positions, which ggjt cannot say", remedy=_GGUF)
    for key in ("llama.expert_count", "llama.attention.sliding_window"):
        if get_integer(metadata, key):
            raise OutputError(f"the model has {key}, which ggjt cannot say", remedy=_GGUF)


def _match(tensors: Sequence[OutputTensor]) -> list[tuple[NamedTensor, OutputTensor]]:
    """Return the tensors with their old names, in the order in which they are written; none where there are none."""
    found: dict[str, OutputTensor] = {}
    layers = 0
    for tensor in tensors:
        match = find_by_gguf_name(tensor.name)
        if match is None:
            raise OutputError(
                "ggjt has no place for this tensor: it holds plain Llamas", tensor=tensor.name, remedy=_GGUF
            )
        named, layer = match
        if named.ggml in found:
            raise OutputError("two tensors would have this name", tensor=tensor.name)
        if tensor.encoding.name not in c.WRITABLE or (len(tensor.shape) == 1 and tensor.encoding.name != "F32"):
            raise OutputError(
                f"ggjt cannot hold {'a vector' if len(tensor.shape) == 1 else 'it'} as {tensor.encoding.name}",
                tensor=tensor.name,
                remedy=f"Choose a type made of {', '.join(c.WRITABLE)}; vectors are F32.",
            )
        found[named.ggml] = tensor
        layers = max(layers, 0 if layer is None else layer + 1)
    if layers > c.MAX_LAYERS:
        raise OutputError(f"{layers} layers are more than {c.MAX_LAYERS}")
    wanted = named_tensors(layers) if found else ()
    for named in wanted:
        if named.ggml not in found:
            raise OutputError("ggjt needs this tensor, but the model has none", tensor=named.gguf, remedy=_GGUF)
    return [(named, found[named.ggml]) for named in wanted]


def _numbers(
    metadata: Mapping[str, Field], placed: Sequence[tuple[NamedTensor, OutputTensor]], vocabulary: int
) -> tuple[int, int, int, int, int, int, int]:
    """Return the header's hyper-parameters; raises OutputError where they and the shapes do not fit each other or ggjt."""
    if not placed:
        return vocabulary, 0, 0, 1, 0, 0, 0
    shapes = {named.ggml: tensor.shape for named, tensor in placed}
    key_value = shapes["layers.0.attention.wk.weight"][0]
    feed_forward = shapes["layers.0.feed_forward.w1.weight"][0]
    embedding = shapes["tok_embeddings.weight"][-1]
    dimensions = Dimensions(vocabulary, embedding, key_value, feed_forward)
    for named, tensor in placed:
        if tensor.shape != dimensions.shape(named):
            raise OutputError(f"its shape is {tensor.shape}, not {dimensions.shape(named)}", tensor=tensor.name)
    layers = (len(placed) - len(named_tensors(0))) // (len(named_tensors(1)) - len(named_tensors(0)))
    heads = get_integer(metadata, "llama.attention.head_count") or 0
    rotary = get_integer(metadata, "llama.rope.dimension_count")
    if heads < 1 or embedding % heads or rotary not in (None, embedding // heads):
        raise OutputError(f"{heads} heads with {rotary} rotary columns do not share {embedding} columns evenly")
    sharing = _sharing(embedding, key_value)
    if sharing > 1 and (layers, sharing) != (_LAYERS_OF_70B, _SHARING_OF_70B):
        raise OutputError(
            f"{sharing} query heads share a key and value head; of such models ggjt holds Llama 2 70B only",
            remedy="Repeat the heads with prepare_for_ggjt, or write GGUF instead.",
        )
    multiple = _multiple(embedding, feed_forward, sharing)
    return vocabulary, embedding, multiple, heads, layers, embedding // heads, _file_type(metadata, placed)


def _sharing(embedding: int, key_value: int) -> int:
    if key_value < 1 or embedding % key_value:
        raise OutputError(f"{key_value} rows of keys for {embedding} columns", tensor="blk.0.attn_k.weight")
    return embedding // key_value


def _multiple(embedding: int, feed_forward: int, sharing: int) -> int:
    """Return the ``n_mult`` from which readers compute ``feed_forward``: two thirds of four times the columns, rounded up to it."""
    least = 2 * (4 * embedding) // 3
    if sharing == _SHARING_OF_70B:
        least = int(1.3 * least)
    # the length itself is a multiple that reproduces any length that is large enough
    for multiple in (_MULTIPLE, feed_forward):
        if padded(least, multiple) == feed_forward:
            return multiple
    raise OutputError(
        f"the feed-forward length {feed_forward} is below {least}, the least that readers of ggjt compute for {embedding} columns",
        remedy=_GGUF,
    )


def _file_type(metadata: Mapping[str, Field], placed: Sequence[tuple[NamedTensor, OutputTensor]]) -> int:
    """Return ``general.file_type`` where the time knew it, else that of the type of most weights."""
    stated = get_integer(metadata, "general.file_type")
    if stated in _KNOWN_FILE_TYPES:
        return stated
    weights: Counter[str] = Counter()
    for _, tensor in placed:
        weights[tensor.encoding.name] += prod(tensor.shape)
    return _FILE_TYPES[weights.most_common(1)[0][0]]


def _serialize_record(named: NamedTensor, tensor: OutputTensor) -> bytes:
    name = named.ggml.encode("ascii")
    extents = tuple(reversed(tensor.shape))
    numbers = (len(extents), len(name), TYPE_NAMES.index(tensor.encoding.name), *extents)
    return b"".join(map(_NUMBER.pack, numbers)) + name
