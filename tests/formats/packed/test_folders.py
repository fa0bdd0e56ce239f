"""Whole quantized folders: opened, inspected and converted, with everything around the packed tensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_folder import (
    CONFIGS,
    Stored,
    architecture_named,
    hf_shapes,
    random_weights,
    stored,
    write_folder,
)
from packed_folders import (
    SIZES,
    Floats,
    Packer,
    Unpacker,
    awq_gemm,
    awq_gemv,
    exl2,
    exl3,
    gptq,
    is_linear,
    packed_model,
    packed_tensors,
)
from run_cli import Cli

from qconv.errors import FormatError, MissingFileError, ShapeError, UnmappedTensorError
from qconv.formats.base import Model, OpenContext
from qconv.formats.gguf import open_gguf
from qconv.formats.huggingface import FORMAT, open_huggingface
from qconv.formats.huggingface.quantized import unpack_weights


def groups(inputs: int) -> list[tuple[int, int]]:
    return [(6, 32), (3, inputs - 32)]


CASES: dict[str, tuple[Packer, dict[str, Any]]] = {
    "gptq": (gptq(4, 32), {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}),
    "gptq-act-order": (gptq(3, 32, act_order=True), {"quant_method": "gptq", "bits": 3, "group_size": 32, "desc_act": True}),
    "gptq-v2": (gptq(8, -1, layout="gptq_v2"), {"bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2", "quant_method": "gptq"}),
    "awq-gemm": (awq_gemm(32), {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}),
    "awq-gemv": (awq_gemv(32), {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv"}),
    "exl2": (exl2(groups), {"quant_method": "exl2", "version": "0.3.2", "bits": 4.0, "head_bits": 6}),
}  # fmt: skip
LLAMA = {
    "self_attn.v_proj": "attn_v",
    "mlp.down_proj": "ffn_down",
    "mlp.up_proj": "ffn_up",
}  # projections that are copied
anonymous = pytest.mark.usefixtures("no_tokenizer")


def check(model: Model, truth: dict[str, Floats]) -> None:
    """Compare the projections that keep their rows, and the tensors outside of layers, with the packer's weights."""
    for layer in range(2):
        for theirs, ours in LLAMA.items():
            tensor = model.tensors[f"blk.{layer}.{ours}.weight"]
            np.testing.assert_array_equal(
                tensor.rows(0, tensor.row_count), truth[f"model.layers.{layer}.{theirs}.weight"]
            )
    head = model.tensors["output.weight"]
    np.testing.assert_array_equal(head.rows(0, head.row_count), truth["lm_head.weight"])


@anonymous
@pytest.mark.parametrize("case", CASES)
def test_weights_of_a_whole_model(case: str, tmp_path: Path, context: OpenContext) -> None:
    pack, settings = CASES[case]
    truth = packed_model(tmp_path / "m", pack, settings)
    assert FORMAT.detect(tmp_path / "m")
    with open_huggingface(tmp_path / "m", context) as model:
        check(model, truth)
        (note,) = [note for note in model.notes if "already quantized" in note]
        assert note.startswith(f"the source was already quantized ({case.split('-')[0].upper()}, ")
        assert model.container["packing"] == settings["quant_method"]


@anonymous
@pytest.mark.parametrize("case", ["gptq", "gptq-v2", "awq-gemm", "exl2"])
def test_folders_without_settings(case: str, tmp_path: Path, context: OpenContext) -> None:
    """The tensors tell, as far as they can: a symmetric or a second-format GPTQ cannot be told from the first format."""
    pack, _ = CASES[case]
    if case == "gptq-v2":
        pack = gptq(4, 32, with_g_idx=False)
    truth = packed_model(tmp_path / "m", pack, None)
    with open_huggingface(tmp_path / "m", context) as model:
        check(model, truth)


