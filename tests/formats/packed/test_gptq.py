"""GPTQ folders, packed by a straightforward packer, give exactly the packer's weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from packed_folders import gptq, packed_model

from qconv.formats.base import Model, OpenContext
from qconv.formats.huggingface import open_huggingface

pytestmark = pytest.mark.usefixtures("no_tokenizer")


def weights_of(model: Model, name: str) -> np.ndarray:
    tensor = model.tensors[name]
    return tensor.rows(0, tensor.row_count)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2", "gptq_p"])
def test_weights_are_the_packers(bits: int, layout: str, tmp_path: Path, context: OpenContext) -> None:
    settings = {"quant_method": "gptq", "bits": bits, "group_size": 32, "checkpoint_format": layout}
    truth = packed_model(tmp_path / "m", gptq(bits, 32, layout=layout, act_order=bits != 3), settings)
    with open_huggingface(tmp_path / "m", context) as model:
        for layer in (0, 1):
            found = weights_of(model, f"blk.{layer}.ffn_down.weight")
            np.testing.assert_array_equal(found, truth[f"model.layers.{layer}.mlp.down_proj.weight"])
        assert dict(model.container) == {"packing": "gptq", "bits": bits, "group_size": 32, "layout": layout}
        assert any(f"already quantized (GPTQ, {bits} bits, groups of 32)" in note for note in model.notes)
