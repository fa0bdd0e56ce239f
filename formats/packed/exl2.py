"""EXL2 folders, as ExLlamaV2 writes them: groups of inputs of different widths in one matrix, the most important inputs first.

With K inputs, N outputs rounded up to a multiple of 32, and G groups::

    .q_weight     I32 (R, N)      codes, down each column, group after group: streams of b-bit fields, least significant first
    .q_scale      I32 (G, N / 8)  s, 4 bits per group and output, least significant first
    .q_scale_max  F16 (G,)
    .q_groups     I16 (2 * G,)    bits b of each group, and its first row in q_weight
    .q_invperm    I32 (K,)        the packed row of each input

    scale[g, n]  = float16((s[g, n] + 1)² * float16(q_scale_max[g] / 256))
    weight[n, k] = float16((code[i, n] - 2^(b - 1)) * scale[g, n])        i = q_invperm[k], which lies in group g

Every step rounds to float16, in which the scales are often subnormal; so the weights have all 16 bits of those that ExLlamaV2 computes with.
The widths are 2, 3, 4, 5, 6 and 8 bits. An index of weight files in such a folder is a leftover of the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import FormatError
from ...quantizers.base import Encoding
from ..metadata import Scalar
from ..stored import StoredTensor
from .access import column_block, column_slab, expect, whole
from .base import Packing, Unpacked, method, modules_with
from .bits import unpack_stream
from .replace import module_weights, number_range, replace_packed
from .split_layers import join_split

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PACKING"]

_REQUIRED = (".q_weight", ".q_scale", ".q_scale_max", ".q_groups", ".q_invperm")
_WORD = 32  # bits
_WIDTHS = (2, 3, 4, 5, 6, 8)
_PADDING = 32  # outputs are filled up to a multiple of it
_CHUNK = 1 << 18  # weights per step: the intermediate results stay in the cache
_DAMAGED = "The file is damaged; download it again."


@dataclass(frozen=True, slots=True)
class _Group:
    """Inputs that share scales: their width, their rows of words in ``q_weight``, and their place in packed order."""

    bits: int
    words: slice
    inputs: slice


@dataclass(frozen=True, slots=True)
class _Module:
    """The packed tensors of one linear layer, their shapes checked."""

    q_weight: StoredTensor
    q_scale: StoredTensor
    q_scale_max: StoredTensor
    q_invperm: StoredTensor
    groups: tuple[_Group, ...]
    inputs: int
    outputs: int

    @property
    def storage_bits(self) -> int:
        """Bits of all five tensors."""
        words = self.q_weight.shape[0] * self.outputs + self.q_scale.shape[0] * self.q_scale.shape[1] + self.inputs
        return words * _WORD + len(self.groups) * (16 + 32)

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the bytes of float16 (stop - start, inputs)."""
        order = self._order()
        tables = self._tables()
        roots = self._roots(start, stop)
        packed = column_slab(self.q_weight, start, stop)
        out = np.empty((stop - start, self.inputs), np.uint16)
        step = max(1, _CHUNK // self.inputs)
        for first in range(0, stop - start, step):
            rows = slice(first, min(stop - start, first + step))
            ordered = np.empty((rows.stop - rows.start, self.inputs), np.uint16)
            for index, (group, table) in enumerate(zip(self.groups, tables, strict=True)):
                data = np.ascontiguousarray(packed[rows, group.words]).view(np.uint8)
                codes = unpack_stream(data, group.bits, group.inputs.stop - group.inputs.start)
                ordered[:, group.inputs] = table.take(codes + roots[rows, index, None] * np.uint16(1 << group.bits))
            ordered.take(order, axis=1, out=out[rows], mode="clip")  # the order is known to be in range
        return out.view(np.uint8)

    def _tables(self) -> tuple[NDArray[np.uint16], ...]:
        """Return for each group the bits of every weight that it can hold: (root, code) to float16."""
        squares = np.arange(1, 17, dtype=np.float16) ** 2
        tables = []
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            steps = whole(self.q_scale_max).astype(np.float16) / np.float16(256)
            for group, step in zip(self.groups, steps, strict=True):
                half = 1 << (group.bits - 1)
                weights = (squares * step)[:, None] * np.arange(-half, half, dtype=np.float16)
                tables.append(weights.astype("<f2").reshape(-1).view(np.uint16))
        return tuple(tables)

    def _roots(self, start: int, stop: int) -> NDArray[np.uint16]:
        """Return the square roots of relative scales, less one, 0 to 15: (stop - start, groups)."""
        first, last = start // 8, -(-stop // 8)  # eight fields of 4 bits are a word
        words = column_block(self.q_scale, first, last).view(np.uint8)
        roots = unpack_stream(words, 4, (last - first) * 8)[:, start - first * 8 : stop - first * 8]
        return np.ascontiguousarray(roots.T, np.uint16)

    def _order(self) -> NDArray[np.intp]:
        """Return the packed row of each input; raises FormatError where these are no permutation."""
        found = whole(self.q_invperm).astype(np.intp)
        seen = np.zeros(self.inputs, bool)
        inside = (found >= 0) & (found < self.inputs)
        seen[found[inside]] = True
        if not seen.all():
            at = int(np.argmin(inside)) if not inside.all() else int(np.argmin(seen))
            problem = f"input {at} has the row {found[at]}" if not inside.all() else f"no input has the row {at}"
            raise FormatError(
                f"is no permutation of {self.inputs} rows: {problem}",
                path=self.q_invperm.file.path,
                tensor=self.q_invperm.name,
                remedy=_DAMAGED,
            )
        return found


def _recognises(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> bool:
    if method(config) not in (None, "exl2"):
        return False
    return any(name.endswith(".q_weight") for name in tensors)


def _unpack(
    tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], encodings: Mapping[str, Encoding]
) -> Unpacked:
    packed = modules_with(tensors, _REQUIRED, (".q_perm",))
    modules = {name: _module(parts) for name, parts in packed.items()}
    weights = module_weights(modules, packed, ".q_weight", encodings["F16"])
    kept, spare = replace_packed(tensors, packed, join_split(weights, config))
    widths = number_range(group.bits for module in modules.values() for group in module.groups)
    count = sum(module.inputs * module.outputs for module in modules.values())
    average = round(sum(module.storage_bits for module in modules.values()) / count, 3)
    facts: dict[str, Scalar] = {"bits": widths, "bits_per_weight": average}
    return Unpacked(kept, f"{average:.2f} bits per weight", facts, spare=spare, row_padding=_PADDING)


def _module(parts: Mapping[str, StoredTensor]) -> _Module:
    """Return a module whose tensors fit one another; raises FormatError or ShapeError, naming the one that does not."""
    q_weight, q_scale, q_scale_max, q_groups, q_invperm = (parts[suffix] for suffix in _REQUIRED)
    words, outputs = expect(q_weight, ("I32",), (None, None))
    (count,) = expect(q_scale_max, ("F16",), (None,))
    if outputs % _PADDING:
        expect(q_weight, ("I32",), (words, -(-outputs // _PADDING) * _PADDING), f"outputs in blocks of {_PADDING}")
    expect(q_scale, ("I32",), (count, outputs // 8), f"{count} groups and {outputs} outputs")
    expect(q_groups, ("I16",), (2 * count,), f"{count} groups in {q_scale_max.name}")
    (inputs,) = expect(q_invperm, ("I32",), (None,))
    groups = _groups(q_groups, words, inputs, q_invperm.name)
    return _Module(q_weight, q_scale, q_scale_max, q_invperm, groups, inputs, outputs)


def _groups(q_groups: StoredTensor, words: int, inputs: int, q_invperm: str) -> tuple[_Group, ...]:
    """Return the groups, which together are all inputs; raises FormatError for any other."""

    def refuse(problem: str) -> FormatError:
        return FormatError(problem, path=q_groups.file.path, tensor=q_groups.name, remedy=_DAMAGED)

    pairs = whole(q_groups).astype(int).reshape(-1, 2).tolist()
    ends = [*(first for _, first in pairs[1:]), words]
    if pairs[0][1] != 0:
        raise refuse(f"group 0 starts at row {pairs[0][1]} of q_weight, not at row 0")
    groups = []
    done = 0
    for index, ((bits, first), end) in enumerate(zip(pairs, ends, strict=True)):
        if bits not in _WIDTHS:
            raise refuse(f"group {index} has {bits} bits, not one of {', '.join(map(str, _WIDTHS))}")
        size, rest = divmod((end - first) * _WORD, bits)
        if not first < end <= words or rest:
            raise refuse(
                f"group {index} has the rows {first} to {end} of q_weight's {words}, which hold no whole number of {bits}-bit weights"
            )
        groups.append(_Group(bits, slice(first, end), slice(done, done + size)))
        done += size
    if done != inputs:
        raise refuse(f"its groups have {done} inputs, {q_invperm} has {inputs}")
    return tuple(groups)


PACKING = Packing(
    name="exl2",
    label="EXL2",
    description="2, 3, 4, 5, 6 and 8 bits mixed within a matrix, inputs reordered; float16 arithmetic, bit for bit",
    methods=("exl2",),
    recognises=_recognises,
    unpack=_unpack,
)
