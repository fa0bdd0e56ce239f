"""Receipts: as a JSON file beside the result, and as keys ``qconv.receipt.*`` inside a GGUF file.

The keys have the same size whatever was measured, so a place is kept for them when the file is laid out; they are filled in after all weights are
written and before the seal, when the result is measured under its temporary name. So they are covered by the file's digests.

=================================== ========= ==============================================================================
``qconv.receipt.passed``            bool      the judgement
``qconv.receipt.source``            string    digest of the source (:mod:`qconv.runtime.measuring.identity`)
``qconv.receipt.result``            string    digest of this model, which does not depend on these keys
``qconv.receipt.tokenizer``         string    digest of the tokenizer
``qconv.receipt.texts``             strings   SHA-256 of each text
``qconv.receipt.context``           uint32    tokens per window
``qconv.receipt.windows``           uint32    windows
``qconv.receipt.positions``         uint32    scored positions
``qconv.receipt.source_perplexity`` float64
``qconv.receipt.perplexity``        float64
``qconv.receipt.divergence``        float64   mean KL divergence, and the next three: its error, median and 99th percentile
``qconv.receipt.divergence_error``  float64
``qconv.receipt.divergence_median`` float64
``qconv.receipt.divergence_99``     float64
``qconv.receipt.same_top``          float64   share of positions with the same first token
``qconv.receipt.max_divergence``    float64   the threshold
=================================== ========= ==============================================================================

Numbers that could not be measured, because the tokenizers differ, are -1.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ...formats.base import Layout, Model, Tensor
from ...formats.metadata import Field, ValueType, boolean, string, strings, uint32
from ...formats.positional import PositionalFile
from ...formats.whole_file import refuse_foreign, whole_file
from ..output import OutputFiles
from ..plan import Plan
from .validate import Receipt

__all__ = [
    "PREFIX",
    "blank_fields",
    "check_receipt_path",
    "fill_layout",
    "receipt_path",
    "unsealed_model",
    "write_receipt",
]

_START: Final = b'{\n  "version"'  # of a receipt's file

PREFIX: Final = "qconv.receipt."
_BLANK = "0" * 64
_UNMEASURED = -1.0  # NaN is no JSON


def receipt_path(result: Path) -> Path:
    """Return the name of the JSON file beside a result."""
    return result.with_name(result.name + ".receipt.json")


def check_receipt_path(path: Path) -> None:
    """Raise OutputExistsError where ``path`` is anything but an older receipt, OutputError where its folder does not exist."""
    refuse_foreign(path, _START)


def write_receipt(path: Path, receipt: Receipt) -> None:
    """Write the JSON file, whole or not at all, in place of an older one."""
    with whole_file(path) as file:
        file.write((json.dumps(receipt.to_dict(), indent=2, ensure_ascii=False) + "\n").encode())


def blank_fields(texts: int) -> dict[str, Field]:
    """Return the keys with places to be filled, for a validation on so many texts."""
    return _fields(False, _BLANK, _BLANK, _BLANK, [_BLANK] * texts, (0, 0, 0), [_UNMEASURED] * 8)


def fields(receipt: Receipt, digests: list[str]) -> dict[str, Field]:
    """Return the keys of a receipt; ``digests`` are the texts'."""
    statistics = receipt.statistics
    numbers = [_UNMEASURED] * 7
    if statistics is not None:
        numbers = [
            statistics.base_perplexity.value,
            statistics.perplexity.value,
            statistics.divergence.value,
            statistics.divergence.error,
            statistics.divergence_percentiles[0.5],
            statistics.divergence_percentiles[0.99],
            statistics.same_top.value,
        ]
    cut = receipt.cut
    sizes = (cut["context"], cut["windows"], 0 if statistics is None else statistics.positions)
    return _fields(
        receipt.passed,
        receipt.source.digest,
        receipt.result.digest,
        receipt.parity.result,
        digests,
        tuple(int(str(size)) for size in sizes),
        [*numbers, receipt.max_divergence],
    )


def _fields(
    passed: bool,
    source: str,
    result: str,
    tokenizer: str,
    texts: list[str],
    sizes: tuple[int, ...],
    numbers: list[float],
) -> dict[str, Field]:
    found = {
        "passed": boolean(passed),
        "source": string(source),
        "result": string(result),
        "tokenizer": string(tokenizer),
        "texts": strings(texts),
    }
    for name, size in zip(("context", "windows", "positions"), sizes, strict=True):
        found[name] = uint32(size)
    names = (
        "source_perplexity",
        "perplexity",
        "divergence",
        "divergence_error",
        "divergence_median",
        "divergence_99",
        "same_top",
        "max_divergence",
    )
    for name, number in zip(names, numbers, strict=True):
        found[name] = Field(ValueType.FLOAT64, number)
    return {PREFIX + name: field for name, field in found.items()}


def fill_layout(plan: Plan, receipt: Receipt, digests: list[str]) -> Layout:
    """Return the plan's layout with the receipt in its metadata: the same sizes and offsets, other headers."""
    filled = plan.lay_out({**plan.metadata, **fields(receipt, digests)})
    before, after = ([(part.path, part.size, part.placements) for part in it.parts] for it in (plan.layout, filled))
    if before != after:
        raise AssertionError("a receipt must not move anything in the file")
    return filled


def unsealed_model(plan: Plan, output: OutputFiles) -> Model:
    """Return what was written so far under temporary names as a model; ``close`` it before the seal."""
    opened: list[PositionalFile] = []
    tensors: dict[str, Tensor] = {}
    for step in plan.steps:
        target = step.target
        file, offset = output.reader(target.name)
        opened.append(file)
        row_bytes = target.encoding.row_bytes(target.shape[-1] if target.shape else 1)
        read = partial(_read, file, offset, row_bytes, target.name)
        tensors[target.name] = Tensor(target.name, target.shape, target.encoding, read)

    def close() -> None:
        for file in opened:
            file.close()

    path = plan.layout.parts[0].path
    return Model(path=path, format="gguf", metadata=plan.metadata, tensors=tensors, close=close)


def _read(file: PositionalFile, offset: int, row_bytes: int, name: str, start: int, stop: int) -> NDArray[np.uint8]:
    data = np.empty((stop - start, row_bytes), np.uint8)
    file.read_into(data.reshape(-1).data, offset + start * row_bytes, name)
    return data
