"""Whole folders of bitsandbytes, compressed-tensors, FP8 and four-bit floats: opened, inspected and converted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from huggingface_folder import CONFIGS, architecture_named, hf_shapes, random_weights, write_folder
from packed_floats import (
    bitsandbytes_4bit,
    bitsandbytes_int8,
    float8_blocks,
    mxfp4,
    nvfp4,
    word_integers,
)
from packed_folders import SIZES, Floats, Packer, is_linear, packed_model, packed_tensors
from run_cli import Cli

from qconv.formats.base import Model, OpenContext, Tensor
from qconv.formats.gguf import open_gguf
from qconv.formats.huggingface import open_huggingface
from qconv.formats.scales import fold_scales

CT = {"quant_method": "compressed-tensors"}
BNB = {"quant_method": "bitsandbytes"}
CASES: dict[str, tuple[Packer, dict[str, Any], str]] = {
    "bnb-nf4": (bitsandbytes_4bit(nested=256), BNB | {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "BF16"),
    "bnb-fp4": (bitsandbytes_4bit("fp4", dtype="float16"), BNB | {"load_in_4bit": True}, "F16"),
    "bnb-int8": (bitsandbytes_int8, BNB | {"load_in_8bit": True}, "F32"),
    "ct-int4": (word_integers(4, 32), CT | {"format": "pack-quantized"}, "BF16"),
    "ct-int8": (word_integers(8, None, symmetric=False), CT | {"format": "pack-quantized"}, "BF16"),
    "ct-fp8": (float8_blocks((1, 1 << 20), ".weight_scale"), CT | {"format": "float-quantized"}, "F32"),
    "ct-nvfp4": (nvfp4("compressed-tensors"), CT | {"format": "nvfp4-pack-quantized"}, "NVFP4"),
    "ct-mxfp4": (mxfp4, CT | {"format": "mxfp4-pack-quantized"}, "MXFP4"),
    "fp8": (float8_blocks((32, 32)), {"quant_method": "fp8", "weight_block_size": [32, 32]}, "F32"),
    "fp8-powers": (float8_blocks((32, 32), dtype="U8"), {"quant_method": "fp8", "scale_fmt": "ue8m0"}, "BF16"),
    "modelopt-nvfp4": (nvfp4(), {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4"),
    "modelopt-fp8": (float8_blocks((1 << 20, 1 << 20), ".weight_scale"), {"quant_method": "modelopt"}, "F32"),
}
WIDE: dict[str, Any] = {"intermediate_size": 128}  # whole blocks of 64 in every projection
COPIED = {
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.down_proj": "ffn_down",
    "mlp.up_proj": "ffn_up",
}
Folder = Callable[..., tuple[Path, dict[str, Floats]]]
anonymous = pytest.mark.usefixtures("no_tokenizer")


def rows(tensor: Tensor) -> np.ndarray:
    return tensor.rows(0, tensor.row_count)


def check(model: Model, truth: dict[str, Floats], encoding: str | None = None) -> None:
    """Compare the projections that keep their rows with the packer's weights, which are without the scales of tensors."""
    for layer in range(2):
        for theirs, ours in COPIED.items():
            tensor = model.tensors[f"blk.{layer}.{ours}.weight"]
            np.testing.assert_array_equal(rows(tensor), truth[f"model.layers.{layer}.{theirs}.weight"])
            assert encoding is None or tensor.encoding.name == encoding


@anonymous
@pytest.mark.parametrize("case", CASES)
def test_weights_of_a_whole_model(case: str, tmp_path: Path, context: OpenContext) -> None:
    pack, settings, encoding = CASES[case]
    truth = packed_model(tmp_path / "m", pack, settings, **WIDE)
    with open_huggingface(tmp_path / "m", context) as model:
        check(model, truth, encoding)
        assert any(note.startswith("the source was already quantized (") for note in model.notes)
        assert model.container["packing"] == settings["quant_method"]
        scales = {name for name in model.tensors if name.endswith(".scale")}
        projections = {name for name, tensor in model.tensors.items() if tensor.encoding.name == "NVFP4"}
        assert scales == {name.replace(".weight", ".scale") for name in projections}
        assert len(projections) == (14 if encoding == "NVFP4" else 0)


@anonymous
@pytest.mark.parametrize("case", [case for case in CASES if case not in ("ct-fp8", "modelopt-fp8")])
def test_folders_without_settings(case: str, tmp_path: Path, context: OpenContext) -> None:
    pack, _, encoding = CASES[case]
    truth = packed_model(tmp_path / "m", pack, None, **WIDE)
    with open_huggingface(tmp_path / "m", context) as model:
        check(model, truth, encoding)


@anonymous
def test_settings_in_modelopts_own_file(tmp_path: Path, context: OpenContext) -> None:
    truth = packed_model(tmp_path / "m", CASES["modelopt-nvfp4"][0], None, **WIDE)
    own = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}}
    (tmp_path / "m" / "hf_quant_config.json").write_text(json.dumps(own))
    with open_huggingface(tmp_path / "m", context) as model:
        check(model, truth, "NVFP4")


