"""Where AWQ's scales go: matrices that share an input are multiplied by them, and what gives the input is divided by them.

A *fold* is such a place. A norm can give way to all matrices that read it, routers included; values to the output of an attention, where every query head has
a value head of its own; ``up`` of a gated feed-forward to its ``down``. Elsewhere the input passes through what is not linear, or serves
others too, and nothing is scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from ...formats.architectures.lazy import F32, as_bytes
from ...formats.base import Tensor
from ...runtime.building.layers import Attention, DeltaNet, Dense, Experts, KimiDelta, LatentAttention, Mamba2, Norm
from ...runtime.building.network import Network
from ...runtime.weights import Linear, Matrix, Vector

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Fold", "find_folds", "scale_tensors"]

_LINEAR_IN_UP: Final = ("silu", "gelu", "gelu_tanh")  # activations of a gate beside which ``up`` is but a factor


@dataclass(frozen=True)
class Fold:
    """One place.

    Attributes:
        moment: the tensor and, of a stack, the expert whose input it is.
        readers: what is multiplied, along its inputs.
        packed: those of them that are packed.
        givers: what is divided: a norm's weight and bias, or the rows of a matrix and its bias.
    """

    moment: tuple[str, int]
    readers: tuple[Matrix, ...]
    packed: tuple[Matrix, ...]
    givers: tuple[Vector | Matrix, ...]


def find_folds(network: Network, packed: Collection[str], met: Callable[[str, int], bool]) -> tuple[Fold, ...]:
    """Return the folds of a network.

    Args:
        network: the model's.
        packed: canonical names of the tensors that are packed.
        met: whether the second moment of a tensor's input, and of an expert of a stack, is known.
    """
    found: list[Fold] = []

    def add(giver: Norm | Linear | None, readers: Sequence[Linear | None], moment: str, expert: int = 0) -> None:
        matrices = tuple(it.matrix for it in readers if it is not None)
        chosen = tuple(it for it in matrices if it.name in packed)
        givers = () if giver is None else _givers(giver)
        if givers and chosen and met(moment, expert):
            found.append(Fold((moment, expert), matrices, chosen, givers))

    parallel = network.configuration.parallel
    for block in network.blocks:
        attention = block.attention
        first = () if attention is None else _reading(attention)
        entering, moment = ((), "") if block.feed_forward is None else _entering(block.feed_forward)
        if attention is not None and parallel and block.feed_forward_norm == attention.norm:
            add(attention.norm, (*first, *entering), moment)
        else:
            if (
                attention is not None and block.alternating is None
            ):  # else what attention reads is added to the stream as well
                add(attention.norm, first, first[0].matrix.name)
            add(block.feed_forward_norm, entering, moment)
        if isinstance(attention, LatentAttention):
            if attention.query_down is not None:
                chooser = () if attention.indexer is None else (attention.indexer.query,)
                add(attention.query_down_norm, (attention.query, *chooser), attention.query.matrix.name)
        elif isinstance(attention, Attention) and attention.value is not None and _gives_way(network, attention):
            add(attention.value, (attention.output,), attention.output.matrix.name)
        if network.configuration.facts.activation in _LINEAR_IN_UP:
            for layer, expert in _feed_forwards(block.feed_forward):
                if layer.gate is not None:
                    add(layer.up, (layer.down,), layer.down.matrix.name, expert)
    return tuple(found)


def _givers(giver: Norm | Linear) -> tuple[Vector | Matrix, ...]:
    """Return the tensors to divide: none of a norm that has no weights."""
    first = giver.weight if isinstance(giver, Norm) else giver.matrix
    return tuple(it for it in (first, giver.bias) if it is not None)


def _reading(attention: Attention | LatentAttention | DeltaNet | KimiDelta | Mamba2) -> tuple[Linear, ...]:
    """Return the matrices that read an attention's input."""
    if isinstance(attention, LatentAttention | KimiDelta):
        return attention.entering
    if isinstance(attention, DeltaNet):
        return (attention.mixed, attention.gate, *attention.rates)
    if isinstance(attention, Mamba2):
        return (attention.entering,)
    return attention.projections


def _gives_way(network: Network, attention: Attention) -> bool:
    """Whether values can be divided: each of them serves one query head, and no norm follows."""
    value, normalised = attention.value, network.configuration.facts.normalised_values
    return value is not None and not normalised and value.matrix.rows == attention.output.matrix.columns


def _entering(layer: Dense | Experts) -> tuple[tuple[Linear, ...], str]:
    """Return the matrices that read a feed-forward's input, and the name of one that meets every token.

    Experts beside a dense feed-forward have another input, which no matrix meets for every token.
    """
    if isinstance(layer, Experts) and layer.beside is not None:
        assert layer.shared is not None
        own = tuple(it for it in (layer.shared.gate, layer.shared.up) if it is not None)
        return own, own[0].matrix.name
    always = [layer.router, layer.shared_gate] if isinstance(layer, Experts) else []
    readers = [it for it, _ in _feed_forwards(layer)]
    if isinstance(layer, Experts) and layer.enter is not None:  # experts read what it makes of the stream
        always, readers = [*always, layer.enter], [] if layer.shared is None else [layer.shared]
    inner = [linear for it in readers for linear in (it.gate, it.up)]
    found = tuple(it for it in (*always, *inner) if it is not None)
    return found, found[0].matrix.name


def _feed_forwards(layer: Dense | Experts | None) -> list[tuple[Dense, int]]:
    """Return the feed-forwards of a block, with the numbers of experts."""
    if layer is None:
        return []
    if isinstance(layer, Dense):
        return [(layer, 0)]
    shared = [] if layer.shared is None else [(layer.shared, 0)]
    return [(expert, number) for number, expert in enumerate(layer.experts)] + shared


@dataclass(frozen=True, slots=True)
class _Part:
    """Some rows of a tensor that are scaled: along them, or each by a number of its own; of a vector, some elements of row ``first``."""

    first: int
    rows: int
    fold: int
    along: bool
    elements: slice | None = None


def scale_tensors(
    tensors: Mapping[str, Tensor], folds: Sequence[Fold], scales: Callable[[int], Floats]
) -> dict[str, Tensor]:
    """Return a model's tensors with the scales of folds in them, in F32 where anything changes; ``scales(number)`` is asked for when rows are read."""
    parts: dict[str, list[_Part]] = {}
    for number, fold in enumerate(folds):
        for matrix in fold.readers:
            parts.setdefault(matrix.name, []).append(_Part(matrix.first, matrix.rows, number, True))
        for giver in fold.givers:
            if isinstance(giver, Matrix):
                part = _Part(giver.first, giver.rows, number, False)
            else:
                part = _Part(giver.row, 1, number, False, slice(giver.first, giver.first + giver.size))
            parts.setdefault(giver.tensor.name, []).append(part)
    return {name: _scaled(it, parts[name], scales) if name in parts else it for name, it in tensors.items()}


def _scaled(tensor: Tensor, parts: Sequence[_Part], scales: Callable[[int], Floats]) -> Tensor:
    def read(start: int, stop: int) -> NDArray[np.uint8]:
        rows = tensor.rows(start, stop).astype(np.float32)
        for part in parts:
            first, last = max(start, part.first), min(stop, part.first + part.rows)
            if first >= last:
                continue
            chosen = rows[first - start : last - start]
            factors = scales(part.fold)
            if part.along:
                chosen *= factors
            elif part.elements is not None:
                chosen[:, part.elements] /= factors
            else:
                chosen /= factors[first - part.first : last - part.first, None]
        return as_bytes(rows)

    return replace(tensor, encoding=F32, read=read)
