"""Open a ggml, ggmf or ggjt model, in one file or in parts: metadata and lazy tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from ...quantizers.base import Encoding
from ..base import Model, Tensor
from ..metadata import Scalar
from ..positional import PositionalFile
from .header import Header
from .hyper_parameters import check_tensors, hyper_parameter_metadata
from .layouts import PLANAR, StoredType
from .names import NamedTensor, named_tensors
from .parts import OpenPart, open_parts
from .planar import planar_types
from .vocabulary import read_vocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..base import OpenContext

__all__ = ["open_ggml"]

_FREQUENCIES = "freqs"  # end of the names of rotary tables, which loaders compute themselves


@dataclass(frozen=True, slots=True)
class _Slice:
    """What one part holds of a tensor."""

    file: PositionalFile
    name: str
    kind: StoredType
    shape: tuple[int, ...]
    offset: int

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return rows as uint8 (stop - start, row bytes) of the encoding in which they are given."""
        width = self.kind.row_bytes(self.shape[-1])
        out = np.empty((stop - start, width), np.uint8)
        if out.size:
            self.file.read_into(out.data, self.offset + start * width, self.name)
        if self.kind.convert is None:
            return out
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity pass through, to whoever checks rows
            return self.kind.convert(out)


def open_ggml(path: Path, context: OpenContext) -> Model:
    """Read the headers of ``path``, and of the parts beside it where it is the first of several.

    Rows are exact: given in the encoding of GGUF that holds them to the bit, else as F32. Rotary rows keep their order, which is GGUF's.

    Raises FormatError (and its kinds) for a file that is damaged, lies, or has a part missing; ModelError (and its kinds) for a
    sound file that holds no Llama. :meth:`Model.close` closes all files.
    """
    with ExitStack() as stack:
        parts = open_parts(path, stack, context.vocabulary_only)
        header = parts[0].header
        vocabulary, notes = read_vocabulary(header)
        if context.vocabulary_only or header.is_vocabulary_only:
            fields, assumptions = hyper_parameter_metadata(header, None, predates_llama_2=False)
            tensors, kinds = dict[str, Tensor](), list[StoredType]()
        else:
            slices = _slices(parts)
            named = {tensor.ggml: tensor for tensor in named_tensors(header.numbers.layers)}
            shapes = {name: _joined_shape(named.get(name), each) for name, each in slices.items()}
            dropped = tuple(name for name in shapes if name.endswith(_FREQUENCIES))
            dimensions = check_tensors(header, {name: shapes[name] for name in shapes if name not in dropped})
            tensors = {
                named[name].gguf: _tensor(named[name], each, context.encodings)
                for name, each in slices.items()
                if name not in dropped
            }
            kinds = [each[0].kind for each in slices.values()]
            old = header.version < 3 and any(kind.name not in ("F32", "F16") for kind in kinds)
            fields, assumptions = hyper_parameter_metadata(header, dimensions, predates_llama_2=old)
            notes += (*_dropped_note(dropped), *_type_notes(kinds))
        opened = stack.pop_all()
    return Model(
        path=path,
        format="ggml",
        metadata=MappingProxyType(fields | vocabulary),
        tensors=MappingProxyType(tensors),
        files=tuple(part.file.path for part in parts),
        notes=(*notes, *assumptions),
        close=opened.close,
        container=MappingProxyType(_container(header, kinds, len(parts))),
    )


def _slices(parts: Sequence[OpenPart]) -> dict[str, list[_Slice]]:
    """Return each tensor's slices, in the order of parts; types whose rows turn out to be planar become so."""
    planar = frozenset[int]()
    if parts[0].header.container == "ggml":
        planar = planar_types(parts[0].file, parts[0].walk.records.values())
    found: dict[str, list[_Slice]] = {}
    for part in parts:
        for record in part.walk.records.values():
            kind = PLANAR[record.number] if record.number in planar else record.kind
            each = _Slice(part.file, record.name, kind, record.shape, record.offset)
            found.setdefault(record.name, []).append(each)
    return found


def _joining_axis(named: NamedTensor | None, slices: Sequence[_Slice]) -> int | None:
    """Return the axis along which parts share the tensor out; None where each has all of it, or no Llama has it."""
    return None if named is None or len(slices) == 1 or len(slices[0].shape) == 1 else named.split


def _joined_shape(named: NamedTensor | None, slices: Sequence[_Slice]) -> tuple[int, ...]:
    axis, shape = _joining_axis(named, slices), list(slices[0].shape)
    if axis is not None:
        shape[axis] *= len(slices)
    return tuple(shape)


def _tensor(named: NamedTensor, slices: Sequence[_Slice], encodings: Mapping[str, Encoding]) -> Tensor:
    first = slices[0]
    shape = _joined_shape(named, slices)
    axis = _joining_axis(named, slices)
    read = partial(_read, slices if axis is not None else slices[:1], axis, shape)
    return Tensor(named.gguf, shape, encodings[first.kind.encoding], read, f"{first.file.path.name}: {named.ggml}")


def _read(
    slices: Sequence[_Slice], axis: int | None, shape: tuple[int, ...], start: int, stop: int
) -> NDArray[np.uint8]:
    """Return rows ``start`` to ``stop`` of the joined tensor as uint8 (stop - start, row bytes)."""
    rows = shape[0] if len(shape) > 1 else 1
    if not 0 <= start <= stop <= rows:
        raise IndexError(f"rows {start} to {stop} of tensor {slices[0].name}, which has {rows}")
    if axis == 1:
        return np.concatenate([each.read(start, stop) for each in slices], axis=1)
    if axis is None or start == stop:
        return slices[0].read(start, stop)
    height = slices[0].shape[0]
    pieces = [
        each.read(max(start - number * height, 0), min(stop - number * height, height))
        for number, each in enumerate(slices)
        if start < (number + 1) * height and stop > number * height
    ]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _dropped_note(names: Sequence[str]) -> tuple[str, ...]:
    return (f"{len(names)} tables of rotary frequencies are left out: they follow from the base",) if names else ()


def _stored_types(kinds: Sequence[StoredType]) -> list[StoredType]:
    """Return the types that occur, those of most tensors first."""
    counts = Counter((kind.name, kind.detail) for kind in kinds)
    of = {(kind.name, kind.detail): kind for kind in kinds}
    return [of[key] for key, _ in counts.most_common()]


def _type_notes(kinds: Sequence[StoredType]) -> tuple[str, ...]:
    """Say what was expanded, and that a quantized source stays as coarse as it was."""
    notes: list[str] = []
    if any(kind.weights > 1 for kind in kinds):
        notes.append("the source was already quantized: nothing restores the precision that was lost then")
    expanded = [
        f"{kind.name} ({kind.detail})" for kind in _stored_types(kinds) if kind.weights > 1 and kind.encoding == "F32"
    ]
    if expanded:
        notes.append(f"no type of GGUF holds the values of {', '.join(expanded)} exactly: they are given as F32")
    return tuple(notes)


def _container(header: Header, kinds: Sequence[StoredType], parts: int) -> dict[str, Scalar]:
    facts: dict[str, Scalar] = {"container": header.container}
    if header.version:
        facts["version"] = header.version
    facts["parts"] = parts
    if kinds:
        facts["stored_types"] = " + ".join(
            f"{kind.name} with {kind.detail}" if kind.detail else kind.name for kind in _stored_types(kinds)
        )
    return facts
