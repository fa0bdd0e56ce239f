"""Real llama.cpp's plans: every tensor of three models under every type, with and without an importance matrix."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from qconv.errors import EncodingError
from qconv.quantizers.recipes import RecipeRequest, TensorInfo, choose_types, model_facts, recipes


def planned(plan: dict[str, list[int]]) -> dict[int, str]:
    """Encodings by tensor index."""
    return {index: encoding for encoding, indices in plan.items() for index in indices}


@pytest.mark.shared
@pytest.mark.parametrize("model", ["llama8b", "mixtral", "smol"])
def test_compat_reproduces_every_plan(shared: Path, model: str) -> None:
    with lzma.open(shared / "fixtures" / "recipes" / "llama.cpp-plans.json.xz") as file:
        recorded: dict[str, Any] = json.load(file)[model]
    tensors = [TensorInfo(name, tuple(shape), source) for name, shape, source in recorded["tensors"]]
    facts = model_facts({"general.architecture": recorded["architecture"], **recorded["metadata"]})
    assert {key.removesuffix("+imatrix") for key in recorded["plans"]} == set(recipes()) - {"COPY"}
    for key, plan in recorded["plans"].items():
        importance = frozenset({"blk.0.attn_q.weight"}) if key.endswith("+imatrix") else frozenset[str]()
        request = RecipeRequest(key.removesuffix("+imatrix"), compat=True, importance=importance)
        if "error" in plan:
            with pytest.raises(EncodingError):
                choose_types(tensors, facts, request)
        else:
            choices = choose_types(tensors, facts, request)
            assert {i: c.encoding for i, c in enumerate(choices)} == planned(plan), key
