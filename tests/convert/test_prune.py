"""``--prune-layers``: names, metadata and importance follow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from qconv_encodings import ENCODINGS

from qconv.convert.prune import parse_layers, prune_importance, prune_layers
from qconv.errors import ModelError, UsageError
from qconv.formats.base import Model, Tensor
from qconv.formats.metadata import Field, ValueType, boolean, numbers, string, uint32
from qconv.quantizers.importance import ImportanceEntry, ImportanceMatrix


def tensor(name: str, value: int) -> Tensor:
    """A vector whose bytes tell which it was."""

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        return np.full((stop - start, 4), value, np.uint8)

    return Tensor(name, (1,), ENCODINGS["F32"], read)


def model(**more: Field) -> Model:
    """Four blocks."""
    metadata = {
        "general.architecture": string("x"),
        "x.block_count": uint32(4),
        "x.leading_dense_block_count": uint32(2),
        "x.nextn_predict_layers": uint32(1),
        "x.attention.head_count_kv": numbers([0, 8, 16, 32], ValueType.INT32),
        "x.rope.dimension_sections": numbers([1, 2, 3, 4], ValueType.INT32),
        "x.context_length": uint32(64),
        "tokenizer.ggml.add_bos_token": boolean(True),
        "tokenizer.ggml.token_type": numbers([1, 1, 1, 1], ValueType.INT32),
        **more,
    }
    found = [tensor(f"blk.{block}.{part}.weight", block) for block in range(4) for part in ("a", "blk.1.b")]
    return Model(Path("m"), "test", metadata, {t.name: t for t in [tensor("output.weight", 9), *found]})


def values(found: Model, key: str) -> list[int]:
    """An array of the metadata."""
    array = found.metadata[key].value
    assert isinstance(array, np.ndarray)
    return [int(item) for item in array]


def test_blocks_are_dropped_and_numbered_anew() -> None:
    found = prune_layers(model(), frozenset({0, 2}))
    read = {name: (t.name, int(t.read(0, 1)[0, 0])) for name, t in found.tensors.items()}
    assert read == {
        "output.weight": ("output.weight", 9),
        "blk.0.a.weight": ("blk.0.a.weight", 1),
        "blk.0.blk.1.b.weight": ("blk.0.blk.1.b.weight", 1),
        "blk.1.a.weight": ("blk.1.a.weight", 3),
        "blk.1.blk.1.b.weight": ("blk.1.blk.1.b.weight", 3),
    }
    assert found.notes == ("2 of 4 layers are left out; anything that goes by a layer's number goes by the new ones",)


def test_metadata_follows() -> None:
    found = prune_layers(model(), frozenset({0, 3}))
    assert list(found.metadata) == list(model().metadata)
    scalars = ("x.block_count", "x.leading_dense_block_count", "x.nextn_predict_layers", "x.context_length")
    assert [found.metadata[key].value for key in scalars] == [2, 1, 0, 64]
    assert values(found, "x.attention.head_count_kv") == [8, 16]
    assert values(found, "x.rope.dimension_sections") == [1, 2, 3, 4]
    assert values(found, "tokenizer.ggml.token_type") == [1, 1, 1, 1]


def test_importance_follows() -> None:
    entries = {
        name: ImportanceEntry(np.full((1, 2), i, np.float32), np.ones(1))
        for i, name in enumerate(("blk.0.a.weight", "blk.1.a.weight", "blk.3.a.weight", "output.weight"))
    }
    found = prune_importance(ImportanceMatrix(entries), 4, frozenset({0, 2}))
    assert {name: int(e.sums[0, 0]) for name, e in found.entries.items()} == {
        "blk.0.a.weight": 1,
        "blk.1.a.weight": 2,
        "output.weight": 3,
    }


def test_lists_of_layers() -> None:
    assert parse_layers(" 1, 3,5-7 ") == {1, 3, 5, 6, 7}
    for text in ("", "a", "1,", "3-1", "-1", "1-", "99999999"):
        with pytest.raises(UsageError, match="no list of layers"):
            parse_layers(text)


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="no layer 4 to prune; the model has layers 0 to 3"):
        prune_layers(model(), frozenset({4}))
    with pytest.raises(UsageError, match="no layer at all"):
        prune_layers(model(), frozenset(range(4)))
    with pytest.raises(ModelError, match="block_count"):
        prune_layers(Model(Path("m"), "test", {}, {}), frozenset({0}))
