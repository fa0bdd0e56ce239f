"""Every tensor of a model in its place: names and shapes are checked before a weight is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingTensorError, ShapeError, UnmappedTensorError
from ..formats.architectures import Architecture
from ..formats.base import Model, Tensor
from .configuration import Configuration, read_configuration
from .weights import Linear, Matrix, Vector

__all__ = ["Attention", "Block", "Dense", "Experts", "Network", "Norm", "load_network"]


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm's weights, and its bias where it has one."""

    weight: Vector
    bias: Vector | None = None


@dataclass(frozen=True, slots=True)
class Attention:
    """Projections of a block's attention; ``after`` normalises its result, the other norms the heads of queries and keys."""

    norm: Norm
    query: Linear
    key: Linear
    value: Linear
    output: Linear
    query_norm: Norm | None
    key_norm: Norm | None
    after: Norm | None


@dataclass(frozen=True, slots=True)
class Dense:
    """A feed-forward: ``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))`` where there is no gate."""

    gate: Linear | None
    up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture: the router, and one gated feed-forward per expert."""

    router: Linear
    experts: tuple[Dense, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """One layer. ``index`` counts from 0; ``after`` normalises the feed-forward's result."""

    index: int
    attention: Attention
    feed_forward_norm: Norm
    feed_forward: Dense | Experts
    after: Norm | None


@dataclass(frozen=True)
class Network:
    """A model ready for a forward pass. No weight has been read, except tables of rotary factors.

    Attributes:
        path: the model's, for messages.
        configuration: sizes and constants.
        embedding: (vocabulary, hidden).
        positions: learned positions (context, hidden), or None.
        blocks: the layers.
        output_norm: before the output.
        output: (vocabulary, hidden); the embedding where they are tied.
        rope_divisors: float32 (rotated / 2,), what each pair's frequency is divided by (llama3), or None.
        long_divisors: the same for sequences beyond the original context (longrope), or None.
        short_divisors: the same for others.
    """

    path: Path
    configuration: Configuration
    embedding: Tensor
    positions: Tensor | None
    blocks: tuple[Block, ...]
    output_norm: Norm
    output: Linear
    rope_divisors: NDArray[np.float32] | None = None
    long_divisors: NDArray[np.float32] | None = None
    short_divisors: NDArray[np.float32] | None = None

    @property
    def vocabulary(self) -> int:
        """Number of tokens that have an embedding and a logit."""
        return self.output.matrix.rows


def load_network(model: Model, architectures: Iterable[Architecture] | None = None) -> Network:
    """Return the network of ``model``; ``architectures`` are the families to choose from, the built-in ones where None.

    Raises MissingTensorError, ShapeError or UnmappedTensorError (a tensor that the pass would ignore) with the name, and what
    :func:`~.configuration.read_configuration` raises.
    """
    configuration = read_configuration(model, architectures)
    place = _Place(model, configuration)
    rotated = 0 if configuration.rope is None else configuration.rope.dimensions // 2
    embedding = place.tensor("token_embd.weight", (None, configuration.hidden))
    vocabulary = embedding.shape[0]
    learned = configuration.facts.positions == "learned"
    tied = "output.weight" not in model.tensors
    network = Network(
        path=model.path,
        configuration=configuration,
        embedding=embedding,
        positions=place.tensor("position_embd.weight", (None, configuration.hidden)) if learned else None,
        blocks=tuple(_block(place, index) for index in range(configuration.layers)),
        output_norm=place.norm("output_norm", configuration.hidden),
        output=Linear(Matrix(embedding, 0, vocabulary))
        if tied
        else place.linear("output", vocabulary, configuration.hidden),
        rope_divisors=place.table("rope_freqs.weight", rotated),
        long_divisors=place.table("rope_factors_long.weight", rotated),
        short_divisors=place.table("rope_factors_short.weight", rotated),
    )
    place.refuse_rest()
    return network