@anonymous
def test_scales_in_another_file_than_their_weights(tmp_path: Path, context: OpenContext) -> None:
    pack, settings, _ = CASES["fp8"]
    full = CONFIGS["llama"] | SIZES | WIDE | {"quantization_config": settings}
    tensors, truth = packed_tensors(random_weights(hf_shapes(architecture_named("llama"), full)), pack)
    order = sorted(tensors, key=lambda name: name.endswith("_scale_inv"))
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    write_folder(tmp_path / "m", full, {name: tensors[name] for name in order}, shards)
    with open_huggingface(tmp_path / "m", context) as model:
        check(model, truth)


@anonymous
def test_the_scales_of_experts_become_one_tensor(tmp_path: Path, context: OpenContext) -> None:
    config = CONFIGS["mixtral"] | SIZES | WIDE | {"quantization_config": CASES["modelopt-nvfp4"][1]}
    weights = random_weights(hf_shapes(architecture_named("mixtral"), config))
    tensors, truth = packed_tensors(weights, nvfp4(), lambda name: ".experts." in name)
    with open_huggingface(write_folder(tmp_path / "m", config, tensors), context) as model:
        for theirs, ours in (("w1", "ffn_gate_exps"), ("w2", "ffn_down_exps")):
            stem = "model.layers.1.block_sparse_moe.experts"
            expected = [np.frombuffer(tensors[f"{stem}.{e}.{theirs}.weight_scale_2"][2], "<f4")[0] for e in range(3)]
            scale = model.tensors[f"blk.1.{ours}.scale"]
            assert (scale.shape, scale.encoding.name) == ((3,), "F32")
            np.testing.assert_array_equal(rows(scale)[0], expected)
            stack = model.tensors[f"blk.1.{ours}.weight"]
            assert stack.encoding.name == "NVFP4"
            codes = np.stack([truth[f"{stem}.{e}.{theirs}.weight"] for e in range(3)])
            np.testing.assert_array_equal(rows(stack).reshape(codes.shape), codes)
            whole = fold_scales(model.tensors)[f"blk.1.{ours}.weight"]
            np.testing.assert_array_equal(
                rows(whole).reshape(codes.shape), codes * np.array(expected, np.float32)[:, None, None]
            )


@anonymous
@pytest.mark.parametrize("equal", [True, False])
def test_halves_of_a_fused_tensor_share_its_scale(equal: bool, tmp_path: Path, context: OpenContext) -> None:
    """Phi-3 has query, key and value in one tensor, and so has GGUF; there is nothing to split, and one scale."""
    config = CONFIGS["phi3"] | SIZES | WIDE | {"quantization_config": CASES["modelopt-nvfp4"][1]}
    weights = random_weights(hf_shapes(architecture_named("phi3"), config))
    tensors, truth = packed_tensors(weights, nvfp4(with_scale=equal))
    with open_huggingface(write_folder(tmp_path / "m", config, tensors), context) as model:
        np.testing.assert_array_equal(
            rows(model.tensors["blk.0.attn_qkv.weight"]), truth["model.layers.0.self_attn.qkv_proj.weight"]
        )
        assert ("blk.0.attn_qkv.scale" in model.tensors) is equal


# --- the command line ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(example_model: Path, tmp_path: Path) -> Folder:
    """Writes a model with the example's tokenizer."""

    def write(case: str, factor: float = 1.0, **sizes: int) -> tuple[Path, dict[str, Floats]]:
        pack, settings, _ = CASES[case]
        config = CONFIGS["llama"] | SIZES | WIDE | {"vocab_size": 4096, "quantization_config": settings} | sizes
        weights = random_weights(hf_shapes(architecture_named("llama"), config))
        scaled = {name: array * np.float32(factor if is_linear(name) else 1) for name, array in weights.items()}
        tensors, truth = packed_tensors(scaled, pack)
        write_folder(tmp_path / "m", config, tensors)
        for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
            shutil.copy(example_model / name, tmp_path / "m" / name)
        return tmp_path / "m", truth

    return write


