"""Whole folders in native form: what is found, what is told, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mistral_files as made
import numpy as np
import packed_floats
import pytest
import tokenizer_folders
from huggingface_folder import model_folder, stored
from run_cli import Cli

import qconv
from qconv.errors import (
    FormatError,
    MissingFileError,
    MissingTensorError,
    ModelError,
    QconvError,
    ShapeError,
    UnmappedTensorError,
)
from qconv.formats.base import OpenContext
from qconv.formats.huggingface.checkpoint import CONSOLIDATED_PICKLES, open_checkpoint
from qconv.formats.mistral import FORMAT, open_mistral
from qconv.formats.stored import lazy_tensor
from qconv.plugins.manager import load_plugins

GGUF = {
    "tok_embeddings": "token_embd", "norm": "output_norm", "output": "output", "attention.wq": "attn_q", "attention.wk": "attn_k",
    "attention.wv": "attn_v", "attention.wo": "attn_output", "attention_norm": "attn_norm", "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate", "feed_forward.w2": "ffn_down", "feed_forward.w3": "ffn_up", "attention.wq_a": "attn_q_a",
    "attention.q_a_norm": "attn_q_a_norm", "attention.wq_b": "attn_q_b", "attention.wkv_a_with_mqa": "attn_kv_a_mqa",
    "attention.kv_a_norm": "attn_kv_a_norm", "gate": "ffn_gate_inp", "shared_experts.w1": "ffn_gate_shexp",
    "shared_experts.w2": "ffn_down_shexp", "shared_experts.w3": "ffn_up_shexp",
}  # fmt: skip


def gguf_name(name: str) -> str:
    words = name.removesuffix(".weight").split(".", 2)
    return f"blk.{words[1]}.{GGUF[words[2]]}.weight" if words[0] == "layers" else f"{GGUF[words[0]]}.weight"


def failure(folder: Path, kind: type[QconvError], context: OpenContext) -> QconvError:
    with pytest.raises(kind) as caught:
        open_mistral(folder, context).close()
    assert caught.value.path is not None
    assert caught.value.remedy
    assert "\n" not in str(caught.value).strip()
    return caught.value


@pytest.mark.parametrize("shards", [made.SINGLE, made.SHARDS])
def test_every_tensor_as_it_is(tmp_path: Path, context: OpenContext, shards: tuple[str, ...]) -> None:
    """Rows of queries and keys keep their order, which is GGUF's."""
    _, weights = made.small_model()
    with open_mistral(made.write_small(tmp_path / "model", shards, "F32"), context) as model:
        assert {gguf_name(name) for name in weights} == set(model.tensors)
        for name, array in weights.items():
            tensor = model.tensors[gguf_name(name)]
            steps = range(0, tensor.row_count, 5)
            found = np.concatenate([tensor.rows(start, min(start + 5, tensor.row_count)) for start in steps])
            np.testing.assert_array_equal(found.reshape(array.shape), array)
        facts = {key: field.value for key, field in model.metadata.items()}
        index = [] if len(shards) == 1 else ["consolidated.safetensors.index.json"]
        assert {path.name for path in model.files} == {"params.json", "tekken.json", *shards, *index}
    assert (facts["general.architecture"], facts["llama.block_count"], facts["llama.context_length"]) == (
        "llama",
        2,
        128,
    )
    assert (facts["llama.attention.key_length"], facts["llama.rope.freq_base"]) == (8, 1e6)