@dataclass
class _Place:
    """Looks tensors up by name and remembers which were used."""

    model: Model
    configuration: Configuration
    used: set[str] = field(default_factory=set)

    def tensor(self, name: str, shape: tuple[int | None, ...]) -> Tensor:
        """Return a tensor whose shape is ``shape``, None standing for any size from 1."""
        tensor = self.model.tensors.get(name)
        if tensor is None:
            raise MissingTensorError(
                f"the architecture {self.configuration.architecture} needs this tensor, which the file lacks",
                path=self.model.path,
                tensor=name,
            )
        found = tensor.shape
        if len(found) != len(shape) or any(
            size < 1 or wanted not in (None, size) for size, wanted in zip(found, shape, strict=True)
        ):
            wanted_text = ", ".join("any" if size is None else str(size) for size in shape)
            raise ShapeError(f"its shape is {found}, but ({wanted_text}) is needed", path=self.model.path, tensor=name)
        self.used.add(name)
        return tensor

    def vector(self, name: str, size: int) -> Vector | None:
        """Return a vector, or None where there is none."""
        return Vector(self.tensor(name, (size,)), 0, size) if name in self.model.tensors else None

    def linear(self, name: str, rows: int, columns: int | None) -> Linear:
        """Return a projection, its bias included where there is one; None: any number of columns."""
        matrix = Matrix(self.tensor(f"{name}.weight", (rows, columns)), 0, rows)
        return Linear(matrix, self.vector(f"{name}.bias", rows))

    def parts(self, name: str, sizes: tuple[int, ...], columns: int) -> list[Linear]:
        """Return a fused projection as one per part, each of so many rows."""
        whole = self.linear(name, sum(sizes), columns)
        found, first = [], 0
        for size in sizes:
            bias = None if whole.bias is None else Vector(whole.bias.tensor, first, size)
            found.append(Linear(whole.matrix.window(first, first + size), bias))
            first += size
        return found

    def norm(self, name: str, size: int) -> Norm:
        """Return the norm ``{name}.weight``."""
        weight = Vector(self.tensor(f"{name}.weight", (size,)), 0, size)
        return Norm(weight, self.vector(f"{name}.bias", size))

    def norm_if_there(self, name: str, size: int) -> Norm | None:
        """Return a norm, or None where there is none."""
        return self.norm(name, size) if f"{name}.weight" in self.model.tensors else None

    def table(self, name: str, size: int) -> NDArray[np.float32] | None:
        """Return a vector's values, or None where there is none."""
        if name not in self.model.tensors or not size:
            return None
        values: NDArray[np.float32] = self.tensor(name, (size,)).rows(0, 1)[0]
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise ShapeError("rotary factors must be positive numbers", path=self.model.path, tensor=name)
        return values

    def refuse_rest(self) -> None:
        """Raise UnmappedTensorError for tensors that nobody looked up."""
        rest = [name for name in self.model.tensors if name not in self.used]
        if rest:
            listed = ", ".join(rest[:8]) + (f" and {len(rest) - 8} more" if len(rest) > 8 else "")
            raise UnmappedTensorError(
                f"a forward pass of the architecture {self.configuration.architecture} has no use for {listed}",
                path=self.model.path,
                remedy="Its results would not be the model's; perhaps this is a variant of the architecture.",
            )


def _block(place: _Place, index: int) -> Block:
    configuration, name = place.configuration, f"blk.{index}."
    hidden = configuration.hidden
    return Block(
        index,
        _attention(place, name),
        place.norm(name + "ffn_norm", hidden),
        _experts(place, name) if configuration.facts.expert_gating is not None else _dense(place, name),
        place.norm_if_there(name + "post_ffw_norm", hidden),
    )


def _attention(place: _Place, name: str) -> Attention:
    configuration = place.configuration
    hidden, head = configuration.hidden, configuration.head_size
    sizes = (configuration.heads * head, configuration.kv_heads * head, configuration.kv_heads * head)
    if f"{name}attn_qkv.weight" in place.model.tensors:
        query, key, value = place.parts(name + "attn_qkv", sizes, hidden)
    else:
        query, key, value = (
            place.linear(name + kind, rows, hidden)
            for kind, rows in zip(("attn_q", "attn_k", "attn_v"), sizes, strict=True)
        )
    return Attention(
        norm=place.norm(name + "attn_norm", hidden),
        query=query,
        key=key,
        value=value,
        output=place.linear(name + "attn_output", hidden, sizes[0]),
        query_norm=place.norm_if_there(name + "attn_q_norm", head),
        key_norm=place.norm_if_there(name + "attn_k_norm", head),
        after=place.norm_if_there(name + "post_attention_norm", hidden),
    )


def _dense(place: _Place, name: str) -> Dense:
    hidden = place.configuration.hidden
    down = place.linear(name + "ffn_down", hidden, None)
    width = down.matrix.columns
    match place.configuration.facts.feed_forward:
        case "plain":
            return Dense(None, place.linear(name + "ffn_up", width, hidden), down)
        case "gated_fused":
            gate, up = place.parts(name + "ffn_up", (width, width), hidden)
            return Dense(gate, up, down)
        case _:
            return Dense(
                place.linear(name + "ffn_gate", width, hidden), place.linear(name + "ffn_up", width, hidden), down
            )


def _experts(place: _Place, name: str) -> Experts:
    hidden, count = place.configuration.hidden, place.configuration.experts
    down = place.tensor(name + "ffn_down_exps.weight", (count, hidden, None))
    width = down.columns
    gate, up = (place.tensor(f"{name}ffn_{kind}_exps.weight", (count, width, hidden)) for kind in ("gate", "up"))
    return Experts(
        place.linear(name + "ffn_gate_inp", count, hidden),
        tuple(
            Dense(
                Linear(Matrix(gate, expert * width, width)),
                Linear(Matrix(up, expert * width, width)),
                Linear(Matrix(down, expert * hidden, hidden)),
            )
            for expert in range(count)
        ),
    )
