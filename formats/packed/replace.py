"""What most packings do last: put weights in the place of packed tensors, and set aside what a quantizer added."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from ...errors import FormatError
from ..base import Tensor
from ..stored import CheckpointTensor, StoredTensor
from .access import whole

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ...quantizers.base import Encoding

__all__ = ["module_weights", "number_range", "replace_packed", "replace_tensors"]

_BIAS_MAX = 1 << 24  # elements; a larger one is no bias


class QuantizedModule(Protocol):
    """A linear layer: its sizes, and how rows of its weights are read as bytes of an encoding."""

    @property
    def outputs(self) -> int: ...
    @property
    def inputs(self) -> int: ...
    def read(self, start: int, stop: int) -> NDArray[np.uint8]: ...


def module_weights(
    modules: Mapping[str, QuantizedModule],
    packed: Mapping[str, Mapping[str, StoredTensor]],
    codes: str,
    encoding: Encoding,
) -> dict[str, Tensor]:
    """Return the weights of ``modules``, (outputs, inputs), by name; ``codes`` is the suffix of the packed tensor that has most of each."""
    weights = {}
    for name, module in modules.items():
        stored, weight = packed[name][codes], f"{name}.weight"
        origin = f"{stored.file.path.name}: {stored.name}"
        weights[weight] = Tensor(weight, (module.outputs, module.inputs), encoding, module.read, origin)
    return weights


def replace_packed(
    tensors: Mapping[str, StoredTensor],
    packed: Mapping[str, Mapping[str, StoredTensor]],
    weights: Mapping[str, Tensor],
) -> tuple[dict[str, CheckpointTensor], dict[str, CheckpointTensor]]:
    """Return all tensors with ``weights`` instead of those of ``packed``, and apart from them the packed modules' biases that are all zero.

    Quantizers add such biases to layers that have none. Raises FormatError where a weight is there both packed and plain.
    """
    kept = replace_tensors(tensors, {module + suffix for module, parts in packed.items() for suffix in parts}, weights)
    spare: dict[str, CheckpointTensor] = {}
    for module in packed:
        bias = tensors.get(f"{module}.bias")
        if bias is not None and _is_zero(bias):
            spare[bias.name] = kept.pop(bias.name)
    return kept, spare


def replace_tensors(
    tensors: Mapping[str, StoredTensor], used: Collection[str], weights: Mapping[str, Tensor]
) -> dict[str, CheckpointTensor]:
    """Return all tensors but those called ``used``, and then ``weights``; raises FormatError where a weight is there both packed and plain."""
    kept: dict[str, CheckpointTensor] = {name: stored for name, stored in tensors.items() if name not in used}
    for name, tensor in weights.items():
        if name in kept:
            raise FormatError(
                f"is there, and packed as well ({tensor.origin})",
                path=tensors[name].file.path,
                tensor=name,
                remedy="Remove the file that does not belong to this model.",
            )
        kept[name] = tensor
    return kept


def _is_zero(bias: StoredTensor) -> bool:
    if bias.dtype not in ("F16", "BF16", "F32") or len(bias.shape) != 1 or bias.shape[0] > _BIAS_MAX:
        return False
    values: NDArray[np.generic] = whole(bias)
    return not values.any()


def number_range(values: Iterable[int]) -> int | str:
    """Return the one number that there is, or ``2 to 6``.

    >>> number_range([4, 4]), number_range([6, 2, 4])
    (4, '2 to 6')
    """
    found = sorted(set(values))
    return found[0] if len(found) == 1 else f"{found[0]} to {found[-1]}"