def test_experts_in_one_tensor(tmp_path: Path, context: OpenContext) -> None:
    """Needs no torch; rows of the last matrix of each expert are columns of what is there."""
    folder = made.write_first_mixtral(tmp_path / "model")
    assert FORMAT.detect(folder)
    with qconv.open(folder) as model:
        assert (model.format, model.architecture) == ("mistral", "llama")
        assert model.tensors["blk.1.ffn_gate_exps.weight"].shape == (3, 48, 32)
        assert model.tensors["blk.1.ffn_down_exps.weight"].shape == (3, 32, 48)
        up, down = (model.tensors[f"blk.0.ffn_{part}_exps.weight"] for part in ("gate", "down"))
        found = open_checkpoint(folder, CONSOLIDATED_PICKLES[1])
        fused = {
            part: lazy_tensor(found.tensors[f"layers.0.block_sparse_moe.{part}"], context.encodings).rows(0, 144)
            for part in ("w1", "w2")
        }
        np.testing.assert_array_equal(up.rows(0, 144), fused["w1"])
        np.testing.assert_array_equal(down.rows(0, 96).reshape(3, 32, 48).swapaxes(1, 2).reshape(144, 32), fused["w2"])
        found.close()


def test_shards_without_an_index(tmp_path: Path, context: OpenContext) -> None:
    folder = made.write_small(tmp_path / "model", made.SHARDS)
    (folder / "consolidated.safetensors.index.json").unlink()
    with open_mistral(folder, context) as model:
        assert len(model.tensors) == 21
    (folder / made.SHARDS[1]).unlink()
    error = failure(folder, MissingFileError, context)
    assert made.SHARDS[1] in str(error)


@pytest.mark.parametrize("missing", made.SHARDS)
def test_a_missing_shard_is_named(tmp_path: Path, context: OpenContext, missing: str) -> None:
    folder = made.write_small(tmp_path / "model", made.SHARDS)
    (folder / missing).unlink()
    assert FORMAT.detect(folder)
    assert missing in str(failure(folder, MissingFileError, context))


def test_large_3(tmp_path: Path, context: OpenContext) -> None:
    """Latents, a dense layer, experts with one scale for each, and no scaled logits."""
    sizes, _ = made.large_model()
    assert sizes["yarn"]["apply_scale"] is False
    with open_mistral(made.write_large(tmp_path / "model"), context) as model:
        facts = {key: field.value for key, field in model.metadata.items()}
        assert facts["general.architecture"] == "mistral4"
        assert model.tensors["blk.1.ffn_gate_exps.weight"].shape == (3, 24, 32)
        assert model.tensors["blk.0.attn_k_b.weight"].shape == (4, 10, 6)
        assert "blk.0.ffn_gate_exps.weight" not in model.tensors
        assert any("already quantized (FP8, E4M3)" in note for note in model.notes)
        assert model.tensors["blk.1.ffn_gate_inp.weight"].encoding.name == "BF16"
    prefix = "mistral4."
    assert facts[prefix + "expert_gating_func"] == 1
    assert facts[prefix + "expert_weights_norm"] is True
    assert facts[prefix + "leading_dense_block_count"] == 1
    assert facts[prefix + "attention.temperature_length"] == 16
    assert facts[prefix + "attention.temperature_scale"] == pytest.approx(0.1)
    assert facts[prefix + "rope.scaling.attn_factor"] == pytest.approx(1 / (1 + 0.1 * np.log(36)))
    assert prefix + "rope.scaling.yarn_log_multiplier" not in facts
    scaled = made.write_large(tmp_path / "scaled", yarn=sizes["yarn"] | {"apply_scale": True})
    with open_mistral(scaled, context) as model:
        assert model.metadata[prefix + "rope.scaling.yarn_log_multiplier"].value == pytest.approx(0.1)
        assert prefix + "rope.scaling.attn_factor" not in model.metadata


@pytest.mark.parametrize("shape", [(), (1,)])
def test_eight_bit_floats_times_their_scale(tmp_path: Path, context: OpenContext, shape: tuple[int, ...]) -> None:
    sizes, weights = made.small_model()
    packed = made.with_float8(stored(weights), shape)
    made.write_native(tmp_path / "model", sizes, packed)
    with open_mistral(tmp_path / "model", context) as model:
        tensor = model.tensors["blk.0.attn_q.weight"]
        codes = packed["layers.0.attention.wq.weight"][2]
        wanted = np.array([packed_floats.E4M3[code] for code in codes], np.float32) * np.float32(0.01)
        np.testing.assert_array_equal(tensor.rows(0, 32).reshape(-1), wanted)


