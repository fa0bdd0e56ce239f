"""Random models of transformers in native form: llama.cpp, transformers and qconv's own forward pass agree on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from f32_gguf import write_f32
from huggingface_folder import stored
from llamacpp_models import logits
from mistral_files import SHARDS, SINGLE, Floats, native_parameters, native_weights, write_native
from tiny_networks import open_folder
from transformers_models import LATENT, MISTRAL4, PROMPTS, UNSCALED, Case, case, expected, log_softmax, save, yarn

import qconv
from qconv.errors import MissingTensorError, ShapeError
from qconv.formats.base import Model, OpenContext
from qconv.formats.mistral import open_mistral
from qconv.runtime.building.network import load_network
from qconv.runtime.forward import forward

TOLERANCE = 2e-2  # of log-probabilities; measured: below 4e-6
RUNTIME_TOLERANCE = 2e-5  # of the largest logit
TEMPERED = yarn(original_max_position_embeddings=16, llama_4_scaling_beta=0.3)
SCALED = {"mscale": 1.0, "mscale_all_dim": 1.0}
LARGE = LATENT | {"n_shared_experts": 1, "q_lora_rank": 48, "tie_word_embeddings": False}

CASES = (
    case("mistral", "MistralForCausalLM", head_dim=32, sliding_window=None),
    case("mistral-tied", "MistralForCausalLM", head_dim=16, sliding_window=None, tie_word_embeddings=True),
    case("medium-yarn", "MistralForCausalLM", head_dim=32, sliding_window=None, rope_parameters=yarn(beta_fast=4.0)),
    case("mixtral", "MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2),
    case("ministral3", "Ministral3ForCausalLM", head_dim=32, rope_parameters=TEMPERED | SCALED),
    case("ministral3-scaled", "Ministral3ForCausalLM", head_dim=32, rope_parameters=TEMPERED),
    case("large3", "Mistral4ForCausalLM", **LARGE, rope_parameters=UNSCALED),
    case("large3-groups", "Mistral4ForCausalLM", **LARGE | {"n_routed_experts": 8}, n_group=4, topk_group=2, rope_parameters=UNSCALED),
    case("small4-scaled", "Mistral4ForCausalLM", **LARGE | {"first_k_dense_replace": 0}, rope_parameters=MISTRAL4),
)  # fmt: skip

pytestmark = [pytest.mark.oracles, pytest.mark.filterwarnings("ignore")]


def state(model: Any) -> dict[str, Floats]:
    return {name: tensor.numpy().astype("<f4") for name, tensor in model.state_dict().items()}


def written(folder: Path, model: Any, shards: tuple[str, ...] = SINGLE, *, older: bool = False) -> Path:
    config = model.config.to_dict()
    weights = native_weights(state(model), config, older=older)
    return write_native(folder, native_parameters(config), stored(weights, "F32"), shards)


def check_forward(model: Model, reference: Any) -> None:
    """Demand the reference's logits of qconv's own forward pass."""
    import torch

    network = load_network(model)
    for prompt in PROMPTS:
        (found,) = [block.logits for block in forward(network, [prompt])]
        with torch.no_grad():
            wanted = np.asarray(reference(torch.tensor([prompt])).logits[0].float().numpy())
        assert np.abs(found - wanted).max() / np.abs(wanted).max() < RUNTIME_TOLERANCE


def check_llama_cpp(model: Model, reference: Any, path: Path) -> None:
    write_f32(path, model)
    worst = 0.0
    for prompt in PROMPTS:
        wanted = expected(reference, prompt)
        assert wanted.std() > 0.5, "the reference must not be flat, or the comparison says nothing"
        worst = max(worst, float(np.abs(log_softmax(logits(path, prompt)) - wanted).max()))
    print(f"{path.parent.name}: {worst:.2e}")
    assert worst < TOLERANCE


@pytest.mark.parametrize("model_case", CASES, ids=lambda item: item.name)
def test_everybody_agrees(model_case: Case, tmp_path: Path, context: OpenContext) -> None:
    reference = save(tmp_path / "hf", model_case)
    folder = written(tmp_path / "native", reference, SHARDS)
    with open_mistral(folder, context) as model:
        check_llama_cpp(model, reference, tmp_path / "model.gguf")
        check_forward(model, reference)


@pytest.mark.parametrize("model_case", CASES, ids=lambda item: item.name)
def test_the_same_tensors_as_from_the_hugging_face_folder(
    model_case: Case, tmp_path: Path, context: OpenContext
) -> None:
    """Every tensor bit for bit, and every key of the architecture."""
    reference = save(tmp_path / "hf", model_case)
    folder = written(tmp_path / "native", reference)
    with open_mistral(folder, context) as native, open_folder(tmp_path / "hf") as other:
        assert native.tensors.keys() == other.tensors.keys()
        for name, tensor in native.tensors.items():
            twin = other.tensors[name]
            assert (tensor.shape, tensor.encoding.name) == (twin.shape, twin.encoding.name)
            assert tensor.read(0, tensor.row_count).tobytes() == twin.read(0, twin.row_count).tobytes(), name
        prefix = f"{native.architecture}."
        assert {key: it for key, it in native.metadata.items() if key.startswith(prefix)} == {
            key: it for key, it in other.metadata.items() if key.startswith(prefix)
        }


@pytest.mark.parametrize("way", ["directly", "through GGUF"])
@pytest.mark.parametrize("model_case", CASES, ids=lambda item: item.name)
def test_transformers_loads_what_becomes_of_it(model_case: Case, way: str, tmp_path: Path) -> None:
    import torch
    import transformers

    reference = save(tmp_path / "hf", model_case)
    source = written(tmp_path / "native", reference)
    if way != "directly":
        qconv.convert_model(source, tmp_path / "model.gguf", "f32")
        source = tmp_path / "model.gguf"
    qconv.convert_model(source, tmp_path / "out", to="huggingface")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [model_case.class_name]
    kind = getattr(transformers, model_case.class_name)  # the automatic classes do not know all of them
    model = kind.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert state(model).keys() == state(reference).keys()
    for name, array in state(model).items():
        np.testing.assert_array_equal(array, state(reference)[name], err_msg=name)
    for prompt in PROMPTS:
        np.testing.assert_allclose(expected(model, prompt), expected(reference, prompt), atol=1e-6)


def test_mixtral_has_had_two_sets_of_names(tmp_path: Path, context: OpenContext) -> None:
    reference = save(tmp_path / "hf", next(it for it in CASES if it.name == "mixtral"))
    newer = written(tmp_path / "newer", reference)
    older = written(tmp_path / "older", reference, older=True)
    with open_mistral(newer, context) as one, open_mistral(older, context) as other:
        assert one.tensors.keys() == other.tensors.keys()
        for name, tensor in one.tensors.items():
            twin = other.tensors[name]
            assert tensor.read(0, tensor.row_count).tobytes() == twin.read(0, twin.row_count).tobytes()


@pytest.mark.parametrize("name", ["mistral", "large3"])
def test_eight_bit_floats(name: str, tmp_path: Path, context: OpenContext) -> None:
    """Weights times their scale, one for each tensor; what transformers makes of the products is what llama.cpp makes of the folder."""
    import torch

    reference = save(tmp_path / "hf", next(it for it in CASES if it.name == name))
    config = reference.config.to_dict()
    weights = native_weights(state(reference), config)
    packed = stored(weights, "F32")
    plain = dict(weights)
    for key, matrix in weights.items():
        inner = key.startswith("layers.") and matrix.ndim == 2 and not key.endswith(".gate.weight")
        if inner:
            scale = np.float32(np.abs(matrix).max() / 448)
            codes = torch.from_numpy(matrix / scale).to(torch.float8_e4m3fn)
            packed[key] = ("F8_E4M3", matrix.shape, codes.view(torch.uint8).numpy().tobytes())
            packed[key.removesuffix("weight") + "qscale_weight"] = ("F32", (), scale.tobytes())
            packed[key.removesuffix("weight") + "qscale_act"] = ("F32", (), np.float32(0.5).tobytes())
            plain[key] = codes.float().numpy() * scale
    parameters = native_parameters(config) | {"quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}}
    write_native(tmp_path / "packed", parameters, packed, SHARDS)
    write_native(tmp_path / "plain", native_parameters(config), stored(plain, "F32"))
    with open_mistral(tmp_path / "packed", context) as model, open_mistral(tmp_path / "plain", context) as other:
        assert any("already quantized (FP8, E4M3)" in note for note in model.notes)
        assert model.container["packing"] == "fp8"
        assert model.tensors.keys() == other.tensors.keys()
        for label, tensor in model.tensors.items():
            twin = other.tensors[label]
            np.testing.assert_array_equal(tensor.rows(0, tensor.row_count), twin.rows(0, twin.row_count))
        qconv.convert_model(tmp_path / "plain", tmp_path / "out", to="huggingface")
        quantized = type(reference).from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
        check_llama_cpp(model, quantized, tmp_path / "model.gguf")


@pytest.mark.parametrize("names", [("consolidated.00.pth",), ("consolidated.00.pt", "consolidated.01.pt")])
def test_mixtral_of_the_first_release(names: tuple[str, ...], tmp_path: Path, context: OpenContext) -> None:
    """The matrices of a layer's experts lie below each other in one tensor of torch's files, the last ones transposed."""
    import torch

    reference = save(tmp_path / "hf", next(it for it in CASES if it.name == "mixtral"))
    config = reference.config.to_dict()
    weights = native_weights(state(reference), config, older=True)
    fused: dict[str, list[Floats]] = {}
    for name in sorted(name for name in weights if ".experts." in name):
        layer, part = name.split(".")[1], name.split(".")[-2]
        matrix = weights.pop(name)
        fused.setdefault(f"layers.{layer}.block_sparse_moe.{part}", []).append(matrix.T if part == "w2" else matrix)
    first = {name.replace("feed_forward.gate", "block_sparse_moe.gate"): array for name, array in weights.items()}
    first |= {name: np.concatenate(matrices) for name, matrices in fused.items()}
    assert first["layers.0.block_sparse_moe.w2"].shape == (4 * config["intermediate_size"], config["hidden_size"])
    folder = tmp_path / "native"
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(native_parameters(config)))
    for number, file in enumerate(names):
        some = list(first.items())[number :: len(names)]
        torch.save({name: torch.from_numpy(array) for name, array in some}, folder / file)
    with qconv.open(folder) as native, open_folder(tmp_path / "hf") as other:
        assert native.format == "mistral"
        assert native.tensors.keys() == other.tensors.keys()
        for name, tensor in native.tensors.items():
            twin = other.tensors[name]
            assert (tensor.shape, tensor.encoding.name) == (twin.shape, twin.encoding.name)
            assert tensor.read(0, tensor.row_count).tobytes() == twin.read(0, twin.row_count).tobytes(), name
            rows = tensor.row_count // 3, tensor.row_count // 2
            assert tensor.read(*rows).tobytes() == twin.read(*rows).tobytes(), name
        check_forward(native, reference)
    (folder / names[-1]).unlink()
    if len(names) > 1:
        with pytest.raises(MissingTensorError, match="weight file is missing"):
            open_mistral(folder, context)
    torch.save({"layers.0.block_sparse_moe.w1": torch.zeros(6, 3)}, folder / names[0])
    with pytest.raises(ShapeError, match="4 experts"):
        open_mistral(folder, context)
