"""Packed folders as their formats are published: dequantized by torch, run by transformers, and the same predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers_models import case, expected, log_softmax, save

from qconv.convert.packed.folder import PackedRequest, plan_packed, run_packed
from qconv.convert.settings import Settings
from qconv.formats.base import Model
from qconv.plugins.manager import load_plugins
from qconv.runtime.building.network import load_network
from qconv.runtime.forward import forward

pytestmark = pytest.mark.oracles

REGISTRIES = load_plugins("").registries()
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46]
WIDE = {"intermediate_size": 96, "hidden_size": 64}
CASES = (
    case("llama", "LlamaForCausalLM", **WIDE),
    case("qwen2", "Qwen2ForCausalLM", **WIDE),
    case("gemma2", "Gemma2ForCausalLM", **WIDE, head_dim=32, query_pre_attn_scalar=32, sliding_window=8),
)


def open_source(folder: Path) -> Model:
    from tiny_networks import open_folder

    return open_folder(folder)


def dequantized(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's tensors by the published formulas, in torch."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    found: dict[str, Any] = {name: it.float() for name, it in tensors.items() if it.dtype == torch.float16}
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    for name in [name for name in tensors if name.endswith(".qweight")]:
        module = name.removesuffix(".qweight")
        qweight, qzeros = tensors[name], tensors[f"{module}.qzeros"]
        scales = found.pop(f"{module}.scales")
        zeros = (qzeros[:, :, None] >> shifts[None, None, :]) & 15
        if settings["quant_method"] == "gptq":
            codes = ((qweight[:, None, :] >> shifts[None, :, None]) & 15).reshape(-1, qweight.shape[1])
            points = (zeros.reshape(len(qzeros), -1) + 1) & 15
            groups = tensors[f"{module}.g_idx"].long()
        else:
            order = [0, 4, 1, 5, 2, 6, 3, 7]
            codes = ((qweight[:, :, None] >> shifts[None, None, :]) & 15)[:, :, order].reshape(len(qweight), -1)
            points = zeros[:, :, order].reshape(len(qzeros), -1)
            groups = torch.arange(len(qweight)) // settings["group_size"]
        found[f"{module}.weight"] = (scales[groups] * (codes - points[groups])).T.contiguous()
    return found


@pytest.mark.parametrize("packing", ["gptq", "awq"])
@pytest.mark.parametrize("model_case", CASES, ids=lambda it: it.name)
def test_predictions_are_those_of_transformers(model_case: Any, packing: Any, tmp_path: Path) -> None:
    import transformers

    save(tmp_path / "source", model_case)
    with open_source(tmp_path / "source") as source:
        planned = plan_packed(source, tmp_path / "out", PackedRequest(packing, group_size=32), Settings(), REGISTRIES)
        run_packed(planned, False, lambda count: None)
    kind = getattr(transformers, model_case.class_name)
    model = kind(kind.config_class(**model_case.config)).eval()
    missing, unexpected = model.load_state_dict(dequantized(tmp_path / "out"), strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    with open_source(tmp_path / "out") as packed:
        rows = np.concatenate([it.logits for it in forward(load_network(packed), [PROMPT])])
    np.testing.assert_allclose(log_softmax(rows), expected(model, PROMPT), atol=2e-3)


@pytest.mark.parametrize("packing", ["gptq", "awq"])
def test_transformers_reads_the_settings(packing: Any, tmp_path: Path) -> None:
    from transformers.utils.quantization_config import AwqConfig, GPTQConfig

    save(tmp_path / "source", CASES[0])
    with open_source(tmp_path / "source") as source:
        planned = plan_packed(source, tmp_path / "out", PackedRequest(packing, group_size=32), Settings(), REGISTRIES)
        run_packed(planned, False, lambda count: None)
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    config = (GPTQConfig if packing == "gptq" else AwqConfig).from_dict(settings)
    assert (config.bits, config.group_size) == (4, 32)
    assert str(config.quant_method.value) == packing
