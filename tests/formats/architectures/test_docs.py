"""docs/architectures.md names every family, key and transform."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from qconv.formats.architectures import (
    TRANSFORMS,
    Architecture,
    Check,
    Dropped,
    HyperParameter,
    Measured,
    Rope,
    RuntimeFacts,
    TensorMap,
    built_in_architectures,
)

# attributes whose JSON key is another word, or none
_OTHER = {"shapes": "shape"}
_NOT_KEYS = {(HyperParameter, "name"), (HyperParameter, "required")}
KINDS = (Architecture, HyperParameter, Measured, Check, Rope, TensorMap, Dropped, RuntimeFacts)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_key_is_described(kind: type, root: Path) -> None:
    text = (root / "docs" / "architectures.md").read_text()
    names = [_OTHER.get(item.name, item.name) for item in fields(kind) if (kind, item.name) not in _NOT_KEYS]
    assert [name for name in names if f"`{name}`" not in text] == []


def test_every_family_and_transform_is_described(root: Path) -> None:
    lines = (root / "docs" / "architectures.md").read_text().splitlines()
    described = {line.split("`")[1] for line in lines if line.startswith("| `")}
    assert {architecture.name for architecture in built_in_architectures()} <= described
    assert set(TRANSFORMS) <= described
