"""Where two conversions of a model part: block by block on the same input, then tensor by tensor within the block.

Errors of a whole pass grow from block to block, so the first block to look bad need not be the first that is. Here the result's block gets what the
source's got; what differs behind it is its own doing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from ...formats.base import Tensor
from ...quantizers.catalog import BUILT_IN
from ..building.layers import Block
from ..building.network import Network, refuse_bound_blocks
from ..forward import forward
from ..weights import Linear, Matrix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["LayerDifference", "StepDifference", "compare_layers", "compare_steps"]

_F32: Final = next(encoding for encoding in BUILT_IN if encoding.name == "F32")
_INPUT = "residual stream"


@dataclass(frozen=True, slots=True)
class LayerDifference:
    """How one block of the result differs from the source's.

    Attributes:
        layer: number of the block.
        error: root mean square of the difference of what the two blocks add to the same input, relative to what the source's adds.
        drift: the same of the residual streams behind the block, each model having run on its own from the tokens on.
    """

    layer: int
    error: float
    drift: float


@dataclass(frozen=True, slots=True)
class StepDifference:
    """How a tensor's product differs within a block, both blocks having the same input: relative root mean square."""

    tensor: str
    error: float


def compare_layers(source: Network, result: Network, tokens: Sequence[int]) -> tuple[float, list[LayerDifference]]:
    """Run ``tokens`` through both models; return the relative difference of their embeddings, and one of each block, in order.

    The models must have the same number of blocks and the same width. Memory: the residual stream behind every block of the source.
    """
    refuse_bound_blocks(source, "compared block by block")
    states: list[Floats] = []
    drifts: list[float] = []
    _walk(source, tokens, lambda values: states.append(values.copy()))
    _walk(result, tokens, lambda values: drifts.append(_relative(values, states[len(drifts)])))
    found = []
    for block in result.blocks:
        before, after = states[block.index], states[block.index + 1]
        alone = _run_block(result, block, before)[f"blk.{block.index}"]
        error = _relative(alone - before, after - before)
        found.append(LayerDifference(block.index, error, drifts[block.index + 1]))
    return drifts[0], found


def compare_steps(source: Network, result: Network, tokens: Sequence[int], layer: int) -> list[StepDifference]:
    """Return how the results of a block's tensors differ, in the order of the pass, where both blocks get the source's input."""
    refuse_bound_blocks(source, "compared block by block")
    states: list[Floats] = []
    _walk(replace(source, blocks=source.blocks[:layer]), tokens, lambda values: states.append(values.copy()))
    one, other = (_run_block(network, network.blocks[layer], states[layer]) for network in (source, result))
    return [StepDifference(name, _relative(other[name], one[name])) for name in one if name in other and name != _INPUT]


def _walk(network: Network, tokens: Sequence[int], visit: Callable[[Floats], None]) -> None:
    """Call ``visit`` with the embeddings and with the residual stream behind every block, float32 (tokens, hidden) each."""
    wanted = {network.embedding.name, *(f"blk.{block.index}" for block in network.blocks)}

    def pick(name: str, first: int, values: Floats) -> None:
        if name in wanted:
            visit(values)

    for _ in forward(network, [tokens], wanted=slice(0), trace=pick):
        pass


def _run_block(network: Network, block: Block, hidden: Floats) -> dict[str, Floats]:
    """Return what a block makes of a residual stream (tokens, hidden): the result of each of its tensors by name, and ``blk.N``.

    It is the forward pass of a model with this one block, whose vocabulary is the rows of the stream, one token each.
    """
    rows = Tensor(
        _INPUT, hidden.shape, _F32, lambda start, stop: np.ascontiguousarray(hidden[start:stop]).view(np.uint8)
    )
    configuration = replace(network.configuration, embedding_scale=1.0)
    alone = replace(
        network,
        configuration=configuration,
        embedding=rows,
        positions=None,
        blocks=(block,),
        output=Linear(Matrix(rows, 0, len(hidden))),
    )
    pieces: dict[str, list[tuple[int, Floats]]] = {}

    def keep(name: str, first: int, values: Floats) -> None:
        pieces.setdefault(name, []).append((first, values.copy()))

    for _ in forward(alone, [range(len(hidden))], wanted=slice(0), trace=keep):
        pass
    return {
        name: np.concatenate([values for _, values in sorted(parts, key=lambda it: it[0])], axis=1)
        for name, parts in pieces.items()
    }


def _relative(values: Floats, reference: Floats) -> float:
    """Return the root mean square of the difference over that of the reference."""
    size = float(np.linalg.norm(reference.astype(np.float64)))
    error = float(np.linalg.norm(values.astype(np.float64) - reference))
    return error / size if size else error
