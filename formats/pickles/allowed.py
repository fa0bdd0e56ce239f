"""The only names that a checkpoint's pickle may mention, each with an inert value that stands for it.

Nothing here is the thing that it is named after, and nothing is imported: ``torch.FloatStorage`` in a pickle is looked up in a table and
becomes ``StorageClass("F32")``. A name that the table lacks stops the reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

__all__ = ["ALLOWED", "ITEM_BYTES", "Call", "Dtype", "StorageClass", "TensorClass"]


class Call(Enum):
    """What a pickle may call; :mod:`.rebuild` says what comes of it."""

    ORDERED_DICTIONARY = "collections.OrderedDict"
    SIZE = "torch.Size"
    TENSOR = "torch._utils._rebuild_tensor"
    TENSOR_V2 = "torch._utils._rebuild_tensor_v2"
    TENSOR_V3 = "torch._utils._rebuild_tensor_v3"
    PARAMETER = "torch._utils._rebuild_parameter"
    FROM_TYPE = "torch._tensor._rebuild_from_type_v2"


class TensorClass(Enum):
    """Classes of tensors, which only ``_rebuild_from_type_v2`` names."""

    TENSOR = "torch.Tensor"
    PARAMETER = "torch.nn.parameter.Parameter"


@dataclass(frozen=True, slots=True)
class StorageClass:
    """The class of a storage; ``dtype`` is safetensors' name, None for bytes without a type."""

    dtype: str | None


@dataclass(frozen=True, slots=True)
class Dtype:
    """An element type by safetensors' name."""

    name: str


ITEM_BYTES: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "F8_E8M0": 1,
        "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
    }
)  # fmt: skip
"""Bytes per element by dtype."""

_STORAGES = {
    "Float": "F32", "Half": "F16", "BFloat16": "BF16", "Double": "F64", "ComplexFloat": "C64",
    "Long": "I64", "Int": "I32", "Short": "I16", "Char": "I8", "Byte": "U8", "Bool": "BOOL",
}  # fmt: skip
_DTYPES = {
    "float32": "F32", "float": "F32", "float16": "F16", "half": "F16", "bfloat16": "BF16", "float64": "F64", "double": "F64",
    "int64": "I64", "long": "I64", "int32": "I32", "int": "I32", "int16": "I16", "short": "I16", "int8": "I8",
    "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64", "bool": "BOOL", "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip

ALLOWED: Mapping[str, object] = MappingProxyType(
    {call.value: call for call in Call}
    | {kind.value: kind for kind in TensorClass}
    | {f"torch.{name}Storage": StorageClass(dtype) for name, dtype in _STORAGES.items()}
    | {f"torch.storage.{name}Storage": StorageClass(None) for name in ("Untyped", "Typed")}
    | {f"torch.{name}": Dtype(dtype) for name, dtype in _DTYPES.items()}
)
"""Dotted name to what stands for it."""
