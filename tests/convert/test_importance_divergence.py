"""Importance brings the example nearer to its source than none does, by KL divergence, for every type that can do without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from measuring import PROSE, subject
from numpy.typing import NDArray
from qconv_encodings import ENCODINGS

from qconv.convert.measure import Cut, Subject, cut_text
from qconv.formats.base import Tensor
from qconv.quantizers.base import Encoding
from qconv.quantizers.importance import ImportanceMatrix
from qconv.runtime.building.network import load_network
from qconv.runtime.forward import forward
from qconv.runtime.measuring.divergence import compare, log_probabilities
from qconv.runtime.measuring.identity import read_text
from qconv.runtime.measuring.importance import ImportanceCollector
from qconv.runtime.measuring.perplexity import batches, scored_rows

CUT = Cut(128)  # seven windows, 441 predictions

Divergence = Callable[[Encoding, bool], float]


def _bytes(data: NDArray[np.uint8], start: int, stop: int) -> NDArray[np.uint8]:
    return data[start:stop]


def _encoded(tensor: Tensor, encoding: Encoding, importance: NDArray[np.float32] | None) -> Tensor:
    data = encoding.encode(tensor.rows(0, tensor.row_count), importance)
    return replace(tensor, encoding=encoding, read=partial(_bytes, data))


def _measurement(found: Subject) -> Divergence:
    windows = cut_text(found, read_text(PROSE), CUT)
    collector = ImportanceCollector(found.model, skip_first=windows.bos is not None)
    for batch in batches(windows):
        sequences = [windows.evaluated[number] for number in batch]
        for _ in forward(found.network, sequences, wanted=slice(0), collector=collector):
            pass
    matrix = ImportanceMatrix(collector.entries())
    base = [(log_probabilities(rows.logits), rows.targets) for rows in scored_rows(found.network, windows)]

    def divergence(encoding: Encoding, weighted: bool) -> float:
        tensors = dict(found.model.tensors)
        for name in matrix.entries:
            vector = matrix.vector(name, tensors[name].shape[-1]) if weighted else None
            tensors[name] = _encoded(tensors[name], encoding, vector)
        rows = scored_rows(load_network(replace(found.model, tensors=tensors)), windows)
        pairs = zip(base, rows, strict=True)
        return float(np.concatenate([compare(p, it.logits, right).divergence for (p, right), it in pairs]).mean())

    return divergence


@pytest.fixture(scope="module")
def divergence(root: Path) -> Iterator[Divergence]:
    """Return the mean divergence of the example with all matrices of its blocks in one encoding, with or without importance."""
    with subject(root / "examples" / "prose-llama-7m") as found:
        yield _measurement(found)


@pytest.mark.parametrize("name", ["Q4_0", "Q2_K", "Q3_K", "Q4_K", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"])
def test_importance_lowers_the_divergence(name: str, divergence: Divergence) -> None:
    without, with_it = divergence(ENCODINGS[name], False), divergence(ENCODINGS[name], True)
    print(f"{name}: {without:.5f} without, {with_it:.5f} with importance")
    assert with_it < without
