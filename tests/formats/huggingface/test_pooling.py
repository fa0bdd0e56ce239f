"""What sentence-transformers' files say of pooling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qconv.errors import FormatError
from qconv.formats.huggingface.pooling import pooling_documents, read_pooling
from qconv.formats.metadata import uint32

POOLING = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}


def write(folder: Path, modules: object, pooling: dict[str, Any] | None = None) -> Path:
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    if pooling is not None:
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def test_nothing_is_said_where_nothing_is_known(tmp_path: Path) -> None:
    assert read_pooling(tmp_path, "bert") == ({}, ())
    assert read_pooling(write(tmp_path, [{"type": "Transformer", "path": ""}]), "bert") == ({}, ())


def test_pooling_that_gguf_cannot_say_is_a_note(tmp_path: Path) -> None:
    found, notes = read_pooling(write(tmp_path, [POOLING], {"pooling_mode_max_tokens": True}), "bert")
    assert not found
    assert "by max, which GGUF cannot say" in notes[0]


def test_two_ways_at_once_are_a_note(tmp_path: Path) -> None:
    both = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}
    found, notes = read_pooling(write(tmp_path, [POOLING], both), "bert")
    assert not found
    assert "by mean and cls" in notes[0]


def test_a_dense_module_is_a_note(tmp_path: Path) -> None:
    modules = [POOLING, {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]
    found, notes = read_pooling(write(tmp_path, modules, {"pooling_mode": "cls"}), "bert")
    assert found["bert.pooling_type"].value == 2
    assert "Dense" in notes[0]


@pytest.mark.parametrize("modules", [{}, [1], [{**POOLING, "path": "../elsewhere"}], [{**POOLING, "path": 3}]])
def test_malformed_lists_are_errors(modules: object, tmp_path: Path) -> None:
    with pytest.raises(FormatError):
        read_pooling(write(tmp_path, modules, {}), "bert")


@pytest.mark.parametrize("kind", [None, 0, 4, 99])
def test_no_pooling_makes_no_files(kind: int | None) -> None:
    """None is not known, 0 is none, and 4 ranks, for which sentence-transformers has other modules."""
    metadata = {} if kind is None else {"bert.pooling_type": uint32(kind)}
    assert pooling_documents(metadata, "bert", 8) == ({}, ())
