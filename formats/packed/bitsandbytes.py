"""bitsandbytes folders: NF4 and FP4 with single or double quantization, and int8.

Four bits (``W`` being a weight's name, n its number of elements)::

    W                                        U8, or any dtype of as many bytes   ceil(n / 2) bytes, element 2i above element 2i + 1
    W.absmax                                 F32 (blocks,), or U8 if quantized itself
    W.quant_map                              F32 (16,)                           the numbers of the 16 codes
    W.quant_state.bitsandbytes__nf4 (__fp4)  U8                                  JSON: blocksize, dtype, shape, and of the nested scales
    W.nested_absmax, W.nested_quant_map      F32 (blocks / nested_blocksize,), (256,)

    absmax = nested_quant_map[absmax] * nested_absmax[block // nested_blocksize] + nested_offset
    weight = quant_map[code] * absmax[element // blocksize], rounded to dtype

Blocks run over the flattened matrix and do not stop at the end of a row. Eight bits: ``.weight`` I8 (rows, columns) and ``.SCB`` F32 (rows,), a weight
being ``code * SCB / 127``. Which activations bitsandbytes would treat as outliers does not concern the weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import FormatError, MissingTensorError
from ...quantizers.base import Encoding
from ..base import Tensor
from ..metadata import Scalar
from ..stored import StoredTensor, read_rows
from .access import expect, whole
from .base import Packing, Unpacked, method, modules_with
from .replace import number_range, replace_tensors
from .rounding import rounded
from .scaled import scaled_tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PACKING"]

_STATES = {f".quant_state.bitsandbytes__{kind}": kind for kind in ("nf4", "fp4")}
_STATE_MAX = 1 << 16  # bytes of JSON
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_DIMENSIONS_MAX = 8
_ELEMENTS_MAX = 1 << 48
_BLOCK_MAX = 1 << 20
_CHUNK = 1 << 18  # weights per step: the intermediate results stay in the cache
_CODES = 16
_NESTED_CODES = 256
_ROW_ORDER = 0  # weight_format of matrices whose rows follow one another


@dataclass(frozen=True, slots=True)
class _Nested:
    """How quantized scales are restored."""

    numbers: StoredTensor
    scales: StoredTensor
    block: int
    offset: float


@dataclass(frozen=True, slots=True)
class _FourBits:
    """A weight of four bits, everything about it checked but the numbers themselves."""

    codes: StoredTensor
    absmax: StoredTensor
    numbers: StoredTensor
    nested: _Nested | None
    block: int
    encoding: Encoding
    columns: int

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return rows in ``encoding``."""
        out = np.empty((stop - start, self.encoding.row_bytes(self.columns)), np.uint8)
        step = max(1, _CHUNK // self.columns)
        for first in range(start, stop, step):
            last = min(stop, first + step)
            out[first - start : last - start] = rounded(self._weights(first, last), self.encoding)
        return out

    def _weights(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows before they are rounded."""
        first, last = start * self.columns, stop * self.columns
        packed = _elements(self.codes, "u1", first // 2, -(-last // 2))
        codes = np.empty((packed.size, 2), np.uint8)
        np.right_shift(packed, 4, out=codes[:, 0])
        np.bitwise_and(packed, 15, out=codes[:, 1])
        weights = whole(self.numbers).astype(np.float32).take(codes.reshape(-1)[first % 2 :][: last - first])
        block, end = first // self.block, -(-last // self.block)
        scales = self._scales(block, end)
        with np.errstate(over="ignore", invalid="ignore"):  # what is no number is for later checks to name
            if first % self.block == 0 and last % self.block == 0:
                weights.reshape(-1, self.block)[...] *= scales[:, None]
            else:
                weights *= scales.take(np.arange(first, last) // self.block - block)
        return weights.reshape(stop - start, self.columns)

    def _scales(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the scales of blocks ``start`` to ``stop``."""
        if self.nested is None:
            return _elements(self.absmax, "<f4", start, stop).astype(np.float32)
        codes = _elements(self.absmax, "u1", start, stop)
        first, last = start // self.nested.block, -(-stop // self.nested.block)
        outer = _elements(self.nested.scales, "<f4", first, last)
        places = np.arange(start, stop) // self.nested.block - first
        numbers = whole(self.nested.numbers).astype(np.float32).take(codes)
        with np.errstate(over="ignore", invalid="ignore"):
            found: NDArray[np.float32] = numbers * outer.take(places) + np.float32(self.nested.offset)
        return found


def _elements(stored: StoredTensor, dtype: str, start: int, stop: int) -> NDArray[Any]:
    """Return elements ``start`` to ``stop`` of a tensor's bytes taken as one vector of ``dtype``."""
    size = np.dtype(dtype).itemsize
    column = replace(stored, shape=(stored.nbytes // size, 1), strides=None)
    return read_rows(column, size, start, stop).reshape(-1).view(dtype)


def _recognises(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> bool:
    if method(config) not in (None, "bitsandbytes"):
        return False
    if any(name.endswith(tuple(_STATES)) for name in tensors):
        return True
    scaled = (tensors.get(f"{name.removesuffix('.SCB')}.weight") for name in tensors if name.endswith(".SCB"))
    return any(method(config) is not None or (weight is not None and weight.dtype == "I8") for weight in scaled)


def _unpack(
    tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], encodings: Mapping[str, Encoding]
) -> Unpacked:
    weights: dict[str, Tensor] = {}
    used: set[str] = set()
    blocks, kinds, nested = set(), set(), False
    for suffix, kind in _STATES.items():
        found = modules_with(tensors, (suffix, "", ".absmax", ".quant_map"), (".nested_absmax", ".nested_quant_map"))
        for name, parts in found.items():
            weights[name], block = _four_bits(name, parts, suffix, encodings)
            kinds.add(kind.upper())
            blocks.add(block)
            nested |= ".nested_absmax" in parts
            used.update(stored.name for stored in parts.values())
    for module, parts in modules_with(tensors, (".SCB", ".weight"), (".weight_format",)).items():
        name = f"{module}.weight"
        weights[name] = _eight_bits(name, parts, encodings)
        used.update(stored.name for stored in parts.values())
        kinds.add("int8")
    summary = " and ".join(sorted(kinds))
    facts: dict[str, Scalar] = {"type": summary}
    if blocks:
        facts["block_size"] = number_range(blocks)
        summary += f", blocks of {facts['block_size']}{', scales quantized too' if nested else ''}"
    return Unpacked(replace_tensors(tensors, used, weights), summary, facts)


def _eight_bits(name: str, parts: Mapping[str, StoredTensor], encodings: Mapping[str, Encoding]) -> Tensor:
    weight, scales, form = parts[".weight"], parts[".SCB"], parts.get(".weight_format")
    rows, _ = expect(weight, ("I8",), (None, None))
    expect(scales, ("F32",), (rows,), f"{weight.name} with a scale for each row")
    if form is not None:
        expect(form, ("U8", "I8"), (1,) * len(form.shape))
        if (found := int(whole(form).reshape(-1)[0])) != _ROW_ORDER:
            raise FormatError(
                f"says that the weights are in the order {found} of a kind of graphics processor, and qconv reads the order of rows, 0",
                path=form.file.path,
                tensor=form.name,
                remedy="Save the model again with a bitsandbytes that is no older than 0.45.",
            )
    return scaled_tensor(name, weight, scales, encodings["F32"], divisor=127)


def _four_bits(
    name: str, parts: Mapping[str, StoredTensor], suffix: str, encodings: Mapping[str, Encoding]
) -> tuple[Tensor, int]:
    """Return a weight and its block size; raises FormatError or ShapeError."""
    codes, state = parts[""], _State(parts[suffix])
    shape, block = state.shape(), state.count("blocksize")
    elements = prod(shape)
    if codes.nbytes != -(-elements // 2) or codes.strides is not None:
        raise FormatError(
            f"has {codes.nbytes} bytes, and shape {list(shape)} in {parts[suffix].name} asks for {-(-elements // 2)}",
            path=codes.file.path,
            tensor=codes.name,
            remedy="The tensors belong to different models, or a file is damaged.",
        )
    kind = state.text("quant_type", tuple(_STATES.values()))
    if kind != _STATES[suffix]:
        raise state.wrong("quant_type", f"{_STATES[suffix]!r}, as the tensor's name says")
    blocks = -(-elements // block)
    why = f"{elements} weights in blocks of {block}"
    expect(parts[".quant_map"], ("F32",), (_CODES,))
    nested = None
    if ".nested_absmax" in parts:
        outer = state.count("nested_blocksize")
        if ".nested_quant_map" not in parts:
            raise MissingTensorError(
                f"is missing, and {codes.name} cannot be unpacked without it",
                path=codes.file.path,
                tensor=f"{codes.name}.nested_quant_map",
                remedy="A weight file is missing or damaged; compare the folder with its source.",
            )
        expect(parts[".absmax"], ("U8",), (blocks,), why)
        expect(parts[".nested_absmax"], ("F32",), (-(-blocks // outer),), f"{blocks} blocks, scaled {outer} together")
        expect(parts[".nested_quant_map"], ("F32",), (_NESTED_CODES,))
        nested = _Nested(parts[".nested_quant_map"], parts[".nested_absmax"], outer, state.number("nested_offset"))
    else:
        expect(parts[".absmax"], ("F32",), (blocks,), why)
    encoding = encodings[_DTYPES[state.text("dtype", tuple(_DTYPES))]]
    packed = _FourBits(codes, parts[".absmax"], parts[".quant_map"], nested, block, encoding, shape[-1])
    return Tensor(name, shape, encoding, packed.read, f"{codes.file.path.name}: {codes.name}"), block


class _State:
    """The JSON object of a weight's ``quant_state``, whose every value is checked when it is asked for."""

    def __init__(self, stored: StoredTensor) -> None:
        self._stored = stored
        expect(stored, ("U8",), (None,))
        if stored.nbytes > _STATE_MAX:
            raise self._error(f"has {stored.nbytes} bytes, more than the {_STATE_MAX} that such a description may have")
        try:
            found = json.loads(whole(stored).tobytes().decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise self._error(f"is no JSON ({error})") from None
        if not isinstance(found, dict):
            raise self._error("is no JSON object")
        self._values: dict[str, Any] = found

    def _error(self, problem: str) -> FormatError:
        return FormatError(
            problem,
            path=self._stored.file.path,
            tensor=self._stored.name,
            remedy="The file is damaged; download it again.",
        )

    def wrong(self, key: str, wanted: str) -> FormatError:
        """Return the error for a value that is not what it must be."""
        shown = repr(self._values.get(key, "absent"))
        return self._error(f"has {key}: {shown[:80]}, which must be {wanted}")

    def text(self, key: str, allowed: tuple[str, ...]) -> str:
        """Return one of the ``allowed`` words."""
        value = self._values.get(key)
        if not isinstance(value, str) or value not in allowed:
            raise self.wrong(key, f"{', '.join(allowed[:-1])} or {allowed[-1]}")
        return value

    def count(self, key: str) -> int:
        """Return a number of elements."""
        value = self._values.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _BLOCK_MAX:
            raise self.wrong(key, f"a whole number from 1 to {_BLOCK_MAX}")
        return value

    def number(self, key: str) -> float:
        """Return a finite number in the range of float32."""
        value = self._values.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float(np.finfo("f4").max):
            raise self.wrong(key, "a finite number")
        return float(value)

    def shape(self) -> tuple[int, ...]:
        """Return the shape of the weight."""
        value = self._values.get("shape")
        if (
            not isinstance(value, list)
            or not 1 <= len(value) <= _DIMENSIONS_MAX
            or any(
                isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= _ELEMENTS_MAX for size in value
            )
            or math.prod(value) > _ELEMENTS_MAX
        ):
            raise self.wrong("shape", "a list of sizes")
        return tuple(value)


PACKING = Packing(
    name="bitsandbytes",
    label="bitsandbytes",
    description="NF4 and FP4, with or without double quantization, and int8",
    methods=("bitsandbytes",),
    recognises=_recognises,
    unpack=_unpack,
)
