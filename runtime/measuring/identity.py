"""What a measurement was taken on: digests of model and text, so that two of them can be told to belong together or not."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

from ...errors import FormatError, MissingFileError, ModelError
from ...formats.base import Model, Tensor
from ...formats.getters import get_string
from ...formats.metadata import Field, ValueType

__all__ = [
    "SAMPLE_SIZE",
    "ModelIdentity",
    "Text",
    "identify_model",
    "plain",
    "read_text",
    "same_lineage",
    "tensor_digest",
    "weights_digest",
]

SAMPLE_SIZE: Final = 64
_SLAB = 1 << 22
_SAMPLED_ROWS = 16
_TOLERANCE = 0.02  # F16 and BF16 keep norms to 0.4 %


@dataclass(frozen=True)
class ModelIdentity:
    """A model in one of its forms.

    Attributes:
        name: ``general.name``, or the file's.
        architecture: ``general.architecture``.
        digest: SHA-256, hexadecimal, over the architecture's metadata and every tensor's name, shape, encoding and SHA-256. It does not depend on
            the file format, nor on other metadata.
        sample: the first weights of the output norm, which every conversion of the model keeps and another model has not.
    """

    name: str
    architecture: str
    digest: str
    sample: tuple[float, ...]

    def to_dict(self) -> dict[str, object]:
        """Return everything as plain data with stable keys."""
        return asdict(self)

    def summary(self) -> dict[str, str]:
        """Return name, architecture and digest, with stable keys."""
        return {"name": self.name, "architecture": self.architecture, "digest": self.digest}


@dataclass(frozen=True)
class Text:
    """A text file, read.

    Attributes:
        name: of the file, without its folder.
        sha256: of its bytes, hexadecimal.
        content: what it says.
    """

    name: str
    sha256: str
    content: str

    def to_dict(self) -> dict[str, str]:
        """Return name and digest with stable keys."""
        return {"name": self.name, "sha256": self.sha256}


def read_text(path: Path) -> Text:
    """Read a text to the letter; bytes that are no UTF-8 become lone surrogates.

    Raises MissingFileError, and FormatError for a folder or for what has a zero byte, which no text has.
    """
    if not path.exists():
        raise MissingFileError("there is no such text file", path=path)
    if path.is_dir():
        raise FormatError("it is a folder, not a text file", path=path)
    raw = path.read_bytes()
    if b"\0" in raw:
        raise FormatError("it is no text", path=path, offset=raw.index(b"\0"), remedy="Name a file of plain text.")
    return Text(path.name, hashlib.sha256(raw).hexdigest(), raw.decode("utf-8", "surrogateescape"))


def identify_model(
    model: Model, digests: Mapping[str, str] | None = None, progress: Callable[[int], None] = lambda count: None
) -> ModelIdentity:
    """Return the identity of ``model``; ``digests``, where known, are its tensors' by name, otherwise every byte is read.

    ``progress`` is called with the number of bytes of each tensor.
    """

    def digest(tensor: Tensor) -> str:
        found = tensor_digest(tensor) if digests is None else digests[tensor.name]
        progress(tensor.nbytes)
        return found

    tensors = [model.tensors[name] for name in sorted(model.tensors)]
    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="digest") as pool:
        found = list(pool.map(digest, tensors))
    prefix = model.architecture + "."
    keys = {key: plain(field) for key, field in sorted(model.metadata.items()) if key.startswith(prefix)}
    lines = [(tensor.name, tensor.shape, tensor.encoding.name, sha) for tensor, sha in zip(tensors, found, strict=True)]
    whole = json.dumps([model.architecture, keys, lines], separators=(",", ":"), ensure_ascii=False)
    name = get_string(model.metadata, "general.name", model.path) or model.path.name
    return ModelIdentity(name, model.architecture, hashlib.sha256(whole.encode()).hexdigest(), _sample(model))


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes in its encoding."""
    found = hashlib.sha256()
    step = max(1, _SLAB // max(1, tensor.encoding.row_bytes(tensor.columns)))
    for start in range(0, tensor.row_count, step):
        found.update(np.ascontiguousarray(tensor.read(start, min(start + step, tensor.row_count))).data)
    return found.hexdigest()


def weights_digest(model: Model) -> str:
    """Return a SHA-256, hexadecimal, that every file of exactly these weights has, and that of other weights has not.

    It covers the architecture, and of every tensor the name, the shape and the values of up to 16 evenly spaced rows: enough for any other training, and
    quick. Neither the file format counts nor an encoding that loses nothing, such as F32 for BF16.
    """
    found = hashlib.sha256(model.architecture.encode())
    for name in sorted(model.tensors):
        tensor = model.tensors[name]
        found.update(json.dumps([name, tensor.shape]).encode())
        for row in np.unique(np.linspace(0, tensor.row_count - 1, _SAMPLED_ROWS).astype(np.intp)):
            found.update(np.ascontiguousarray(tensor.rows(int(row), int(row) + 1), "<f4").data)
    return found.hexdigest()


def same_lineage(one: ModelIdentity, other: ModelIdentity) -> bool:
    """Return whether two models can be conversions of one: the same architecture, and equal output norms but for rounding."""
    if one.architecture != other.architecture or len(one.sample) != len(other.sample):
        return False
    return bool(np.allclose(one.sample, other.sample, rtol=_TOLERANCE, atol=1e-3))


def _sample(model: Model) -> tuple[float, ...]:
    tensor = model.tensors.get("output_norm.weight")
    if tensor is None or tensor.row_count != 1:
        raise ModelError("the model has no output norm", path=model.path, tensor="output_norm.weight")
    return tuple(float(value) for value in tensor.rows(0, 1)[0, :SAMPLE_SIZE])


def plain(field: Field) -> object:
    """Return a metadata value as JSON-compatible data; float32 values are rounded to what a file would hold."""
    value = field.value
    if isinstance(value, np.ndarray):
        return value.tolist()
    if field.type is ValueType.FLOAT32 and isinstance(value, int | float):
        return float(np.float32(value))
    return value if isinstance(value, bool | int | float | str) else list(value)
