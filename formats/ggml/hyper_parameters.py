"""What a header leaves out, recovered from shapes, and where nothing tells, from what the models of the time were.

====================  ==============================================================================================================
feed-forward length   rows of ``feed_forward.w1``
key and value heads   rows of ``attention.wk``, over the columns of a head
rotary base           10000; 1e6 for Code Llama
context length        2048; 4096 for Llama 2, 16384 for Code Llama
epsilon of the norms  1e-6 for Llama 1 (and files older than Llama 2), 1e-5 for Llama 2 and Code Llama; 5e-6, the compromise of the
                      program that wrote the last of these files, where nothing tells one from the other
====================  ==============================================================================================================

Code Llama: the file's name, 32,016 tokens, or 48 layers. Llama 2: the file's name, or fewer key and value heads than heads. Llama 1: the file's
name, 60 layers (30B), 80 layers without shared heads (65B), 26 layers of 3,200 columns (OpenLLaMA 3B), or quantized blocks older than
2023-05-19. A key that was guessed is told in a note.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import MissingTensorError, ShapeError, UnmappedTensorError
from ..metadata import Field, float32, string, uint32
from .header import Header
from .names import NamedTensor, named_tensors

__all__ = ["Dimensions", "check_tensors", "hyper_parameter_metadata"]

_CODE_LLAMA = re.compile(r"code[-_. ]?llama", re.IGNORECASE)
_LLAMA_2 = re.compile(r"llama[-_. ]?(v)?2(?!\d)", re.IGNORECASE)
_LLAMA_1 = re.compile(r"llama[-_. ]?(v)?1(?!\d)", re.IGNORECASE)
_CODE_LLAMA_TOKENS, _CODE_LLAMA_34B_LAYERS = 32016, 48
_SHAPES_OF_LLAMA_1 = {(60, 6656), (80, 8192), (26, 3200)}  # layers, columns
_COMPROMISE = 5e-6


@dataclass(frozen=True, slots=True)
class Dimensions:
    """Extents of a model's tensors, under the names that :class:`.names.NamedTensor` uses."""

    vocabulary: int
    embedding: int
    key_value: int
    feed_forward: int

    def shape(self, tensor: NamedTensor) -> tuple[int, ...]:
        """Return the shape that ``tensor`` must have."""
        extents = {
            "vocabulary": self.vocabulary,
            "embedding": self.embedding,
            "key_value": self.key_value,
            "feed_forward": self.feed_forward,
        }
        return tuple(extents[extent] for extent in tensor.shape)


def check_tensors(header: Header, shapes: Mapping[str, tuple[int, ...]]) -> Dimensions:
    """Compare the tensors of a whole model (``shapes`` by Meta's names, parts joined) with its header; returns its dimensions.

    Raises MissingTensorError, UnmappedTensorError or ShapeError.
    """
    numbers, path = header.numbers, header.path
    wanted = named_tensors(numbers.layers)
    names = {tensor.ggml for tensor in wanted}
    unknown = [name for name in shapes if name not in names]
    missing = [tensor.ggml for tensor in wanted if tensor.ggml not in shapes]
    if unknown:
        family = " It looks like BLOOM." if any("query_key_value" in name for name in unknown) else ""
        raise UnmappedTensorError(
            f"{len(unknown)} tensors are no Llama's, {unknown[0]} the first",
            path=path,
            tensor=unknown[0],
            remedy=f"qconv reads the Llama family of these files.{family}",
        )
    if missing:
        raise MissingTensorError(
            f"{len(missing)} of {len(wanted)} tensors are missing, {missing[0]} the first",
            path=path,
            tensor=missing[0],
            remedy="The file is incomplete; download or convert it again.",
        )
    dimensions = Dimensions(
        numbers.vocabulary,
        numbers.embedding,
        shapes["layers.0.attention.wk.weight"][0],
        shapes["layers.0.feed_forward.w1.weight"][0],
    )
    for tensor in wanted:
        if shapes[tensor.ggml] != dimensions.shape(tensor):
            raise ShapeError(
                f"its shape is {shapes[tensor.ggml]}, but the model's numbers demand {dimensions.shape(tensor)}",
                path=path,
                tensor=tensor.ggml,
            )
    head = numbers.embedding // numbers.heads
    if dimensions.key_value % head or numbers.heads % (dimensions.key_value // head or 1):
        raise ShapeError(
            f"{dimensions.key_value} rows are no key heads of {head} for {numbers.heads} query heads",
            path=path,
            tensor="layers.0.attention.wk.weight",
        )
    return dimensions


def hyper_parameter_metadata(
    header: Header, dimensions: Dimensions | None, predates_llama_2: bool
) -> tuple[dict[str, Field], tuple[str, ...]]:
    """Return ``general.*`` and ``llama.*`` metadata, and notes on what was assumed; ``dimensions`` are None for a vocabulary alone.

    ``predates_llama_2`` says that the file has quantized blocks that were given up before Llama 2 came out.
    """
    numbers = header.numbers
    fields = {"general.architecture": string("llama"), "general.name": string(header.path.name.split(".bin")[0])}
    if dimensions is None:
        return fields, ()
    head = numbers.embedding // numbers.heads
    family = _family(header, dimensions.key_value // head, predates_llama_2)
    base, context, epsilon = {
        "Code Llama": (1e6, 16384, 1e-5),
        "Llama 2": (1e4, 4096, 1e-5),
        "Llama 1": (1e4, 2048, 1e-6),
        None: (1e4, 2048, _COMPROMISE),
    }[family]
    fields |= {
        "llama.vocab_size": uint32(numbers.vocabulary),
        "llama.context_length": uint32(context),
        "llama.embedding_length": uint32(numbers.embedding),
        "llama.block_count": uint32(numbers.layers),
        "llama.feed_forward_length": uint32(dimensions.feed_forward),
        "llama.rope.dimension_count": uint32(head),
        "llama.rope.freq_base": float32(base),
        "llama.attention.head_count": uint32(numbers.heads),
        "llama.attention.head_count_kv": uint32(dimensions.key_value // head),
        "llama.attention.layer_norm_rms_epsilon": float32(epsilon),
        "general.file_type": uint32(numbers.file_type),
    }
    assumed = f"context {context}, rotary base {base:.0f}, epsilon of the norms {epsilon:g}"
    reason = (
        f"those of {family}" if family else "nothing tells Llama 1 (epsilon 1e-06) from Llama 2 (1e-05, context 4096)"
    )
    return fields, (f"the file does not store these; assumed: {assumed} ({reason})",)


def _family(header: Header, key_value_heads: int, predates_llama_2: bool) -> str | None:
    """Return which generation of Llama the file must be, or None where nothing tells."""
    numbers, name = header.numbers, header.path.name
    if _CODE_LLAMA.search(name) or numbers.vocabulary == _CODE_LLAMA_TOKENS or numbers.layers == _CODE_LLAMA_34B_LAYERS:
        return "Code Llama"
    if predates_llama_2 or _LLAMA_1.search(name):
        return "Llama 1"
    if _LLAMA_2.search(name) or key_value_heads < numbers.heads:
        return "Llama 2"
    return "Llama 1" if (numbers.layers, numbers.embedding) in _SHAPES_OF_LLAMA_1 else None
