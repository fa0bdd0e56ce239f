"""What the calls of a checkpoint's pickle make: descriptions of tensors, checked against the storage that they view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import NoReturn, TypeGuard

from .allowed import ITEM_BYTES, Call, Dtype, StorageClass, TensorClass

__all__ = ["OrderedDictionary", "Storage", "StorageView", "TensorView", "rebuild", "storage_from_identity"]

DIMENSIONS_MAX = 8
REPEATED_MAX = 1 << 24  # elements of a view that shows some elements of its storage several times
REPEATED_ROW_MAX = (
    1 << 18
)  # elements of a row of such a view: a row is read as a whole, however few bytes are behind it
_SIZE_MAX = 1 << 62

Refuse = Callable[[str], NoReturn]


class OrderedDictionary(dict[str, object]):
    """A dictionary that the pickle calls an OrderedDict, and may therefore give a state, which is ignored."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of elements in the file.

    Attributes:
        key: its name in the file, decimal digits.
        dtype: element type by safetensors' name; None for bytes without a type.
        length: number of its elements, of its bytes where ``dtype`` is None.
    """

    key: str
    dtype: str | None
    length: int

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return self.length * ITEM_BYTES[self.dtype or "U8"]


@dataclass(frozen=True, slots=True)
class StorageView:
    """Elements ``start`` to ``start + length`` of a storage."""

    storage: Storage
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor inside a storage: element ``offset`` of the storage is its first, strides are in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def storage_from_identity(identity: object, with_views: bool, refuse: Refuse) -> StorageView:
    """Return what a persistent id ``("storage", class, key, location, length[, view])`` names; ``with_views`` allows the last item."""
    if not isinstance(identity, tuple) or len(identity) not in ((5, 6) if with_views else (5,)):
        refuse("a persistent id is not the five items that name a storage")
    word, kind, key, location, length = identity[:5]
    if word != "storage" or not isinstance(word, str) or not isinstance(kind, StorageClass):
        refuse("a persistent id does not name a storage")
    if not isinstance(key, str) or not key.isascii() or not key.isdecimal() or len(key) > 20:
        refuse("the key of a storage is no decimal number")
    if not isinstance(location, str) or not _is_count(length):
        refuse(f"the location or length of storage {key} is of a wrong type")
    storage = Storage(key, kind.dtype, length)
    view = identity[5] if len(identity) == 6 else None
    if view is None:
        return StorageView(storage, 0, length)
    if not isinstance(view, tuple) or len(view) != 3 or not _is_count(view[1]) or not _is_count(view[2]):
        refuse(f"the view of storage {key} is not a key, an offset and a size")
    if view[1] + view[2] > length:
        refuse(f"a view of storage {key} ends at element {view[1] + view[2]}, the storage has {length}")
    return StorageView(storage, view[1], view[2])


def rebuild(call: Call, arguments: tuple[object, ...], refuse: Refuse) -> object:
    """Return the value that ``call`` makes of ``arguments``; calls ``refuse`` where they are not what torch writes."""
    if call is Call.ORDERED_DICTIONARY:
        if arguments:
            refuse("an OrderedDict is made with contents, which torch adds afterwards")
        return OrderedDictionary()
    if call is Call.SIZE:
        if len(arguments) != 1 or not _are_counts(arguments[0]):
            refuse("a torch.Size is not made of one tuple of sizes")
        return arguments[0]
    if call is Call.PARAMETER:
        if len(arguments) != 3 or not isinstance(arguments[0], TensorView):
            refuse("a parameter is not made of a tensor, a flag and hooks")
        return arguments[0]
    if call is Call.FROM_TYPE:
        return _from_type(arguments, refuse)
    return _tensor(call, arguments, refuse)


def _from_type(arguments: tuple[object, ...], refuse: Refuse) -> object:
    """Return a tensor whose Python attributes, the last argument, are ignored."""
    match arguments:
        case (Call() as call, TensorClass(), tuple() as inner, _) if call not in (Call.FROM_TYPE, Call.ORDERED_DICTIONARY, Call.SIZE):  # fmt: skip
            return rebuild(call, inner, refuse)
    refuse("a tensor of a class is not made of a function, a known class, arguments and a state")


def _tensor(call: Call, arguments: tuple[object, ...], refuse: Refuse) -> TensorView:
    counts = {Call.TENSOR: (4, 4), Call.TENSOR_V2: (6, 7), Call.TENSOR_V3: (7, 8)}[call]
    if not counts[0] <= len(arguments) <= counts[1]:
        refuse(f"{call.value} has {len(arguments)} arguments")
    view, offset, shape, strides = arguments[:4]
    if not isinstance(view, StorageView):
        refuse("a tensor is made of something else than a storage")
    if not _is_count(offset) or not _are_counts(shape) or not _are_counts(strides):
        refuse("the offset, sizes and strides of a tensor must be non-negative integers")
    if len(shape) != len(strides) or len(shape) > DIMENSIONS_MAX:
        refuse(
            f"a tensor has {len(shape)} sizes and {len(strides)} strides; at most {DIMENSIONS_MAX}, as many of each, can be"
        )
    dtype, length = view.storage.dtype, view.length
    if call is Call.TENSOR_V3:
        kind = arguments[6]
        if not isinstance(kind, Dtype) or dtype is not None:
            refuse("a tensor with a dtype of its own needs a storage without one")
        dtype, length = kind.name, length // ITEM_BYTES[kind.name]
    if dtype is None:
        refuse("a tensor has neither a dtype nor a storage with one")
    _check_extent(view, length, offset, shape, strides, refuse)
    return TensorView(view.storage, dtype, view.start + offset, tuple(shape), tuple(strides))


def _check_extent(
    view: StorageView, length: int, offset: int, shape: Sequence[int], strides: Sequence[int], refuse: Refuse
) -> None:
    elements = prod(size for size in shape if size)
    if elements > max(length, REPEATED_MAX) or (elements > length and shape[-1] > REPEATED_ROW_MAX):
        refuse(f"a tensor of shape {tuple(shape)} has more elements than its storage {view.storage.key} with {length}")
    if all(shape):
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if last >= length:
            refuse(f"a tensor reaches element {last} of storage {view.storage.key}, which has {length}")


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _SIZE_MAX


def _are_counts(value: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(value, tuple) and all(_is_count(item) for item in value)
