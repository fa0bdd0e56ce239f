"""What of a model EXL2 quantizes: the matrices of each attention and feed-forward, and the output, under Hugging Face's names.

Weights are quantized as the checkpoint has them, since that is how they are packed; the forward pass knows them under canonical names and, for
rotary queries and keys, in another order of rows. A :class:`Exl2Linear` goes both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ModelError
from ..formats.architectures import TRANSFORMS, TensorMap
from ..formats.architectures.lazy import constant
from ..formats.architectures.names import fill_name
from ..formats.base import Model, OpenContext, Tensor
from ..formats.huggingface.out.family import Family, find_family
from ..formats.huggingface.out.prepare import prepare_for_huggingface
from ..formats.huggingface.out.source import read_recorded
from ..formats.scales import fold_scales
from ..quantizers.exl2_options import (
    PADDING,
    Exl2Option,
    attention_options,
    feed_forward_options,
    option_groups,
    storage_bits,
)
from ..runtime.layers import Attention, Dense
from ..runtime.network import Network
from ..runtime.stages import Stage, network_stages
from ..runtime.weights import Linear

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Exl2Linear", "Exl2Module", "Exl2Subject", "exl2_subject"]

_HEAD, _EMBEDDING = "lm_head", "token_embd.weight"
_REMEDY = "EXL2 is written for families with separate projections and one dense feed-forward per layer."


@dataclass(frozen=True)
class Exl2Linear:
    """A matrix to be quantized.

    Attributes:
        name: the checkpoint's, without ``.weight``.
        weight: under that name, in its order of rows.
        canonical: the tensor in the forward pass.
        transform: from the checkpoint's rows to the forward pass's.
        arguments: of the transform.
    """

    name: str
    weight: Tensor
    canonical: str
    transform: str = "copy"
    arguments: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def projection(self) -> str:
        """The last part of the name: ``q_proj``."""
        return self.name.rpartition(".")[2]

    @property
    def outputs(self) -> int:
        """Rows of the matrix."""
        return self.weight.row_count

    @property
    def inputs(self) -> int:
        """Weights per row."""
        return self.weight.columns

    def bits(self, option: Exl2Option) -> int:
        """Return the bits that the matrix takes; raises EncodingError where its rows do not fit."""
        return storage_bits(option_groups(option, self.inputs), self.outputs)

    def in_pass(self, weights: Floats) -> Floats:
        """Return weights, float32 (outputs, inputs), in the forward pass's order of rows."""
        (found,) = TRANSFORMS[self.transform].forward((constant(self.name, weights, ""),), self.arguments)
        return found.rows(0, found.row_count)


@dataclass(frozen=True)
class Exl2Module:
    """An attention or a feed-forward, for which ExLlamaV2 has a table of options.

    Attributes:
        name: as ``measurement.json`` has it: ``model.layers.0.self_attn``.
        stage: of the forward pass.
        linears: in the order of the table's columns.
        table: options of each matrix, row by row.
    """

    name: str
    stage: Stage
    linears: tuple[Exl2Linear, ...]
    table: tuple[tuple[Exl2Option, ...], ...]

    @property
    def weights(self) -> int:
        """Weights of all matrices."""
        return sum(it.outputs * it.inputs for it in self.linears)

    def bits(self, row: tuple[Exl2Option, ...]) -> int:
        """Return the bits that all matrices take with the options of a row."""
        return sum(it.bits(option) for it, option in zip(self.linears, row, strict=True))


@dataclass(frozen=True)
class Exl2Subject:
    """A model as EXL2 takes it.

    Attributes:
        prepared: the model under Hugging Face's names, with the documents of its folder.
        modules: all attentions and feed-forwards, in the order of the pass.
        head: the output.
    """

    prepared: Model
    modules: tuple[Exl2Module, ...]
    head: Exl2Linear

    @cached_property
    def weights(self) -> int:
        """Weights that the rate is counted on: those of the modules, not of the output."""
        return sum(module.weights for module in self.modules)


def exl2_subject(model: Model, network: Network, context: OpenContext) -> Exl2Subject:
    """Return what of a model is quantized; nothing is read.

    Raises ModelError, naming the place, for families that EXL2 is not written for; EncodingError for rows that do not fill words of 32 bits; and what
    :func:`prepare_for_huggingface` raises.
    """
    model = replace(model, tensors=MappingProxyType(fold_scales(model.tensors)))
    prepared = prepare_for_huggingface(model, context)
    family = find_family(model, context.architectures, None, read_recorded(model.metadata))
    makers = _makers(family)
    recorded = read_recorded(model.metadata)

    def linear(found: Linear) -> Exl2Linear:
        canonical = found.matrix.name
        if canonical not in makers or found.matrix.rows != found.matrix.tensor.row_count:
            raise ModelError(
                "is no projection of its own in the checkpoint", path=model.path, tensor=canonical, remedy=_REMEDY
            )
        entry, layer = makers[canonical]
        name = recorded.stored_name(fill_name(entry.hf[0], layer))
        arguments = {key: size.evaluate(family.values) for key, size in entry.arguments.items()}
        made = Exl2Linear(
            name.removesuffix(".weight"),
            prepared.tensors[name],
            canonical,
            entry.transform,
            MappingProxyType(arguments),
        )
        if found.bias is not None and made.outputs % PADDING:
            raise ModelError(
                f"has a bias and {made.outputs} outputs, no multiple of {PADDING}", path=model.path, tensor=canonical
            )
        return made

    modules = []
    for stage in network_stages(network):
        if stage.block is None:
            continue
        attention, feed_forward = stage.block.attention, stage.block.feed_forward
        if stage.part == "attention" and isinstance(attention, Attention):
            chosen, table = (attention.query, attention.key, attention.value, attention.output), attention_options()
        elif stage.part == "feed_forward" and isinstance(feed_forward, Dense):
            entering = () if feed_forward.gate is None else (feed_forward.gate,)
            chosen = (*entering, feed_forward.up, feed_forward.down)
            table = tuple(row[len(row) - len(chosen) :] for row in feed_forward_options())
        else:
            raise ModelError(f"EXL2 cannot hold {stage.name}", path=model.path, remedy=_REMEDY)
        linears = tuple(map(linear, chosen))
        modules.append(Exl2Module(linears[0].name.rpartition(".")[0], stage, linears, table))
    head = (
        _tied_head(prepared, recorded.stored_name)
        if network.output.matrix.name == _EMBEDDING
        else linear(network.output)
    )
    for made in (*(it for module in modules for it in module.linears), head):
        option_groups(attention_options()[0][0], made.inputs)
    return Exl2Subject(prepared, tuple(modules), head)


def _makers(family: Family) -> dict[str, tuple[TensorMap, int | None]]:
    """Return, for each canonical tensor that one tensor of the checkpoint alone becomes, the entry of the name map."""
    return {
        fill_name(entry.gguf[0], layer): (entry, layer)
        for entry, layer in family.entries
        if len(entry.gguf) == 1 and len(entry.hf) == 1 and not entry.per_expert
    }


def _tied_head(prepared: Model, stored_name: Callable[[str], str]) -> Exl2Linear:
    """Return the embedding as the output that ExLlamaV2 wants beside it."""
    return Exl2Linear(_HEAD, prepared.tensors[stored_name("model.embed_tokens.weight")], _EMBEDDING)
