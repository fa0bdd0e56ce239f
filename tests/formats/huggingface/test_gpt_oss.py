"""gpt-oss: experts in MXFP4, and the same ones in BF16, where they lie transposed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_folder import CONFIGS, Stored, architecture_named, hf_shapes, random_weights, stored, write_folder
from packed_floats import E2M1

from qconv.formats.base import Model, OpenContext
from qconv.formats.huggingface import open_huggingface
from qconv.formats.metadata import Field

pytestmark = pytest.mark.usefixtures("no_tokenizer")

CONFIG: dict[str, Any] = CONFIGS["gpt-oss"] | {"hidden_size": 64, "intermediate_size": 32}


def packed(shape: tuple[int, ...], random: np.random.Generator) -> tuple[Stored, Stored, np.ndarray[Any, Any]]:
    """Return blocks and scales of a tensor (…, columns), and what they stand for."""
    groups = (*shape[:-1], shape[-1] // 32)
    blocks = random.integers(0, 256, (*groups, 16), np.uint8)
    scales = random.integers(120, 130, groups, np.uint8)
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*groups, 32)
    values = np.array(E2M1, np.float32)[codes] * np.exp2(scales.astype(np.float32) - 127)[..., None]
    return ("U8", blocks.shape, blocks.tobytes()), ("U8", scales.shape, scales.tobytes()), values.reshape(shape)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A folder with experts in MXFP4, and one with the same weights in BF16."""
    random = np.random.default_rng(3)
    architecture = architecture_named("gpt-oss")
    tensors = stored(random_weights(hf_shapes(architecture, CONFIG)))
    plain, small = dict(tensors), dict(tensors)
    for layer in range(2):
        for name, shape in (("gate_up_proj", (3, 64, 64)), ("down_proj", (3, 64, 32))):
            full = f"model.layers.{layer}.mlp.experts.{name}"
            blocks, scales, values = packed(shape, random)
            del small[full]
            small |= {f"{full}_blocks": blocks, f"{full}_scales": scales}
            plain |= stored({full: np.ascontiguousarray(values.swapaxes(1, 2))})
    one = write_folder(tmp_path / "mxfp4", CONFIG | {"quantization_config": {"quant_method": "mxfp4"}}, small)
    return one, write_folder(tmp_path / "bf16", CONFIG, plain)


def values_of(model: Model) -> dict[str, np.ndarray[Any, Any]]:
    return {name: it.rows(0, it.row_count).reshape(it.shape) for name, it in model.tensors.items()}


def keys_of(model: Model) -> dict[str, Field]:
    return {key: field for key, field in model.metadata.items() if key.startswith("gpt-oss.")}


def test_both_forms_are_one_model(folders: tuple[Path, Path], context: OpenContext) -> None:
    small, plain = folders
    with open_huggingface(small, context) as one, open_huggingface(plain, context) as other:
        assert keys_of(one) == keys_of(other)
        kinds = {name: tensor.encoding.name for name, tensor in one.tensors.items()}
        assert {name for name, kind in kinds.items() if kind == "MXFP4"} == {
            f"blk.{layer}.ffn_{kind}_exps.weight" for layer in range(2) for kind in ("gate", "up", "down")
        }
        assert {tensor.encoding.name for tensor in other.tensors.values()} == {"BF16"}
        mine, theirs = values_of(one), values_of(other)
    assert mine.keys() == theirs.keys()
    for name, values in mine.items():
        assert np.array_equal(values, theirs[name]), name


def test_even_rows_are_the_gate(folders: tuple[Path, Path], context: OpenContext) -> None:
    with open_huggingface(folders[1], context) as model:
        found = values_of(model)
    weights = random_weights(hf_shapes(architecture_named("gpt-oss"), CONFIG))
    bias = weights["model.layers.1.mlp.experts.gate_up_proj_bias"]
    assert np.array_equal(found["blk.1.ffn_gate_exps.bias"], bias[:, ::2])
    assert np.array_equal(found["blk.1.ffn_up_exps.bias"], bias[:, 1::2])
    assert found["blk.1.ffn_gate_exps.weight"].shape == (3, 32, 64)
    assert found["blk.1.ffn_down_exps.weight"].shape == (3, 64, 32)