def whole(folder: Path, truth: dict[str, Floats]) -> dict[str, Floats]:
    """Return the weights with the scales of ModelOpt's tensors folded in."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "numpy") as file:
        names = set(file.keys())
        return {
            name: array * file.get_tensor(f"{name}_scale_2") if f"{name}_scale_2" in names else array
            for name, array in truth.items()
        }


@pytest.mark.parametrize("case", ["bnb-nf4", "ct-int4", "fp8"])
def test_conversion_and_inspection(
    case: str,
    folder: Folder,
    context: OpenContext,
    cli: Cli,
    tmp_path: Path,
) -> None:
    path, truth = folder(case)
    shown = json.loads(cli("inspect", path, "--json").out)
    assert shown["container"]["packing"] == CASES[case][1]["quant_method"]
    done = cli("hf-to-gguf", path, "-o", tmp_path / "m.gguf", "--type", "f32")
    assert done.code == 0, done.err
    assert "already quantized" in " ".join((done.out + done.err).split())
    with open_gguf(tmp_path / "m.gguf", context) as model:
        check(model, truth)


@pytest.mark.parametrize("case", ["modelopt-nvfp4", "ct-nvfp4", "ct-mxfp4"])
def test_four_bit_floats_go_over_without_loss(case: str, folder: Folder, cli: Cli, tmp_path: Path) -> None:
    path, truth = folder(case)
    done = cli("hf-to-gguf", path, "-o", tmp_path / "m.gguf", "--type", "auto")
    assert done.code == 0, done.err
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    for layer in range(2):
        for theirs, ours in COPIED.items():
            tensor = tensors[f"blk.{layer}.{ours}.weight"]
            assert tensor.tensor_type.name == CASES[case][2]
            decoded = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_array_equal(decoded, truth[f"model.layers.{layer}.{theirs}.weight"])
            if "nvfp4" in case:
                scale = tensors[f"blk.{layer}.{ours}.scale"]
                assert (scale.tensor_type.name, scale.shape.tolist()) == ("F32", [1])


@pytest.mark.parametrize("target", ["f32", "q8_0"])
def test_scales_are_folded_in_where_the_encoding_changes(
    target: str, folder: Folder, cli: Cli, tmp_path: Path, context: OpenContext
) -> None:
    path, truth = folder("modelopt-nvfp4")
    first = cli("hf-to-gguf", path, "-o", tmp_path / "a.gguf", "--type", target, "--allow-requantize")
    assert first.code == 0, first.err
    kept = cli("hf-to-gguf", path, "-o", tmp_path / "kept.gguf", "--type", "auto")
    assert kept.code == 0, kept.err
    second = cli("quantize", tmp_path / "kept.gguf", tmp_path / "b.gguf", "--type", target, "--allow-requantize")
    assert second.code == 0, second.err
    expected = whole(path, truth)
    for name in ("a.gguf", "b.gguf"):
        with open_gguf(tmp_path / name, context) as model:
            assert not [tensor for tensor in model.tensors if tensor.endswith(".scale")]
            if target == "f32":
                check(model, expected)
            else:
                found = model.tensors["blk.0.ffn_up.weight"]
                assert found.encoding.name == "Q8_0"
                wanted = expected["model.layers.0.mlp.up_proj.weight"]
                assert np.abs(rows(found) - wanted).max() < np.abs(wanted).max() / 100


@pytest.mark.parametrize(("target", "name"), [("ggjt", "m.ggjt"), ("hf", "out")])
def test_scales_are_folded_in_for_other_formats(
    target: str, name: str, folder: Folder, cli: Cli, tmp_path: Path
) -> None:
    import qconv

    path, truth = folder("modelopt-nvfp4", intermediate_size=192, num_key_value_heads=4)
    done = cli("convert", path, tmp_path / name, "--to", target, "--type", "f32")
    assert done.code == 0, done.err
    with qconv.open(tmp_path / name) as model:
        check(model, whole(path, truth))
        assert not [tensor for tensor in model.tensors if tensor.endswith(".scale")]


@pytest.mark.oracles
def test_llama_cpp_applies_the_scales(folder: Folder, cli: Cli, tmp_path: Path, context: OpenContext) -> None:
    """Its products with NVFP4 are those of rounded activations; without the scales they would be hundreds of times as large."""
    from llamacpp_models import logits
    from tiny_networks import logits as our_logits

    from qconv.runtime.building.network import load_network

    path, _ = folder("modelopt-nvfp4", 2.0**-5, intermediate_size=256, hidden_size=256)
    for name, target in (("kept", "auto"), ("whole", "f32")):
        done = cli("hf-to-gguf", path, "-o", tmp_path / f"{name}.gguf", "--type", target)
        assert done.code == 0, done.err
    tokens = [int(token) for token in np.random.default_rng(0).integers(3, 4000, 24)]
    theirs = {name: logits(tmp_path / f"{name}.gguf", tokens) for name in ("kept", "whole")}
    ours = {}
    for name in theirs:
        with open_gguf(tmp_path / f"{name}.gguf", context) as model:
            ours[name] = our_logits(load_network(model), tokens)[0]
            if name == "kept":
                bare = {key: tensor for key, tensor in model.tensors.items() if not key.endswith(".scale")}
                ours["bare"] = our_logits(load_network(replace(model, tensors=bare)), tokens)[0]
    np.testing.assert_array_equal(ours["kept"], ours["whole"])
    assert np.abs(theirs["whole"] - ours["whole"]).max() < 0.02 < ours["whole"].std() / 100

    def agreement(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])

    assert agreement(theirs["kept"], ours["whole"]) > 0.999
    assert agreement(theirs["kept"], ours["bare"]) < 0.5
