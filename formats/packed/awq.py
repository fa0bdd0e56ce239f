"""AWQ folders, as AutoAWQ writes them: a module's ``.qweight``, ``.qzeros`` and ``.scales``, 4 bits per weight.

With K inputs, N outputs and G groups of ``group_size`` consecutive inputs, the version "gemm" has::

    .qweight  I32 (K, N / 8)   codes q of 8 outputs per word: bits 4 * i hold output (0, 2, 4, 6, 1, 3, 5, 7)[i]
    .qzeros   I32 (G, N / 8)   zero points z, in the same order
    .scales   F16 (G, N)

and the version "gemv", with W words of 8 groups each, of which those beyond G do not count::

    .qweight  I32 (N, K / 8)   8 inputs per word, the first in the lowest bits
    .qzeros   I32 (N, W)       8 groups per word
    .scales   F16 (N, 8 * W)

    weight[n, k] = (q[n, k] - z[n, g]) * scales[n, g]        g = k // group_size

Weights are computed in float32, in which they are exact; runtimes that multiply in float16 round them. Where a model divides the output of an
activation by ``….act.scales``, the division is done to the inputs of the layer that follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import FormatError, ModelError, ShapeError
from ...quantizers.base import Encoding
from ..base import Tensor
from ..metadata import Scalar
from ..stored import CheckpointTensor, StoredTensor
from .access import as_float32, column_slab, expect, row_slab, whole
from .affine import dequantize
from .awq_fast import BLOCK, OUTPUTS, FastModule
from .base import Packing, Unpacked, group_size_setting, method, modules_with, quantization, setting
from .bits import unpack_stream
from .replace import module_weights, number_range, replace_packed

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PACKING"]

_FLOATS = ("F16", "BF16", "F32")
_PER_WORD = 8
_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)  # place of each of 8 outputs in a word of the version "gemm"
_VERSIONS = ("gemm", "gemv", "gemv_fast")
_ACTIVATION = ".act.scales"
_AFTER_ACTIVATION = ("down_proj", "c_proj", "dense_4h_to_h", "fc_out")  # layers that take an activation's output
_REMEDY = "Restore quantization_config, or download the file again."


@dataclass(frozen=True, slots=True)
class _Module:
    """The packed tensors of one linear layer, their shapes checked."""

    qweight: StoredTensor
    qzeros: StoredTensor
    scales: StoredTensor
    inputs: int
    outputs: int
    groups: int
    group_size: int
    version: str

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the bytes of float32 (stop - start, inputs)."""
        codes, zeros, scales = (self._gemv if self.version == "gemv" else self._gemm)(start, stop)
        weights = dequantize(codes, zeros, scales, self.group_size, (stop - start, self.inputs))
        return weights.view(np.uint8)

    def _gemm(
        self, start: int, stop: int
    ) -> tuple[Callable[[int, int], NDArray[np.uint8]], NDArray[np.uint8], NDArray[np.float32]]:
        """Return a reader of codes, zero points and scales (stop - start, groups)."""
        first = start // _PER_WORD
        last = -(-stop // _PER_WORD)
        packed = column_slab(self.qweight, first, last)
        skip = start - first * _PER_WORD

        def codes(begin: int, end: int) -> NDArray[np.uint8]:
            word = (begin + skip) // _PER_WORD
            found = _unpack_gemm(packed[word : -(-(end + skip) // _PER_WORD)])
            offset = begin + skip - word * _PER_WORD
            return found[offset : offset + end - begin]

        zeros = _unpack_gemm(column_slab(self.qzeros, first, last))[skip : skip + stop - start]
        return codes, zeros, as_float32(column_slab(self.scales, start, stop), self.scales.dtype)

    def _gemv(
        self, start: int, stop: int
    ) -> tuple[Callable[[int, int], NDArray[np.uint8]], NDArray[np.uint8], NDArray[np.float32]]:
        """Return a reader of codes, zero points and scales (stop - start, groups)."""
        packed = row_slab(self.qweight, start, stop).view(np.uint8)
        zeros = unpack_stream(row_slab(self.qzeros, start, stop).view(np.uint8), 4, self.groups)
        scales = as_float32(row_slab(self.scales, start, stop)[:, : self.groups], self.scales.dtype)
        return lambda begin, end: unpack_stream(packed[begin:end], 4, self.inputs), zeros, scales


def _unpack_gemm(words: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Return uint8 (8 * words, n), a row per output, for 32-bit (words, n)."""
    count, width = words.shape
    data = words.view(np.uint8).reshape(count, width, 4)
    out = np.empty((count, _PER_WORD, width), np.uint8)
    for output, nibble in enumerate(_NIBBLES):
        byte = data[:, :, nibble // 2]
        out[:, output] = byte >> 4 if nibble % 2 else byte & 15
    return out.reshape(count * _PER_WORD, width)


def _recognises(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> bool:
    if method(config) not in (None, "awq"):
        return False
    name = next((name for name in tensors if name.endswith(".qweight")), None)
    return name is not None and (method(config) == "awq" or f"{name.removesuffix('.qweight')}.scales" in tensors)


def _unpack(
    tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], encodings: Mapping[str, Encoding]
) -> Unpacked:
    version = _version(config)
    setting(config, "bits", "w_bit", allowed=(4,))
    size = group_size_setting(config, "group_size", "q_group_size")
    packed = modules_with(tensors, (".qweight", ".qzeros", ".scales"))
    modules = {name: _module(parts, size, version) for name, parts in packed.items()}
    kept, spare = replace_packed(tensors, packed, module_weights(modules, packed, ".qweight", encodings["F32"]))
    sizes = number_range(module.group_size for module in modules.values())
    versions = ", ".join(sorted({module.version for module in modules.values()}))
    facts: dict[str, Scalar] = {"bits": 4, "group_size": sizes, "layout": versions}
    return Unpacked(_without_activation_scales(kept), f"4 bits, groups of {sizes}", facts, spare=spare)


def _version(config: Mapping[str, Any]) -> str | None:
    """Return the version that the settings name, if any; raises FormatError for one that is not read."""
    found = quantization(config)
    key = next((key for key in ("version", "format") if found.get(key) is not None), None)
    if key is None:
        return None
    version = str(found[key]).lower()
    if version not in _VERSIONS:
        raise FormatError(
            f"quantization_config has {key}: {version[:40]!r}, and qconv reads {', '.join(_VERSIONS)}",
            remedy="Use the model's original, or its quantization in the version gemm.",
        )
    return version


def _module(parts: Mapping[str, StoredTensor], group_size: int | None, version: str | None) -> _Module | FastModule:
    """Return a module whose tensors fit one another; raises FormatError or ShapeError, naming the one that does not."""
    qweight, qzeros, scales = parts[".qweight"], parts[".qzeros"], parts[".scales"]
    if version == "gemv_fast" or (version is None and qweight.dtype == "I16"):
        return _fast_module(qweight, qzeros, scales, group_size)
    height, width = expect(qweight, ("I32",), (None, None))
    rows, columns = expect(scales, _FLOATS, (None, None))
    if version == "gemv" or (version is None and rows == height and columns != width * _PER_WORD):
        return _gemv_module(qweight, qzeros, scales, group_size)
    expect(scales, _FLOATS, (rows, width * _PER_WORD), f"the outputs of {qweight.name}")
    expect(qzeros, ("I32",), (rows, width), f"{qweight.name} and {scales.name}")
    size = height if group_size == -1 else group_size
    if size is None and height % rows == 0:
        size = height // rows
    if size is None or -(-height // size) != rows:
        raise _wrong_groups(scales, rows, height, group_size)
    return _Module(qweight, qzeros, scales, height, width * _PER_WORD, rows, size, "gemm")


def _gemv_module(qweight: StoredTensor, qzeros: StoredTensor, scales: StoredTensor, group_size: int | None) -> _Module:
    outputs, words = qweight.shape
    inputs = words * _PER_WORD
    _, zero_words = expect(qzeros, ("I32",), (outputs, None), f"the outputs of {qweight.name}")
    expect(scales, _FLOATS, (outputs, zero_words * _PER_WORD), f"{qweight.name} and {qzeros.name}")
    size = inputs if group_size == -1 else group_size
    groups = -(-inputs // size) if size else 0
    if size is None or not groups <= zero_words * _PER_WORD:
        raise _wrong_groups(scales, zero_words * _PER_WORD, inputs, group_size)
    return _Module(qweight, qzeros, scales, inputs, outputs, groups, size, "gemv")


def _fast_module(
    qweight: StoredTensor, qzeros: StoredTensor, scales: StoredTensor, group_size: int | None
) -> FastModule:
    height, inputs = expect(qweight, ("I16",), (None, None))
    if inputs % BLOCK:
        expect(qweight, ("I16",), (height, -(-inputs // BLOCK) * BLOCK), f"inputs in blocks of {BLOCK}")
    outputs = height * OUTPUTS
    rows, _ = expect(scales, _FLOATS, (None, outputs), f"the outputs of {qweight.name}")
    expect(qzeros, _FLOATS, (rows, outputs), f"{scales.name}")
    size = inputs if group_size == -1 else group_size
    if size is None or inputs % size or inputs // size > rows:
        raise _wrong_groups(scales, rows, inputs, group_size)
    return FastModule(qweight, qzeros, scales, inputs, outputs, inputs // size, size)


def _wrong_groups(scales: StoredTensor, groups: int, inputs: int, group_size: int | None) -> ShapeError:
    said = "nothing" if group_size is None else str(group_size)
    return ShapeError(
        f"has {groups} groups for {inputs} inputs, and group_size in quantization_config is {said}",
        path=scales.file.path,
        tensor=scales.name,
        remedy=_REMEDY,
    )


def _without_activation_scales(tensors: Mapping[str, CheckpointTensor]) -> dict[str, CheckpointTensor]:
    """Return the tensors with the scales of activations divided out of the layers that follow them; raises ModelError where none does."""
    found = dict(tensors)
    for name in [name for name in tensors if name.endswith(_ACTIVATION)]:
        parent = name.removesuffix(_ACTIVATION)
        layer = next(
            (found[f"{parent}.{after}.weight"] for after in _AFTER_ACTIVATION if f"{parent}.{after}.weight" in found),
            None,
        )
        scales = found.pop(name)
        if not isinstance(layer, Tensor) or not isinstance(scales, StoredTensor):
            raise ModelError(
                "scales an activation, and none of the layers after it is a packed one",
                tensor=name,
                remedy="Convert the original BF16 or F16 model.",
            )
        expect(scales, _FLOATS, (layer.columns,), f"the inputs of {layer.name}")
        found[layer.name] = _divided(layer, scales)
    return found


def _divided(layer: Tensor, scales: StoredTensor) -> Tensor:
    def read(start: int, stop: int) -> NDArray[np.uint8]:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            weights = layer.rows(start, stop) / as_float32(whole(scales), scales.dtype)
        return weights.view(np.uint8)

    return replace(layer, read=read)


PACKING = Packing(
    name="awq",
    label="AWQ",
    description="versions gemm, gemv and gemv_fast at 4 bits, with zero points",
    methods=("awq",),
    recognises=_recognises,
    unpack=_unpack,
)