@anonymous
@pytest.mark.parametrize(
    ("case", "name"),
    [("gptq", "quantize_config.json"), ("awq-gemm", "quant_config.json"), ("awq-gemv", "quant_config.json")],
)
def test_settings_in_a_file_of_their_own(case: str, name: str, tmp_path: Path, context: OpenContext) -> None:
    pack, settings = CASES[case]
    truth = packed_model(tmp_path / "m", pack, None)
    own = {key: value for key, value in settings.items() if key != "quant_method"}
    (tmp_path / "m" / name).write_text(json.dumps(own))
    with open_huggingface(tmp_path / "m", context) as model:
        check(model, truth)
    (tmp_path / "m" / name).write_text(json.dumps(own | {"bits": 9}))
    with pytest.raises(FormatError, match="bits: 9"):
        open_huggingface(tmp_path / "m", context)


@anonymous
def test_settings_of_a_part_of_the_configuration(tmp_path: Path, context: OpenContext) -> None:
    pack, settings = CASES["gptq-v2"]
    truth = packed_model(tmp_path / "m", pack, None, text_config={"quantization_config": settings})
    with open_huggingface(tmp_path / "m", context) as model:
        check(model, truth)


@anonymous
@pytest.mark.parametrize("method", ["gptq", "awq", "exl2"])
def test_settings_without_packed_tensors_change_nothing(method: str, tmp_path: Path, context: OpenContext) -> None:
    config = CONFIGS["llama"] | SIZES | {"quantization_config": {"quant_method": method, "bits": 4}}
    weights = random_weights(hf_shapes(architecture_named("llama"), config))
    with open_huggingface(write_folder(tmp_path / "m", config, stored(weights)), context) as model:
        check(model, weights)
        assert model.notes == ()
        assert model.container == {}


# --- what quantizers do beside packing ---------------------------------------------------------------------------------------------


@anonymous
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2"])
def test_biases_of_zeros_are_left_out_where_the_architecture_has_none(
    name: str, tmp_path: Path, context: OpenContext
) -> None:
    config = CONFIGS[name] | SIZES | {"quantization_config": CASES["gptq"][1]}
    weights = random_weights(hf_shapes(architecture_named(name), config))
    if name == "qwen2":  # which has biases in three projections, here one of them zero
        weights["model.layers.0.self_attn.v_proj.bias"][:] = 0
    tensors, _ = packed_tensors(weights, CASES["gptq"][0])
    for packed in [tensor for tensor in weights if is_linear(tensor)]:
        bias = packed.removesuffix("weight") + "bias"
        tensors.setdefault(bias, ("F16", (weights[packed].shape[0],), bytes(2 * weights[packed].shape[0])))
    folder = write_folder(tmp_path / "m", config, tensors)
    with open_huggingface(folder, context) as model:
        biases = {tensor for tensor in model.tensors if tensor.endswith(".bias")}
    expected = {f"blk.{layer}.attn_{kind}.bias" for layer in (0, 1) for kind in "qkv"} if name == "qwen2" else set()
    assert biases == expected


@anonymous
def test_a_bias_that_is_not_zero_stays(tmp_path: Path, context: OpenContext) -> None:
    config = CONFIGS["gemma2"] | SIZES | {"quantization_config": CASES["gptq"][1]}
    weights = random_weights(hf_shapes(architecture_named("gemma2"), config))
    tensors, _ = packed_tensors(weights, CASES["gptq"][0])
    tensors["model.layers.0.mlp.up_proj.bias"] = ("F16", (96,), bytes(190) + b"\x00\x3c")
    with pytest.raises(UnmappedTensorError, match=r"up_proj\.bias"):
        open_huggingface(write_folder(tmp_path / "m", config, tensors), context)


