"""What of a model EXL2 quantizes: the matrices of each attention and feed-forward, and the output, under Hugging Face's names.

Weights are quantized as the checkpoint has them, since that is how they are packed; the forward pass knows them under canonical names and, for
rotary queries and keys, in another order of rows. A :class:`Exl2Linear` goes both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from ...errors import ModelError
from ...formats.architectures import TRANSFORMS, TensorMap, at_layer
from ...formats.architectures.lazy import constant
from ...formats.architectures.names import fill_name
from ...formats.base import Model, OpenContext, Tensor
from ...formats.huggingface.out.family import Family
from ...formats.huggingface.out.prepare import family_of, prepare_for_huggingface
from ...formats.huggingface.out.source import read_recorded
from ...formats.scales import fold_scales
from ...quantizers.rounding.exl2_options import (
    PADDING,
    Exl2Option,
    attention_options,
    feed_forward_options,
    option_groups,
    storage_bits,
)
from ...runtime.building.layers import Attention, Dense, Experts
from ...runtime.building.network import Network
from ...runtime.stages import Stage, network_stages
from ...runtime.weights import Linear, Matrix
from ..packed.linears import expert_by_expert

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Exl2Linear", "Exl2Module", "Exl2Subject", "exl2_subject"]

_HEAD, _EMBEDDING, _WEIGHT = "lm_head", "token_embd.weight", ".weight"
_REMEDY = "EXL2 is written for families that ExLlamaV2 has, with attention and feed-forward one after the other: see docs/exl2.md."
_WITH_EXPERTS, _FUSED = (
    ("mixtral", "qwen3moe"),
    ("phi3",),
)  # families whose experts and fused projections ExLlamaV2 knows


@dataclass(frozen=True)
class Exl2Linear:
    """A matrix to be quantized.

    Attributes:
        name: ExLlamaV2's, without ``.weight``: the checkpoint's, where that does not fuse several.
        weight: under that name, in the checkpoint's order of rows.
        canonical: the tensor in the forward pass.
        transform: from the checkpoint's rows to the forward pass's.
        arguments: of the transform.
        stored: the checkpoint's tensor that it is, or is a part of; empty: none, for an output beside the embedding.
        first: its first row in ``canonical``.
        place: its column in the table of options.
        input: the tensor, and of a stack the expert, whose input's second moment counts.
    """

    name: str
    weight: Tensor
    canonical: str
    transform: str = "copy"
    arguments: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    stored: str = ""
    first: int = 0
    place: int = 0
    input: tuple[str, int | None] = ("", None)

    @property
    def projection(self) -> str:
        """The last part of the name: ``q_proj``."""
        return self.name.rpartition(".")[2]

    @property
    def moment(self) -> tuple[str, int | None]:
        """The tensor, and of a stack the expert, whose input's second moment counts."""
        return self.input if self.input[0] else (self.canonical, None)

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
        linears: in the order of the table's columns; of experts, all that share a column one after another.
        table: options of each column, row by row.
        columns: their names in ``measurement.json``.
    """

    name: str
    stage: Stage
    linears: tuple[Exl2Linear, ...]
    table: tuple[tuple[Exl2Option, ...], ...]
    columns: tuple[str, ...]

    @property
    def weights(self) -> int:
        """Weights of all matrices."""
        return sum(it.outputs * it.inputs for it in self.linears)

    def bits(self, row: tuple[Exl2Option, ...]) -> int:
        """Return the bits that all matrices take with the options of a row."""
        return sum(it.bits(option) for it, option in self.pairs(row))

    def pairs(self, row: Sequence[Exl2Option]) -> list[tuple[Exl2Linear, Exl2Option]]:
        """Return every matrix with its option of a row."""
        return [(it, row[it.place]) for it in self.linears]


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
    model = expert_by_expert(replace(model, tensors=MappingProxyType(fold_scales(model.tensors))), context)
    prepared = prepare_for_huggingface(model, context)
    family = family_of(model, context)
    if network.configuration.facts.normalised_values:
        raise ModelError(
            f"EXL2 cannot hold a model of the architecture {family.architecture.name}, whose values are normalised",
            path=model.path,
            remedy=_REMEDY,
        )
    makers = _Makers(family, prepared, model.path)
    modules = []
    for stage in network_stages(network):
        if stage.block is None:
            continue
        attention, feed_forward = stage.block.attention, stage.block.feed_forward
        if stage.part == "attention" and isinstance(attention, Attention):
            chosen = (*attention.projections, attention.output)
            linears = tuple(makers.linear(it, place) for place, it in enumerate(chosen))
            modules.append(_module(stage, linears, attention_options()))
        elif stage.part == "feed_forward" and isinstance(feed_forward, Dense):
            entering = () if feed_forward.gate is None else (feed_forward.gate,)
            chosen = (*entering, feed_forward.up, feed_forward.down)
            linears = tuple(makers.linear(it, place) for place, it in enumerate(chosen))
            table = tuple(row[len(row) - len(chosen) :] for row in feed_forward_options())
            modules.append(_module(stage, linears, table))
        elif stage.part == "feed_forward" and makers.name in _WITH_EXPERTS and isinstance(feed_forward, Experts):
            modules.append(_experts(stage, feed_forward, makers))
        else:
            raise ModelError(f"EXL2 cannot hold {stage.name}", path=model.path, remedy=_REMEDY)
    head = (
        _tied_head(prepared, makers.stored_name)
        if network.output.matrix.name == _EMBEDDING
        else makers.linear(network.output, 0)
    )
    for made in (*(it for module in modules for it in module.linears), head):
        option_groups(attention_options()[0][0], made.inputs)
    return Exl2Subject(prepared, tuple(modules), head)


def _module(stage: Stage, linears: tuple[Exl2Linear, ...], table: tuple[tuple[Exl2Option, ...], ...]) -> Exl2Module:
    name = linears[0].name.rpartition(".")[0]
    return Exl2Module(name, stage, linears, table, tuple(it.projection for it in linears))


def _experts(stage: Stage, layer: Experts, makers: _Makers) -> Exl2Module:
    """Return a mixture as one module: all experts get a row's options, and what enters them counts for all alike."""
    assert stage.block is not None
    linears: list[Exl2Linear] = []
    for place, kind in enumerate(("gate", "up", "down")):
        for number, expert in enumerate(layer.experts):
            entering = (layer.router.matrix.name, None) if kind != "down" else (expert.down.matrix.name, number)
            linears.append(makers.expert(getattr(expert, kind), number, place, entering))
    prefix = linears[0].name.partition(".layers.")[0]
    name = f"{prefix}.layers.{stage.block.index}.block_sparse_moe"
    return Exl2Module(name, stage, tuple(linears), feed_forward_options(), ("w1", "w3", "w2"))


