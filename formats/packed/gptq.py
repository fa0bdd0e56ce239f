"""GPTQ folders, as AutoGPTQ and GPTQModel write them: a module's ``.qweight``, ``.qzeros``, ``.scales`` and ``.g_idx``.

With K inputs, N outputs, G groups of inputs and b bits per weight, both packed tensors being streams of b-bit fields in 32-bit words,
least significant first::

    .qweight  I32            (K * b / 32, N)    codes q, down each column
    .qzeros   I32            (G, N * b / 32)    zero points z, along each row; the format "gptq" holds z - 1, "gptq_v2" holds z
    .scales   F16, BF16, F32 (G, N)
    .g_idx    I32            (K,)               group of each input; absent or all zero: input k is in group k // group_size

    weight[n, k] = scales[g, n] * (q[k, n] - z[g, n])        g = g_idx[k]

Where the settings say that the model is symmetric, all zero points are 2^(b - 1), which tells the two formats apart whatever they are called.
Weights are computed in float32, in which they are exact; runtimes that multiply in float16 round them. The planar form "gptq_p" splits the bits
of 3-, 5-, 6- and 7-bit codes into planes of 4, 2 and 1 bits, and holds z; 5, 6 and 7 bits have no other form, whatever the settings say. Words may
also have 8, 16 or 64 bits (``pack_dtype``), in which codes of 2, 4 and 8 bits lie just as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import FormatError, ShapeError
from ...quantizers.base import Encoding
from ..metadata import Scalar
from ..stored import StoredTensor
from .access import as_float32, column_block, column_slab, expect, row_slab, whole
from .affine import dequantize
from .base import Packing, Unpacked, group_size_setting, method, modules_with, quantization, setting
from .bits import unpack_planes, unpack_stream
from .replace import module_weights, number_range, replace_packed

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PACKING"]

_WORDS: Mapping[str, int] = {"I32": 32, "I8": 8, "I16": 16, "I64": 64}  # bits by dtype
_USUAL_WORD = 32
_USUAL_GROUPS = tuple(1 << power for power in range(4, 11))  # sizes that quantizers offer
_FORMATS = ("gptq", "gptq_v2", "gptq_p")
_BITS = (2, 3, 4, 5, 6, 7, 8)
_ONLY_PLANAR = (5, 6, 7)
_OF_ANY_WORD = (2, 4, 8)


@dataclass(frozen=True, slots=True)
class _Settings:
    """What the configuration says of every module.

    Attributes:
        bits: per weight, where it is said.
        group_size: inputs per group, -1 for all, where it is said.
        layout: one of ``_FORMATS``.
        per_module: whether settings of single modules may differ.
    """

    bits: int | None
    group_size: int | None
    layout: str
    per_module: bool


@dataclass(frozen=True, slots=True)
class _Module:
    """The packed tensors of one linear layer, their shapes checked."""

    qweight: StoredTensor
    qzeros: StoredTensor
    scales: StoredTensor
    g_idx: StoredTensor | None
    inputs: int
    outputs: int
    groups: int
    bits: int
    group_size: int
    planar: bool
    stored_less_one: bool

    @property
    def word(self) -> int:
        """Bits of a word."""
        return _WORDS[self.qzeros.dtype]

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the bytes of float32 (stop - start, inputs)."""
        packed = column_slab(self.qweight, start, stop).view(np.uint8)
        scales = as_float32(column_slab(self.scales, start, stop), self.scales.dtype)
        weights = dequantize(
            lambda first, last: self._unpack(packed[first:last], self.inputs),
            self._zeros(start, stop),
            scales,
            self._group_of_each_input(),
            (stop - start, self.inputs),
        )
        return weights.view(np.uint8)

    def _unpack(self, packed: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
        unpack = unpack_planes if self.planar else unpack_stream
        return unpack(packed, self.bits, count)

    def _zeros(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return zero points, uint8 (stop - start, groups)."""
        word = self.word  # as many fields are whole words
        first, last = start // word * word, min(self.outputs, -(-stop // word) * word)
        words = column_block(self.qzeros, first * self.bits // word, last * self.bits // word)
        zeros = self._unpack(words.view(np.uint8), last - first)[:, start - first : stop - first].T
        if self.stored_less_one:
            # in each field by itself: an all-ones field is a zero point of 0, and must not carry into its neighbour
            zeros = (zeros + np.uint8(1)) & np.uint8((1 << self.bits) - 1)
        return np.ascontiguousarray(zeros)

    def _group_of_each_input(self) -> NDArray[np.intp] | int:
        if self.g_idx is None:
            return self.group_size
        found = whole(self.g_idx).astype(np.int64)
        if not found.any() and self.groups > 1:
            return self.group_size
        if (wrong := np.flatnonzero((found < 0) | (found >= self.groups))).size:
            at = int(wrong[0])
            raise FormatError(
                f"puts input {at} into group {found[at]}, and {self.scales.name} has {self.groups} groups",
                path=self.g_idx.file.path,
                tensor=self.g_idx.name,
                remedy="The file is damaged; download it again.",
            )
        regular = np.arange(self.inputs) // self.group_size
        return self.group_size if np.array_equal(found, regular) else found.astype(np.intp)


def _recognises(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> bool:
    name = next((name for name in tensors if name.endswith((".qweight", ".B"))), None)
    if name is None or method(config) not in (None, "gptq"):
        return False
    if method(config) == "gptq":
        return True
    module, _, suffix = name.rpartition(".")
    scales = tensors.get(f"{module}.scales")
    return suffix == "qweight" and (
        f"{module}.g_idx" in tensors or (scales is not None and scales.shape[1:] == tensors[name].shape[1:])
    )


def _unpack(
    tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], encodings: Mapping[str, Encoding]
) -> Unpacked:
    packed = modules_with(tensors, (".qweight", ".qzeros", ".scales"), (".g_idx",))
    settings, notes = _settings(config, packed)
    modules = {name: _module(parts, settings) for name, parts in packed.items()}
    kept, spare = replace_packed(tensors, packed, module_weights(modules, packed, ".qweight", encodings["F32"]))
    bits = number_range(module.bits for module in modules.values())
    sizes = {module.group_size for module in modules.values() if module.groups > 1}
    facts: dict[str, Scalar] = {"bits": bits, "group_size": number_range(sizes or {-1}), "layout": settings.layout}
    groups = f"groups of {facts['group_size']}" if sizes else "one group per row"
    return Unpacked(kept, f"{bits} bits, {groups}", facts, notes, spare)


def _settings(
    config: Mapping[str, Any], packed: Mapping[str, Mapping[str, StoredTensor]]
) -> tuple[_Settings, tuple[str, ...]]:
    """Return the settings and what the user should know of them; raises FormatError, naming the key."""
    found = quantization(config)
    layout = found.get("checkpoint_format") or found.get("format") or "gptq"
    if found.get("is_marlin_format") is True or not packed:
        layout = "marlin"
    if layout not in _FORMATS:
        raise FormatError(
            f"quantization_config has checkpoint_format: {str(layout)[:40]!r}, and qconv reads {', '.join(_FORMATS)}",
            remedy="Use the model in its form before that conversion.",
        )
    bits = setting(config, "bits", "w_bit", allowed=_BITS)
    group_size = group_size_setting(config, "group_size", "q_group_size")
    settings = _Settings(bits, group_size, layout, bool(found.get("dynamic")))
    first = next(iter(packed.values()))
    held = _symmetric_layout(first[".qzeros"], bits) if found.get("sym") is True and layout != "gptq_p" else layout
    if held in (None, layout):
        return settings, ()
    note = f"its zero points are those of the format {held}, so it is read as that, not as {layout} as the settings say"
    return replace(settings, layout=held), (note,)


def _symmetric_layout(qzeros: StoredTensor, bits: int | None) -> str | None:
    """Return the format whose zero points these are, given that all of them stand for the middle code; None where they are of neither."""
    if (
        bits is None
        or bits in _ONLY_PLANAR
        or qzeros.dtype not in _WORDS
        or len(qzeros.shape) != 2
        or not all(qzeros.shape)
    ):
        return None
    row = row_slab(qzeros, 0, 1).view(np.uint8)
    stored = unpack_stream(row, bits, row.size * 8 // bits)
    middle = 1 << (bits - 1)
    return {middle - 1: "gptq", middle: "gptq_v2"}.get(int(stored[0, 0])) if (stored == stored[0, 0]).all() else None


def _module(parts: Mapping[str, StoredTensor], settings: _Settings) -> _Module:
    """Return a module whose tensors fit one another; raises FormatError or ShapeError, naming the one that does not."""
    qweight, qzeros, scales, g_idx = (parts.get(key) for key in (".qweight", ".qzeros", ".scales", ".g_idx"))
    assert qweight is not None and qzeros is not None and scales is not None  # modules_with has seen to it
    words, outputs = expect(qweight, tuple(_WORDS), (None, None))
    groups, _ = expect(scales, ("F16", "BF16", "F32"), (None, outputs), f"the outputs of {qweight.name}")
    _, zero_words = expect(qzeros, (qweight.dtype,), (groups, None), f"the groups of {scales.name}")
    bits = _bits(qzeros, zero_words, outputs, settings)
    planar = settings.layout == "gptq_p" or bits in _ONLY_PLANAR
    inputs, rest = divmod(words * _WORDS[qweight.dtype], bits)
    if rest or (planar and (words % bits or zero_words % bits) and bits not in _OF_ANY_WORD):
        raise ShapeError(
            f"has {words} rows, which are no whole number of {bits}-bit weights",
            path=qweight.file.path,
            tensor=qweight.name,
            remedy="The file is damaged, or quantization_config is of another model.",
        )
    if g_idx is not None:
        expect(g_idx, ("I32", "I64"), (inputs,), f"{words} words of {bits}-bit weights in {qweight.name}")
    size = _group_size(scales, inputs, groups, settings)
    less_one = settings.layout == "gptq" and not planar
    return _Module(qweight, qzeros, scales, g_idx, inputs, outputs, groups, bits, size, planar, less_one)


def _bits(qzeros: StoredTensor, zero_words: int, outputs: int, settings: _Settings) -> int:
    """Return the bits per weight that the shape of the zero points gives, the configuration's where that agrees."""
    word = _WORDS[qzeros.dtype]
    known = _BITS if word == _USUAL_WORD else _OF_ANY_WORD
    bits, rest = divmod(zero_words * word, outputs)
    if rest or bits not in known or (settings.bits not in (None, bits) and not settings.per_module):
        wanted = f"{settings.bits} bits" if settings.bits else f"one of {', '.join(map(str, known))} bits"
        raise ShapeError(
            f"has {zero_words} words for {outputs} outputs, which are {zero_words * word / outputs:g} bits each and not {wanted}",
            path=qzeros.file.path,
            tensor=qzeros.name,
            remedy="Restore bits in quantization_config, or download the file again.",
        )
    return bits


def _group_size(scales: StoredTensor, inputs: int, groups: int, settings: _Settings) -> int:
    """Return the inputs per group where groups follow one another: the configuration's, or what the shapes give where it is silent."""
    size = inputs if settings.group_size == -1 else settings.group_size
    if size is not None and -(-inputs // size) == groups:
        return size
    if size is None or settings.per_module:
        usual = [power for power in _USUAL_GROUPS if -(-inputs // power) == groups]
        if len(usual) == 1:  # the last group may be a shorter one
            return usual[0]
        if inputs % groups == 0:
            return inputs // groups
    said = "missing" if settings.group_size is None else str(settings.group_size)
    raise ShapeError(
        f"has {groups} groups for {inputs} inputs, and group_size in quantization_config is {said}",
        path=scales.file.path,
        tensor=scales.name,
        remedy="Restore group_size in quantization_config, or download the file again.",
    )


PACKING = Packing(
    name="gptq",
    label="GPTQ",
    description="formats gptq, gptq_v2 and gptq_p at 2 to 8 bits; with or without reordered inputs",
    methods=("gptq",),
    recognises=_recognises,
    unpack=_unpack,
)