def test_packed_as_other_programs_do(tmp_path: Path, context: OpenContext) -> None:
    """compressed-tensors' 8-bit floats in blocks, under Mistral's names."""
    sizes, weights = made.small_model()
    tensors = stored(weights)
    exact = {}
    for name, matrix in weights.items():
        if ".feed_forward." in name:
            layer = packed_floats.float8_blocks((16, 16), ".weight_scale")(matrix, np.random.default_rng(1))
            del tensors[name]
            tensors |= {name.removesuffix(".weight") + end: it for end, it in layer.tensors.items()}
            exact[name] = layer.weights
    groups = {"all": {"weights": {"num_bits": 8, "type": "float", "block_structure": [16, 16]}}}
    settings = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": groups}
    made.write_native(tmp_path / "model", sizes | {"quantization": settings}, tensors)
    with open_mistral(tmp_path / "model", context) as model:
        assert model.container["packing"] == "compressed-tensors"
        tensor = model.tensors["blk.1.ffn_down.weight"]
        np.testing.assert_array_equal(tensor.rows(0, tensor.row_count), exact["layers.1.feed_forward.w2.weight"])


def test_the_vision_tower_is_left_out(tmp_path: Path, context: OpenContext) -> None:
    sizes, weights = made.small_model()
    for name in ("vision_encoder.patch_conv.weight", "vision_language_adapter.w_in.weight", "patch_merger.merging_layer.weight", "pre_mm_projector_norm.weight"):  # fmt: skip
        weights[name] = np.ones((4, 4), np.float32)
    made.write_native(tmp_path / "model", sizes | {"vision_encoder": {"hidden_size": 4}}, stored(weights))
    with open_mistral(tmp_path / "model", context) as model:
        assert len(model.tensors) == 21
        assert any("4 tensors" in note and "vision tower is left out" in note for note in model.notes)


# --- parameters


def test_what_is_assumed_is_told(tmp_path: Path, context: OpenContext) -> None:
    folder = made.write_small(tmp_path / "model", max_position_embeddings=None, rope_theta=None, n_kv_heads=2)
    with open_mistral(folder, context) as model:
        notes = " ".join(model.notes)
        assert model.metadata["llama.context_length"].value == 32768
        assert model.metadata["llama.rope.freq_base"].value == 1e6
    assert "no context length; 32768 is assumed" in notes
    assert "no rope_theta; 1e+06 is assumed" in notes


