"""Integers of 1 to 8 bits in 32-bit words along each row, with scales and zero points: ``.weight_packed`` of compressed-tensors.

With R rows, C columns, G groups of columns and b bits per weight::

    codes   I32             (R, width(C))    code of each weight
    scales  BF16, F16, F32  (R, G)
    zeros   I32             (width(R), G)    code of zero, down each column; 2 ** (b - 1) where the tensor is absent
    groups  I32             (C,)             group of each column; absent, or -1 throughout: columns are grouped in order

    weight = (code - zero) * scale

Fields are a dense stream, least significant bit first; or, as before compressed-tensors 0.18, every word holds as many whole fields as fit, and the
rest of it is unused. Both are the same for 1, 2, 4 and 8 bits; otherwise the width tells.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...errors import FormatError, ShapeError
from ...quantizers.base import Encoding
from ..base import Tensor
from ..stored import StoredTensor
from .access import as_float32, expect, row_slab, whole
from .affine import dequantize
from .bits import unpack_stream
from .rounding import rounded

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["WordIntegers", "word_integers"]

_BITS = range(1, 9)
_WORD = 32  # bits
WORDS = ("I32", "U32")
_SCALES = ("BF16", "F16", "F32")
_REMEDY = "The tensors and the quantizer's settings belong to different models, or a file is damaged."


@dataclass(frozen=True, slots=True)
class _Words:
    """How fields lie in 32-bit words.

    Attributes:
        bits: of a field.
        dense: whether fields straddle words; otherwise each word holds as many as fit, from its least significant bit on.
    """

    bits: int
    dense: bool

    @property
    def fields(self) -> int:
        """Fields that take a whole number of words together: that many, and no fewer."""
        return _WORD if self.dense else _WORD // self.bits

    @property
    def words(self) -> int:
        """Words that :attr:`fields` take."""
        return self.bits if self.dense else 1

    def width(self, count: int) -> int:
        """Return the number of words of ``count`` fields."""
        return -(-count * self.bits // _WORD) if self.dense else -(-count // (_WORD // self.bits))

    def unpack(self, words: NDArray[np.generic], count: int) -> NDArray[np.uint8]:
        """Return ``count`` fields, uint8 (n, count), of each row of ``words``, 32 bits each (n, words)."""
        rows, width = words.shape
        data = np.ascontiguousarray(words).view(np.uint8)
        if self.dense:
            return unpack_stream(data, self.bits, count)
        return unpack_stream(data.reshape(-1, 4), self.bits, self.fields).reshape(rows, width * self.fields)[:, :count]


@dataclass(frozen=True, slots=True)
class WordIntegers:
    """A weight of packed integers, shapes checked."""

    codes: StoredTensor
    scales: StoredTensor
    zeros: StoredTensor | None
    groups: StoredTensor | None
    form: _Words
    shape: tuple[int, int]
    group_size: int
    encoding: Encoding

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return rows in ``encoding``."""
        rows, columns = stop - start, self.shape[1]
        words = row_slab(self.codes, start, stop)
        scales = as_float32(row_slab(self.scales, start, stop), self.scales.dtype)
        weights = dequantize(
            lambda first, last: self.form.unpack(words[first:last], columns),
            self._zeros(start, stop),
            scales,
            self._groups(),
            (rows, columns),
        )
        return rounded(weights, self.encoding)

    def _zeros(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return what the codes of zero are, uint8 (stop - start, groups of columns)."""
        count = self.scales.shape[1]
        if self.zeros is None:
            return np.full((stop - start, count), 1 << self.form.bits - 1, np.uint8)
        fields, words = self.form.fields, self.form.words
        first, last = start // fields, -(-stop // fields)
        found = row_slab(self.zeros, first * words, min(last * words, self.zeros.shape[0]))
        width = min(last * fields, self.shape[0]) - first * fields
        unpacked = self.form.unpack(found.T, width)[:, start - first * fields : stop - first * fields]
        return np.ascontiguousarray(unpacked.T)

    def _groups(self) -> NDArray[np.intp] | int:
        """Return each column's group, or the number of columns of a group."""
        if self.groups is None:
            return self.group_size
        found = whole(self.groups).astype(np.intp)
        if (found == -1).all():  # as initialised: columns are grouped in order
            return self.group_size
        count = self.scales.shape[1]
        if (wrong := np.flatnonzero((found < 0) | (found >= count))).size:
            column = int(wrong[0])
            raise FormatError(
                f"puts column {column} into group {found[column]}, and {self.scales.name} has {count} groups",
                path=self.groups.file.path,
                tensor=self.groups.name,
                remedy="The file is damaged; download it again.",
            )
        return found

    def tensor(self, name: str) -> Tensor:
        """Return the weights as a tensor called ``name``."""
        return Tensor(name, self.shape, self.encoding, self.read, f"{self.codes.file.path.name}: {self.codes.name}")


def word_integers(
    codes: StoredTensor,
    scales: StoredTensor,
    zeros: StoredTensor | None,
    groups: StoredTensor | None,
    shape: tuple[int, int],
    bits: Collection[int],
    group_sizes: Iterable[int],
    encoding: Encoding,
) -> WordIntegers:
    """Check the tensors of a weight of ``shape`` and return them.

    ``bits`` and ``group_sizes`` are what the configuration says of any module, empty where it says nothing: the shapes decide. Raises
    FormatError or ShapeError.
    """
    rows, columns = shape
    _, width = expect(codes, WORDS, (rows, None), f"a weight of {rows} rows")
    form = _form(codes, columns, width, bits)
    _, count = expect(scales, _SCALES, (rows, None), f"a weight of {rows} rows")
    size = next((size for size in group_sizes if -(-columns // size) == count), 0)
    size = size or -(-columns // count)
    if count != 1 and -(-columns // size) != count:
        raise ShapeError(
            f"has {count} groups, which are no equal parts of {columns} columns",
            path=scales.file.path,
            tensor=scales.name,
            remedy=_REMEDY,
        )
    if zeros is not None:
        expect(zeros, WORDS, (form.width(rows), count), f"{rows} rows of {form.bits} bits and {count} groups")
    if groups is not None:
        expect(groups, ("I32", "I64"), (columns,), f"a weight of {columns} columns")
    return WordIntegers(codes, scales, zeros, groups, form, shape, size, encoding)


def _form(codes: StoredTensor, columns: int, width: int, bits: Collection[int]) -> _Words:
    """Return how ``columns`` fields take ``width`` words; what the configuration says comes first, and dense streams before others."""
    for candidates in (bits, _BITS):
        for dense in (True, False):
            fitting = [each for each in candidates if _Words(each, dense).width(columns) == width]
            if len(fitting) == 1:
                return _Words(fitting[0], dense)
            if fitting:
                raise FormatError(
                    f"its width of {width} words fits fields of {' and '.join(map(str, fitting))} bits alike",
                    path=codes.file.path,
                    tensor=codes.name,
                    remedy="Restore num_bits in quantization_config of config.json.",
                )
    raise ShapeError(
        f"has {width} words per row, which {columns} fields of no number of bits from 1 to 8 take",
        path=codes.file.path,
        tensor=codes.name,
        remedy=_REMEDY,
    )
