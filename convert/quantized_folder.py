"""Hugging Face folders whose matrices a quantizer has packed: everything else in float16, and the quantizer's settings in ``config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..errors import EncodingError
from ..formats.base import Layout, Model, OutputTensor, Tensor, WriteOptions
from ..formats.huggingface.out.configuration import with_dtype
from ..formats.huggingface.out.writer import lay_out_huggingface
from ..formats.metadata import Field
from ..quantizers.base import DEFAULT_OPTIONS, Encoding
from ..quantizers.recipes.request import Choice
from .plan import Plan, Step

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["in_float16", "plan_folder"]

_CONFIG: Final = "config.json"


def in_float16(tensor: Tensor, encoding: Encoding) -> Tensor:
    """Return a tensor in float16 (``encoding``), in which packed folders have everything that is not quantized.

    Reading raises EncodingError for weights that float16 cannot hold.
    """
    if tensor.encoding.name == encoding.name:
        return tensor

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        with np.errstate(over="ignore"):
            rows = tensor.rows(start, stop).astype("<f2")
        if not np.isfinite(rows).all():
            raise EncodingError(
                "has weights that float16 cannot hold",
                tensor=tensor.name,
                remedy="Packed folders hold what they do not quantize in float16; choose another format.",
            )
        return rows.view(np.uint8)

    return replace(tensor, encoding=encoding, read=read)


def plan_folder(
    prepared: Model,
    tensors: Sequence[Tensor],
    output: Path,
    quantization: Mapping[str, Any],
    *,
    target: str,
    split_max_size: int | None,
    split_max_tensors: int | None = None,
    threads: int,
) -> Plan:
    """Return the plan of a packed folder: ``tensors`` as they are, and the documents of the prepared model.

    ``quantization`` becomes ``quantization_config``; whatever the output depends on beside the source's files must show in it or in
    ``prepared.files``, by which an interrupted run knows itself again.
    """
    documents = {**prepared.documents}
    config = json.loads(with_dtype(documents[_CONFIG].decode(), "F16", None))
    text = json.dumps({**config, "quantization_config": dict(quantization)}, indent=2, ensure_ascii=False)
    documents[_CONFIG] = f"{text}\n".encode()
    label = target.upper()
    steps = tuple(
        Step(
            it,
            OutputTensor(it.name, it.shape, it.encoding),
            Choice(it.name, it.encoding.name, it.encoding.name, it.encoding.name, label),
        )
        for it in tensors
    )
    options = WriteOptions(
        split_max_size=split_max_size, split_max_tensors=split_max_tensors, documents=MappingProxyType(documents)
    )

    def lay_out(metadata: Mapping[str, Field]) -> Layout:
        return lay_out_huggingface(output, metadata, [step.target for step in steps], options)

    return Plan(
        model=prepared,
        target=target,
        recipe=label,
        steps=steps,
        metadata=prepared.metadata,
        layout=lay_out(prepared.metadata),
        encode_options=DEFAULT_OPTIONS,
        threads=threads,
        allow_nonfinite=False,
        notes=prepared.notes,
        lay_out=lay_out,
    )