@pytest.mark.parametrize(
    ("window", "expected"), [(64, True), ("64", True), ([None, 64, 96], True), (None, False), ([None, None], False), (4096, False)]
)  # fmt: skip
def test_windows(tmp_path: Path, context: OpenContext, window: Any, expected: bool) -> None:
    with open_mistral(made.write_small(tmp_path / "model", sliding_window=window), context) as model:
        assert any("sliding_window is 64" in note for note in model.notes) == expected


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        *(({key: None}, f"lacks {key}") for key in ("hidden_dim", "n_heads", "norm_eps", "vocab_size")),
        ({"dim": "wide"}, "has dim: 'wide', which must be a whole number"),
        ({"n_layers": 5000}, "has n_layers: 5000, which must be a whole number from 1 to 1024"),
        ({"n_heads": 5, "n_kv_heads": 5, "head_dim": None}, "has n_heads: 5, which must be a divisor of dim, 32"),
        ({"n_kv_heads": 3}, "has n_kv_heads: 3, which must be a divisor of n_heads, 4"),
        ({"tied_embeddings": "yes"}, "has tied_embeddings: 'yes', which must be true or false"),
        ({"sliding_window": "wide"}, "has sliding_window: 'wide'"),
        ({"moe": 8}, "has moe: 8, which must be an object"),
        ({"moe": {"num_experts": 4}}, "lacks moe.num_experts_per_tok"),
        ({"moe": {"num_experts": 4, "num_experts_per_tok": 5}}, "has moe.num_experts_per_tok: 5"),
        ({"moe": {"num_experts": 4, "num_experts_per_tok": 2, "route_every_n": 2}}, "has moe.route_every_n: 2"),
        ({"moe": {"num_experts": 4, "num_experts_per_tok": 2, "num_shared_experts": 1}}, "but no latent attention"),
        ({"kv_lora_rank": 8}, "kv_lora_rank is set without moe"),
        ({"yarn": {"factor": 4}}, "lacks yarn.original_max_position_embeddings"),
        ({"yarn": {"factor": 4, "original_max_position_embeddings": 16, "mscale": 2}}, "has yarn.mscale: 2, which must be absent"),
        ({"llama_4_scaling": {"original_max_position_embeddings": 16}}, "lacks llama_4_scaling.beta"),
        ({"yarn": {"factor": 4, "original_max_position_embeddings": 16}, "llama_4_scaling": {"original_max_position_embeddings": 32, "beta": 0.1}}, "must be yarn's, 16"),
        ({"model_type": "mamba"}, "model_type is 'mamba'"),
        ({"lora": {"rank": 8}}, "LoRA adapters"),
        ({"activation": "gelu"}, "hidden_act is 'gelu'"),
        ({"llama_4_scaling": {"original_max_position_embeddings": 16, "beta": 0.1}, "sliding_window": 64}, "attends to everything"),
    ],
)  # fmt: skip
def test_parameters_that_make_no_sense(
    tmp_path: Path, context: OpenContext, changes: dict[str, Any], problem: str
) -> None:
    error = failure(made.write_small(tmp_path / "model", **changes), ModelError, context)
    assert problem in str(error)
    assert error.path is not None
    assert error.path.name == "params.json"


def test_another_family_than_the_parameters_say(tmp_path: Path, context: OpenContext) -> None:
    folder = made.write_small(tmp_path / "model")
    assert "cannot be read as 'qwen2'" in str(failure(folder, ModelError, replace(context, architecture="qwen2")))
    with open_mistral(folder, replace(context, architecture="llama")) as model:
        assert model.architecture == "llama"


# --- tensors

Weights = dict[str, made.Floats]


def _renamed(old: str, new: str) -> Callable[[Weights], Weights]:
    return lambda weights: {(new if name == old else name): it for name, it in weights.items()}


@pytest.mark.parametrize(
    ("change", "kind", "tensor", "remedy"),
    [
        (_renamed("norm.weight", "norms.weight"), UnmappedTensorError, "norms.weight", "Compare params.json"),
        (_renamed("norm.weight", "eagle_linear.weight"), UnmappedTensorError, "eagle_linear.weight", "draft model"),
        (_renamed("norm.weight", "model.layers.0.norm.weight"), UnmappedTensorError, "model.layers.0.norm.weight", "Hugging Face's names"),
        (_renamed("norm.weight", "layers.0.attention.wq.lora_A.weight"), UnmappedTensorError, "layers.0.attention.wq.lora_A.weight", "merge it"),
        (lambda weights: {name: it for name, it in weights.items() if "1.attention.wv" not in name}, MissingTensorError, "layers.1.attention.wv.weight", "compare the folder"),
        (lambda weights: weights | {"layers.2.ffn_norm.weight": weights["norm.weight"]}, UnmappedTensorError, "layers.2.ffn_norm.weight", "Compare params.json"),
        (lambda weights: weights | {"layers.0.attention.wk.weight": weights["layers.0.attention.wk.weight"][:8]}, ShapeError, "layers.0.attention.wk.weight", "params.json belong to different models"),
        (lambda weights: weights | {"norm.weight": weights["norm.weight"][:, None]}, ShapeError, "norm.weight", "params.json belong to different models"),
    ],
)  # fmt: skip
def test_tensors_of_another_model(
    tmp_path: Path,
    context: OpenContext,
    change: Callable[[Weights], Weights],
    kind: type[QconvError],
    tensor: str,
    remedy: str,
) -> None:
    sizes, weights = made.small_model()
    made.write_native(tmp_path / "model", sizes, stored(change(weights), "F32"))
    error = failure(tmp_path / "model", kind, context)
    assert error.tensor == tensor
    assert remedy in str(error.remedy)