@anonymous
def test_exl3_pads_both_sides(tmp_path: Path, context: OpenContext) -> None:
    """40 tokens, 64 hidden units and 96 of feed-forwards become 128 each; the configuration tells how many count."""
    config = CONFIGS["llama"] | SIZES | {"quantization_config": {"quant_method": "exl3", "bits": 2.0}, "vocab_size": 40}
    weights = random_weights(hf_shapes(architecture_named("llama"), config | {"tie_word_embeddings": False}))
    tensors, truth = packed_tensors(
        weights, exl3(2.0, "mul1"), lambda name: is_linear(name) or name == "lm_head.weight"
    )
    write_folder(tmp_path / "m", config, tensors)
    with open_huggingface(tmp_path / "m", context) as model:
        assert model.tensors["output.weight"].shape == (40, 64)
        for name, wanted in truth.items():
            if is_linear(name) or name == "lm_head.weight":
                found = next(
                    it
                    for it in model.tensors.values()
                    if it.origin.endswith(f": {name}".replace(".weight", ".trellis"))
                )
                rows = found.rows(0, found.row_count)
                assert rows.shape == wanted.shape
                assert (
                    np.abs(np.sort(rows, axis=0) - np.sort(wanted, axis=0)).max() < 1e-4
                )  # rows of heads are reordered
        assert model.container["packing"] == "exl3"


def exl2_model(folder: Path, vocabulary: int = 40, **config: Any) -> dict[str, Floats]:
    """Write a model whose output matrix is packed too, as ExLlamaV2's always is; ``vocabulary`` is no multiple of 32."""
    full = CONFIGS["llama"] | SIZES | {"quantization_config": CASES["exl2"][1], "vocab_size": vocabulary} | config
    weights = random_weights(hf_shapes(architecture_named("llama"), full | {"tie_word_embeddings": False}))
    tensors, truth = packed_tensors(weights, CASES["exl2"][0], lambda name: is_linear(name) or name == "lm_head.weight")
    write_folder(folder, full, tensors, ["output-00001-of-00002.safetensors", "output-00002-of-00002.safetensors"])
    return truth


STALE = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}