class _Makers:
    """Finds matrices of the forward pass in the checkpoint."""

    def __init__(self, family: Family, prepared: Model, path: Path) -> None:
        recorded = read_recorded(prepared.metadata)
        self.name = family.architecture.name
        self.stored_name = recorded.stored_name
        self._values = family.values
        self._prepared = prepared
        self._path = path
        self._entries: dict[str, tuple[TensorMap, int | None]] = {
            fill_name(entry.gguf[0], layer): (entry, layer)
            for entry, layer in family.entries
            if len(entry.gguf) == 1 and len(entry.hf) == 1
        }

    def linear(self, found: Linear, place: int) -> Exl2Linear:
        """Return a projection; one of several that the checkpoint fuses gets the name that ExLlamaV2 gives it."""
        entry, name = self._entry(found, None)
        whole = self._prepared.tensors[name]
        matrix = found.matrix
        if matrix.rows == whole.row_count and matrix.rows == matrix.tensor.row_count:
            scope = at_layer(self._values, self._entries[matrix.name][1])
            arguments = {key: size.evaluate(scope) for key, size in entry.arguments.items()}
            made = Exl2Linear(
                name.removesuffix(_WEIGHT),
                whole,
                matrix.name,
                entry.transform,
                MappingProxyType(arguments),
                name,
                place=place,
            )
        elif self.name in _FUSED and entry.transform == "copy":
            own = f"{name.removesuffix(_WEIGHT).rpartition('.')[0]}.{_part_name(name, place)}"
            made = Exl2Linear(own, _rows(whole, own, matrix), matrix.name, stored=name, first=matrix.first, place=place)
        else:
            raise self._refusal(matrix.name)
        if found.bias is not None and made.outputs % PADDING:
            raise ModelError(
                f"has a bias and {made.outputs} outputs, no multiple of {PADDING}", path=self._path, tensor=matrix.name
            )
        if found.bias is not None and made.first + made.outputs < whole.row_count:
            raise self._refusal(matrix.name)  # the bias would have to be cut as well
        return made

    def expert(self, found: Linear, number: int, place: int, entering: tuple[str, int | None]) -> Exl2Linear:
        """Return a projection of one expert of a stack."""
        entry, name = self._entry(found, number)
        matrix = found.matrix
        if not entry.per_expert or found.bias is not None:
            raise self._refusal(matrix.name)
        return Exl2Linear(
            name.removesuffix(_WEIGHT),
            self._prepared.tensors[name],
            matrix.name,
            stored=name,
            first=matrix.first,
            place=place,
            input=entering,
        )

    def _entry(self, found: Linear, expert: int | None) -> tuple[TensorMap, str]:
        if found.matrix.name not in self._entries:
            raise self._refusal(found.matrix.name)
        entry, layer = self._entries[found.matrix.name]
        if entry.per_expert is (expert is None):
            raise self._refusal(found.matrix.name)
        return entry, self.stored_name(fill_name(entry.hf[0], layer, expert))

    def _refusal(self, canonical: str) -> ModelError:
        return ModelError(
            "is no projection of its own in the checkpoint", path=self._path, tensor=canonical, remedy=_REMEDY
        )


def _part_name(fused: str, place: int) -> str:
    """Return the name of a part of a fused projection, by its column in the table."""
    names = ("q_proj", "k_proj", "v_proj") if "qkv" in fused else ("gate_proj", "up_proj")
    return names[place]


def _rows(whole: Tensor, name: str, matrix: Matrix) -> Tensor:
    first = matrix.first
    return replace(
        whole,
        name=f"{name}{_WEIGHT}",
        shape=(matrix.rows, whole.columns),
        read=lambda start, stop: whole.read(first + start, first + stop),
    )


def _tied_head(prepared: Model, stored_name: Callable[[str], str]) -> Exl2Linear:
    """Return the embedding as the output that ExLlamaV2 wants beside it."""
    return Exl2Linear(_HEAD, prepared.tensors[stored_name("model.embed_tokens.weight")], _EMBEDDING)