def test_more_rows_than_the_parameters_say(tmp_path: Path, context: OpenContext) -> None:
    """The rows count, as everywhere."""
    with open_mistral(made.write_small(tmp_path / "model", vocab_size=559), context) as model:
        assert model.metadata["llama.vocab_size"].value == 560
        assert any(
            "vocab_size is 559 in the configuration, tok_embeddings.weight has 560 rows" in it for it in model.notes
        )


def test_tied_embeddings(tmp_path: Path, context: OpenContext) -> None:
    sizes, weights = made.small_model()
    del weights["output.weight"]
    made.write_native(tmp_path / "model", sizes | {"tied_embeddings": True}, stored(weights))
    with open_mistral(tmp_path / "model", context) as model:
        assert "output.weight" not in model.tensors
    made.write_native(tmp_path / "other", sizes, stored(weights))
    assert failure(tmp_path / "other", MissingTensorError, context).tensor == "output.weight"


# --- tokenizers and templates


def test_the_newest_sentencepiece_model(tmp_path: Path, context: OpenContext) -> None:
    sizes, weights = made.small_model(500)
    folder = made.write_native(tmp_path / "model", sizes, stored(weights))
    (folder / "tokenizer.model").write_bytes(b"no sentencepiece model")
    (folder / "tokenizer.model.v1").write_bytes(b"none either")
    (folder / "tokenizer.model.v3").write_bytes(tokenizer_folders.train_sentencepiece("bpe"))
    with open_mistral(folder, context) as model:
        assert model.metadata["tokenizer.ggml.model"].value == "llama"
        assert model.metadata["tokenizer.ggml.add_bos_token"].value is True
        assert "tokenizer.model.v3" in model.side_files
        assert not any("tokenizer.model is no" in note for note in model.notes)


def test_no_tokenizer_is_told(tmp_path: Path, context: OpenContext) -> None:
    folder = made.write_small(tmp_path / "model")
    (folder / "tekken.json").unlink()
    with open_mistral(folder, context) as model:
        assert model.metadata["tokenizer.ggml.model"].value == "none"
        assert any(
            "no tekken.json or tokenizer.model" in note and "copy it into the folder" in note for note in model.notes
        )


def test_a_tokenizer_of_another_model(tmp_path: Path, context: OpenContext) -> None:
    folder = made.write_small(tmp_path / "model")
    (folder / "tekken.json").write_text(json.dumps(made.tekken(600)))
    error = failure(folder, QconvError, context)
    assert "600 tokens, but the embedding matrix 560 rows" in str(error)
    assert error.path == folder / "tekken.json"


def test_chat_templates(tmp_path: Path, context: OpenContext) -> None:
    folder = made.write_small(tmp_path / "model")
    with open_mistral(folder, context) as model:
        assert any("no chat template" in note and "chat_template.jinja" in note for note in model.notes)
        assert "tokenizer.chat_template" not in model.metadata
    (folder / "chat_template.jinja").write_text("[INST]{{ messages[0].content }}[/INST]")
    with open_mistral(folder, context) as model:
        assert not any("no chat template" in note for note in model.notes)
        assert model.metadata["tokenizer.chat_template"].value == "[INST]{{ messages[0].content }}[/INST]"
    (folder / "generation_config.json").write_text('{"temperature": 0.15}')
    with open_mistral(folder, context) as model:
        assert model.metadata["general.sampling.temp"].value == pytest.approx(0.15)


def test_the_vocabulary_alone(tmp_path: Path, context: OpenContext) -> None:
    folder = made.write_small(tmp_path / "model")
    (folder / "consolidated.safetensors").unlink()
    with open_mistral(folder, replace(context, vocabulary_only=True)) as model:
        assert not model.tensors
        assert len(model.metadata["tokenizer.ggml.tokens"].value) == 560  # type: ignore[arg-type]  # a sequence


