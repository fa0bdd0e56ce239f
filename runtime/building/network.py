"""Every tensor of a model in its place: names and shapes are checked before a weight is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelError
from ...formats.architectures import Architecture
from ...formats.base import Model, Tensor
from ...formats.predictions import without_predictions
from ...formats.scales import fold_scales
from ..residual.alternating import Streams
from ..residual.layer_inputs import LayerEmbedding
from ..weights import Linear, Matrix
from .build import build_block
from .configuration import Configuration
from .layers import Block, Norm
from .place import Place
from .read_configuration import read_configuration

__all__ = ["Network", "has_bound_blocks", "load_network", "refuse_bound_blocks"]


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
        streams: how several residual streams begin and end, or None.
        notes: what the user should know: blocks that are left out, metadata that the pass does not understand.
        layer_embedding: where every block's own input of a token comes from, or None.
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
    layer_embedding: LayerEmbedding | None = None
    streams: Streams | None = None
    notes: tuple[str, ...] = ()

    @property
    def vocabulary(self) -> int:
        """Number of tokens that have an embedding and a logit."""
        return self.output.matrix.rows


def load_network(model: Model, architectures: Iterable[Architecture] | None = None) -> Network:
    """Return the network of ``model``; ``architectures`` are the families to choose from, the built-in ones where None.

    Raises MissingTensorError, ShapeError or UnmappedTensorError (a tensor that the pass would ignore) with the name, and what
    :func:`~.read_configuration.read_configuration` raises.
    """
    model, notes = without_predictions(model)
    model = replace(model, tensors=MappingProxyType(fold_scales(model.tensors)))
    configuration = read_configuration(model, architectures)
    place = Place(model, configuration)
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
        blocks=tuple(build_block(place, index) for index in range(configuration.layers)),
        output_norm=place.norm("output_norm", configuration.hidden),
        output=Linear(Matrix(embedding, 0, vocabulary))
        if tied
        else place.linear("output", vocabulary, configuration.hidden),
        rope_divisors=place.table("rope_freqs.weight", rotated),
        long_divisors=place.table("rope_factors_long.weight", rotated),
        short_divisors=place.table("rope_factors_short.weight", rotated),
        layer_embedding=_layer_embedding(place, vocabulary) if configuration.layer_input else None,
        streams=_streams(place) if configuration.streams > 1 and configuration.stream_mixing is None else None,
        notes=(*notes, *configuration.notes),
    )
    place.refuse_rest()
    return network


def has_bound_blocks(network: Network) -> bool:
    """Whether blocks read more than the residual stream before them: inputs of their own, or keys and values of another block."""
    return network.layer_embedding is not None or _lends_keys(network)


def _lends_keys(network: Network) -> bool:
    return any(map(network.configuration.lends_keys, range(network.configuration.layers)))


def refuse_bound_blocks(network: Network, what: str) -> None:
    """Raise ModelError, saying that the model cannot be ``what``, where :func:`has_bound_blocks`."""
    if not has_bound_blocks(network):
        return
    own = "every block has an input of its own for each token"
    reason = "blocks read keys and values of others" if _lends_keys(network) else own
    raise ModelError(
        f"a model of the architecture {network.configuration.architecture} whose {reason} cannot be {what}",
        path=network.path,
        remedy="Use what runs the model as a whole: an importance matrix (qconv imatrix), and a GGUF type.",
    )


def _streams(place: Place) -> Streams:
    configuration = place.configuration
    shape = (configuration.streams - 1, configuration.hidden, configuration.hidden)
    return Streams(place.stack("altup_proj", shape), place.stack("altup_unembd_proj", shape))


def _layer_embedding(place: Place, vocabulary: int) -> LayerEmbedding:
    configuration = place.configuration
    width = configuration.layers * configuration.layer_input
    return LayerEmbedding(
        place.tensor("per_layer_token_embd.weight", (vocabulary, width)),
        place.linear("per_layer_model_proj", width, configuration.hidden),
        place.norm("per_layer_proj_norm", configuration.layer_input),
    )