@anonymous
def test_exl2_pads_the_vocabulary_and_leaves_an_index(tmp_path: Path, context: OpenContext) -> None:
    truth = exl2_model(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(STALE))
    with open_huggingface(tmp_path / "m", context) as model:
        assert model.tensors["output.weight"].shape == (40, 64)
        assert model.tensors["output.weight"].encoding.name == "F16"
        check(model, truth)
        assert any("index.json is ignored" in note for note in model.notes)
    (tmp_path / "m" / "output-00002-of-00002.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"output-00002-of-00002\.safetensors"):
        open_huggingface(tmp_path / "m", context)


@anonymous
def test_an_index_that_names_some_of_the_files_counts(tmp_path: Path, context: OpenContext) -> None:
    exl2_model(tmp_path / "m")
    names = {"a": "output-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    with pytest.raises(MissingFileError, match="model-00002-of-00002"):
        open_huggingface(tmp_path / "m", context)


@anonymous
def test_the_packed_output_matrix_of_a_tied_model_gives_way_to_the_embedding(
    tmp_path: Path, context: OpenContext
) -> None:
    exl2_model(tmp_path / "m", tie_word_embeddings=True)
    with open_huggingface(tmp_path / "m", context) as model:
        assert "output.weight" not in model.tensors
        assert any("lm_head.weight" in note and "tied" in note for note in model.notes)


@anonymous
def test_padding_hides_no_wrong_configuration(tmp_path: Path, context: OpenContext) -> None:
    exl2_model(tmp_path / "m", vocabulary=64)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(ShapeError):
        open_huggingface(tmp_path / "m", context)


def test_rows_that_no_slab_holds_are_refused(tmp_path: Path, unpack: Unpacker) -> None:
    """A row is unpacked as a whole, and 2 bits become 32."""
    words = (1 << 16) + 1
    layer: dict[str, Stored] = {
        ".qweight": ("I32", (words, 16), bytes(words * 64)),
        ".qzeros": ("I32", (1, 1), bytes(4)),
        ".scales": ("F16", (1, 16), bytes(32)),
    }
    tensors = unpack.checkpoint({f"x{suffix}": value for suffix, value in layer.items()})
    config = {"quantization_config": {"quant_method": "gptq", "bits": 2, "group_size": -1}}
    with pytest.raises(ShapeError, match=r"tensor x\.weight: has rows of 1048592 weights, more than the 1048576"):
        unpack_weights(tmp_path, config, tensors, unpack.encodings)


@anonymous
def test_gpt2s_matrices_lie_the_other_way(tmp_path: Path, context: OpenContext) -> None:
    """GPTQ packs every layer as (out, in); GPT-2's own tensors are (in, out)."""
    config = CONFIGS["gpt2"] | {"n_embd": 32, "n_head": 4, "quantization_config": CASES["gptq"][1]}
    shapes = hf_shapes(architecture_named("gpt2"), config)
    chosen = [
        name for name in shapes if name.split(".")[-2] in ("c_attn", "c_fc", "c_proj") and name.endswith("weight")
    ]
    weights = random_weights(shapes)
    turned = {name: weight.T.copy() if name in chosen else weight for name, weight in weights.items()}
    tensors, truth = packed_tensors(turned, CASES["gptq"][0], lambda name: name in chosen)
    with open_huggingface(write_folder(tmp_path / "m", config, tensors), context) as model:
        for layer in range(2):
            for theirs, ours in (("mlp.c_fc", "ffn_up"), ("mlp.c_proj", "ffn_down"), ("attn.c_proj", "attn_output")):
                name = next(item for item in chosen if item.endswith(f"h.{layer}.{theirs}.weight"))
                tensor = model.tensors[f"blk.{layer}.{ours}.weight"]
                np.testing.assert_array_equal(tensor.rows(0, tensor.row_count), truth[name])


# --- the command line ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_tokenizer(example_model: Path) -> Callable[[Path], Path]:
    """Copies the example's tokenizer into a folder."""

    def copy(folder: Path) -> Path:
        for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
            shutil.copy(example_model / name, folder / name)
        return folder

    return copy


@pytest.mark.parametrize("case", ["gptq-act-order", "awq-gemm", "exl2"])
def test_conversion_and_inspection(
    case: str, tmp_path: Path, context: OpenContext, cli: Cli, with_tokenizer: Callable[[Path], Path]
) -> None:
    pack, settings = CASES[case]
    truth = packed_model(tmp_path / "m", pack, settings, vocab_size=4096)
    folder = with_tokenizer(tmp_path / "m")
    shown = cli("inspect", folder)
    assert shown.code == 0, shown.err
    assert f"packing {settings['quant_method']}" in shown.out
    found = json.loads(cli("inspect", folder, "--json").out)
    assert found["container"]["packing"] == settings["quant_method"]
    assert any("already quantized" in note for note in found["notes"])
    done = cli("hf-to-gguf", folder, "-o", tmp_path / "m.gguf", "--type", "f32")
    assert done.code == 0, done.err
    assert "already quantized" in " ".join((done.out + done.err).split())
    with open_gguf(tmp_path / "m.gguf", context) as model:
        check(model, truth)


def test_a_damaged_folder_is_one_sentence(tmp_path: Path, cli: Cli, with_tokenizer: Callable[[Path], Path]) -> None:
    """Values that are read late: an input in no group stops the conversion, and leaves nothing."""
    pack, settings = CASES["gptq"]
    weights = random_weights(hf_shapes(architecture_named("llama"), CONFIGS["llama"] | SIZES | {"vocab_size": 4096}))
    tensors: dict[str, Stored] = packed_tensors(weights, pack)[0]
    guilty = "model.layers.1.mlp.up_proj.g_idx"
    tensors[guilty] = ("I32", (64,), np.full(64, 9, "<i4").tobytes())
    config = CONFIGS["llama"] | SIZES | {"vocab_size": 4096, "quantization_config": settings}
    folder = with_tokenizer(write_folder(tmp_path / "m", config, tensors))
    done = cli("hf-to-gguf", folder, "-o", tmp_path / "m.gguf")
    assert done.code == 1
    assert guilty in done.err.replace("\n", "")
    assert not (tmp_path / "m.gguf").exists()