def test_the_same_hugging_face_folder_through_gguf(tmp_path: Path) -> None:
    """GGUF keeps the configuration and the dtype of the source; tokens and norms come back from it."""
    folder = made.write_small(tmp_path / "model")
    qconv.convert_model(folder, tmp_path / "direct", to="huggingface")
    qconv.convert_model(folder, tmp_path / "model.gguf")
    qconv.convert_model(tmp_path / "model.gguf", tmp_path / "through", to="huggingface")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "direct" / name).read_bytes() == (tmp_path / "through" / name).read_bytes(), name
    config = json.loads((tmp_path / "direct" / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["MistralForCausalLM"], "mistral")
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 5)


# --- which reader reads it


def chosen(path: Path) -> str:
    with qconv.open(path) as model:
        return model.format


def detecting(path: Path) -> list[str]:
    return [it.name for it in load_plugins("").registries().formats.values() if it.detect(path)]


def test_detection(tmp_path: Path) -> None:
    folder = made.write_small(tmp_path / "model")
    assert chosen(folder) == "mistral"
    (folder / "config.json").write_text('{"model_type": "mistral"}')  # Hugging Face's configuration without its weights
    assert chosen(folder) == "mistral"
    assert detecting(folder) == ["mistral"]
    shutil.copy(folder / "consolidated.safetensors", folder / "model.safetensors")
    assert not FORMAT.detect(folder)


def test_both_forms_in_one_folder(tmp_path: Path) -> None:
    """As on the model's page: Hugging Face's files are read."""
    folder = made.write_small(tmp_path / "model")
    model_folder(folder, "llama")
    (folder / "tekken.json").rename(folder / "aside.json")
    (folder / "tokenizer.model").write_bytes(tokenizer_folders.train_sentencepiece("bpe"))
    assert not FORMAT.detect(folder)
    assert detecting(folder) == ["huggingface"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"dim": 32}', '{"model": {"dim": 32, "n_layers": 2}}'])
def test_other_parameters(tmp_path: Path, content: str) -> None:
    folder = made.write_small(tmp_path / "model")
    (folder / "params.json").write_text(content)
    assert not FORMAT.detect(folder)
    assert not FORMAT.detect(folder / "params.json")


def test_damaged_weights_are_told_by_this_reader(tmp_path: Path, context: OpenContext) -> None:
    folder = made.write_small(tmp_path / "model")
    weights = folder / "consolidated.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert FORMAT.detect(folder)
    assert failure(folder, FormatError, context).path == weights
    assert "this is a file" in str(failure(weights, FormatError, context))


def test_by_the_command_line(tmp_path: Path, cli: Cli) -> None:
    folder = made.write_small(tmp_path / "model", made.SHARDS)
    found = json.loads(cli("inspect", folder, "--json").out)
    assert (found["format"], found["architecture"], found["tensors"]) == ("mistral", "llama", 21)
    done = cli("convert", folder, tmp_path / "model.gguf", "--type", "q8_0")
    assert done.code == 0, done.err
    assert cli("convert", folder, tmp_path / "same.gguf").code == 0
    assert cli("hf-to-gguf", folder, "--type", "q8_0", "--dry-run").code == 0
    assert "21 tensors" in cli("diff", folder, tmp_path / "same.gguf").out
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog " * 40)
    words = ("--text", tmp_path / "text.txt", "--context", 64, "--chunks", 2, "--json")
    one, other = (json.loads(cli("perplexity", path, *words).out) for path in (folder, tmp_path / "same.gguf"))
    assert one["perplexity"] == pytest.approx(other["perplexity"], rel=1e-6)
    (folder / made.SHARDS[0]).unlink()
    done = cli("inspect", folder)
    assert done.code == 1
    assert done.err.count("error:") == 1
    assert made.SHARDS[0] in done.err.replace("\n", " ")
