"""GLM-5-Next: what its configurations say in which words, what is left out, and what llama.cpp cannot run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversions import convert_without_source, relabelled, write_model
from f32_gguf import write_f32
from huggingface_folder import (
    CONFIGS,
    architecture_named,
    hf_shapes,
    model_folder,
    random_weights,
    stored,
    write_folder,
)
from llamacpp_models import logits
from safetensors.numpy import load_file
from transformers_models import (
    GLM5_NEXT,
    GLM5_NEXT_LAYERS,
    PROMPTS,
    VOCABULARY,
    case,
    expected,
    log_softmax,
    save,
    text_alone,
)

import qconv
from qconv.convert.settings import Settings
from qconv.errors import ModelError, QconvError
from qconv.formats.base import Model, OpenContext
from qconv.formats.huggingface import open_huggingface
from qconv.formats.metadata import ValueType, numbers, uint32
from qconv.runtime.building.network import load_network
from qconv.runtime.cache import FloatCache
from qconv.runtime.forward import forward

pytestmark = pytest.mark.usefixtures("no_tokenizer")

TINY = CONFIGS["glm5-next"]
TEXT = "model.language_model."


def keys_of(model: Model) -> dict[str, Any]:
    found = {key: field.value for key, field in model.metadata.items() if key.startswith("glm5-next.")}
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in found.items()}


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """The same configuration with the keys that transformers writes."""
    names = {
        "num_heads": "linear_num_heads",
        "head_dim": "linear_head_dim",
        "short_conv_kernel_size": "linear_conv_kernel_dim",
        "gate_lower_bound": "linear_lower_bound",
    }
    inner = {names[key]: value for key, value in config["linear_attn_config"].items()}
    kinds = [it.replace("deepseek_sparse", "indexed") for it in config["layer_types"]]
    rest = {key: value for key, value in config.items() if key != "linear_attn_config"}
    return rest | inner | {"layer_types": kinds}


def test_both_ways_to_say_the_same(tmp_path: Path, context: OpenContext) -> None:
    weights = stored(random_weights(hf_shapes(architecture_named("glm5-next"), TINY)))
    found = []
    for number, config in enumerate((TINY, flat(TINY))):
        with open_huggingface(write_folder(tmp_path / str(number), config, weights), context) as model:
            found.append(keys_of(model))
    assert found[0] == found[1]
    assert found[0]["glm5-next.kda.head_dim"] == 8
    assert found[0]["glm5-next.attention.head_count_kv"] == [0, 1, 1, 0]
    assert found[0]["glm5-next.attention.indexer.types"] == [True, True, False, True]
    assert found[0]["glm5-next.rope.dimension_count"] == 0


@pytest.mark.parametrize("said", ["nested", "flat"])
def test_what_the_metadata_say_otherwise_is_written_where_the_source_had_it(said: str, tmp_path: Path) -> None:
    config = TINY if said == "nested" else flat(TINY)
    weights = stored(random_weights(hf_shapes(architecture_named("glm5-next"), config)))
    write_folder(tmp_path / "source", config, weights)
    with qconv.open(tmp_path / "source") as model:
        field = replace(model.metadata["glm5-next.kda.gate_lower_bound"], value=-3.0)
        changed = replace(model, metadata={**model.metadata, "glm5-next.kda.gate_lower_bound": field})
        write_model(changed, tmp_path / "back", "hf")
    found = json.loads((tmp_path / "back" / "config.json").read_text())
    if said == "nested":
        assert found["linear_attn_config"] == TINY["linear_attn_config"] | {"gate_lower_bound": -3.0}
        assert "linear_lower_bound" not in found
    else:
        assert found["linear_lower_bound"] == -3.0
        assert "linear_attn_config" not in found


def test_a_configuration_of_its_own_says_what_loaders_look_for(tmp_path: Path) -> None:
    qconv.convert_model(model_folder(tmp_path / "source", "glm5-next"), tmp_path / "model.gguf", "f32")
    convert_without_source(tmp_path / "model.gguf", tmp_path / "back", "hf")
    found = json.loads((tmp_path / "back" / "config.json").read_text())
    for key in ("linear_attn_config", "layer_types", "indexer_types", "num_key_value_heads", "first_k_dense_replace"):
        assert found[key] == TINY[key]
    assert found["mlp_layer_types"] == ["dense", "sparse", "sparse", "sparse"]
    assert found["mhc"] is found["mla_use_nope"] is found["index_kpool_compress"] is True


def test_kernels_come_back_from_files_that_leave_out_axes(tmp_path: Path) -> None:
    """llama.cpp's own quantizer drops an axis of one in front."""
    source = model_folder(tmp_path / "source", "glm5-next")
    qconv.convert_model(source, tmp_path / "model.gguf", "f32")
    with qconv.open(tmp_path / "model.gguf") as model:
        name = "blk.0.ssm_conv1d_k.weight"
        assert model.tensors[name].shape == (1, 32, 1, 4)
        short = {key: replace(it, shape=it.shape[1:]) if "conv1d" in key else it for key, it in model.tensors.items()}
        write_model(replace(model, tensors=short), tmp_path / "back", "hf")
        load_network(replace(model, tensors=short))
    with qconv.open(source) as one, qconv.open(tmp_path / "back") as other:
        for key, tensor in one.tensors.items():
            again = other.tensors[key]
            assert again.shape == tensor.shape
            assert again.rows(0, again.row_count).tobytes() == tensor.rows(0, tensor.row_count).tobytes()


def test_vision_and_the_block_for_the_token_after_next_are_left_out(tmp_path: Path, context: OpenContext) -> None:
    weights = random_weights(hf_shapes(architecture_named("glm5-next"), TINY))
    last = TINY["num_hidden_layers"]
    extra = {
        f"{TEXT}layers.{last}.eh_proj.weight": (16, 32),
        f"{TEXT}layers.{last}.self_attn.indexer.wk.weight": (8, 16),
        "model.visual.patch_embed.proj.weight": (4, 4),
    }
    text = {key: value for key, value in TINY.items() if key != "architectures"} | {"model_type": "glm5_next_text"}
    config = {
        "architectures": TINY["architectures"],
        "model_type": "glm5_next",
        "text_config": text | {"num_nextn_predict_layers": 1},
        "vision_config": {"hidden_size": 4},
    }
    write_folder(tmp_path / "model", config, stored(weights | random_weights(extra)))
    with open_huggingface(tmp_path / "model", context) as model:
        assert not any(key.startswith(f"blk.{last}.") or "visual" in key for key in model.tensors)
        assert any("token after next" in note and "2 tensors" in note for note in model.notes)
        assert any("vision tower" in note for note in model.notes)
        write_model(model, tmp_path / "back", "hf")
    found = json.loads((tmp_path / "back" / "config.json").read_text())
    assert "text_config" not in found
    assert found["model_type"] == "glm5_next"
    assert found["linear_attn_config"] == TINY["linear_attn_config"]


@pytest.mark.parametrize("prefix", ["model.", "language_model.", ""])
def test_other_beginnings_of_names(prefix: str, tmp_path: Path, context: OpenContext) -> None:
    weights = random_weights(hf_shapes(architecture_named("glm5-next"), TINY))
    renamed = {name.replace(TEXT, prefix): array for name, array in weights.items()}
    folder = write_folder(tmp_path / "model", TINY | {"architectures": ["Glm5NextForCausalLM"]}, stored(renamed))
    with open_huggingface(folder, context) as model:
        assert model.architecture == "glm5-next"
        assert "blk.3.ssm_f_a.weight" in model.tensors


LINEAR = TINY["linear_attn_config"]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"hc_mult": 2}, "four residual streams"),
        ({"index_topk": 22}, "chooses whole pools"),
        ({"index_kpool": 1, "index_topk": 24}, "whole number from 2"),
        ({"index_kpool_always_select_tail": False}, "would see nothing"),
        ({"linear_attn_config": LINEAR | {"num_heads": 2}}, "as many heads in linear attention"),
        ({"tie_word_embeddings": True}, "output matrix of its own"),
        ({"qk_rope_head_dim": 4}, "rotates nothing"),
        ({"scoring_func": "softmax"}, "with sigmoid only"),
        ({"mlp_layer_types": ["dense", "dense", "sparse", "sparse"]}, "mlp_layer_types is not what"),
        ({"linear_attn_config": LINEAR | {"gate_lower_bound": None}}, "gate_lower_bound to null"),
    ],
)
def test_what_llama_cpp_cannot_run_is_refused(
    said: dict[str, Any], words: str, tmp_path: Path, context: OpenContext
) -> None:
    folder = model_folder(tmp_path / "model", "glm5-next")
    (folder / "config.json").write_text(json.dumps(TINY | said))
    with pytest.raises(ModelError, match=words):
        open_huggingface(folder, context)


LONG = [int(token) for token in np.random.default_rng(9).integers(3, VOCABULARY, 150)]
MODEL = case("glm5-next", "Glm5NextForConditionalGeneration", **GLM5_NEXT, **GLM5_NEXT_LAYERS)


def published(model: Model) -> Model:
    """Return the model as files of the other name have it: a block more, which predicts, limits per block, and no word on what all models have alike."""
    renamed = relabelled(model, "glm5next")
    layers = model.metadata["glm5-next.block_count"].value
    assert isinstance(layers, int)
    limit = model.metadata["glm5-next.swiglu_clamp_exp"].value
    kinds = model.metadata["glm5-next.attention.head_count_kv"].value
    assert isinstance(kinds, np.ndarray) and isinstance(limit, float)
    silent = ("indexer.types", "kpool_select_tail", "qconv.")
    metadata = {key: field for key, field in renamed.metadata.items() if not any(it in key for it in silent)}
    metadata |= {
        "glm5next.block_count": uint32(layers + 1),
        "glm5next.nextn_predict_layers": uint32(1),
        "glm5next.expert_shared_feed_forward_length": uint32(32),
        "glm5next.attention.head_count_kv": numbers([*kinds.tolist(), 1], ValueType.INT32),
        "glm5next.swiglu_clamp_exp": numbers([limit] * (layers + 1), ValueType.FLOAT32),
        "glm5next.swiglu_clamp_shexp": numbers([limit] * (layers + 1), ValueType.FLOAT32),
    }
    added = f"blk.{layers}.attn_norm.weight"
    extra = {added: replace(model.tensors["blk.0.attn_norm.weight"], name=added)}
    return replace(renamed, metadata=metadata, tensors={**model.tensors, **extra})


@pytest.mark.oracles
@pytest.mark.filterwarnings("ignore")
def test_files_of_another_name_are_the_same_model(tmp_path: Path, context: OpenContext) -> None:
    source = save(tmp_path / "model", MODEL)
    with open_huggingface(tmp_path / "model", context) as folder:
        path = write_f32(tmp_path / "other.gguf", published(folder))
        bare = {key: it for key, it in published(folder).metadata.items() if not key.endswith("indexer.kpool")}
        unknown = write_f32(tmp_path / "unknown.gguf", replace(published(folder), metadata=bare))
    with qconv.open(path) as model:
        network = load_network(model)
        assert [note for note in network.notes if "left out" not in note] == []
        for prompt in PROMPTS:
            (found,) = [log_softmax(it.logits) for it in forward(network, [prompt])]
            assert np.abs(found - expected(source, prompt)).max() < 1e-3
        write_model(model, tmp_path / "back", "hf")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "back"))
    for name, array in other.items():
        tolerance = 1e-6 if name.endswith("A_log") else 0.0  # the logarithm of an exponential
        wanted = one[name] if name in one else fused(one, name)
        np.testing.assert_allclose(array, wanted, tolerance, 0.1 * tolerance, err_msg=name)
    with qconv.open(unknown) as model, pytest.raises(QconvError, match="glm5next"):
        load_network(model)  # the same name with other keys and tensors exists as well


def fused(tensors: dict[str, Any], name: str) -> Any:
    """The experts' matrices that another spelling has in one tensor."""
    place, number, part = name.removesuffix(".weight").rsplit(".", 2)
    if part == "down_proj":
        return tensors[f"{place}.down_proj"][int(number)]
    return np.split(tensors[f"{place}.gate_up_proj"][int(number)], 2)[part == "up_proj"]


@pytest.mark.oracles
@pytest.mark.filterwarnings("ignore")
def test_a_long_text_at_once_and_token_by_token(tmp_path: Path, context: OpenContext) -> None:
    """Longer than chunks of the delta rule here (16) and in transformers (64), and than all pools that are chosen (16 positions)."""
    import torch

    source = save(tmp_path / "model", MODEL)
    with torch.no_grad():
        wanted = source(torch.tensor([LONG])).logits[0].numpy()
        known = source(torch.tensor([LONG[:40]]), use_cache=True)
        steps, cached = [known.logits[0].numpy()], known.past_key_values
        for token in LONG[40:60]:
            known = source(torch.tensor([[token]]), past_key_values=cached, use_cache=True)
            steps.append(known.logits[0].numpy())
    largest = np.abs(wanted).max()
    assert np.abs(np.concatenate(steps) - wanted[:60]).max() < 2e-5 * largest
    with open_huggingface(tmp_path / "model", context) as folder:
        path = write_f32(tmp_path / "model.gguf", folder)
        with qconv.open(path) as file:
            for model in (folder, file):
                network = load_network(model)
                whole = np.concatenate([it.logits for it in forward(network, [LONG])])
                cache, parts = FloatCache(network.configuration, (len(LONG),)), []
                for part in (LONG[:19], *([token] for token in LONG[19:])):
                    parts += [it.logits for it in forward(network, [part], cache=cache)]
                for found in (whole, np.concatenate(parts)):
                    difference = np.abs(found - wanted).max() / largest
                    print(f"{len(LONG)} tokens: {difference:.1e}")
                    assert difference < 2e-5
    agreed = log_softmax(logits(path, LONG))
    assert np.abs(agreed - log_softmax(wanted)).max() < 1e-3


@pytest.mark.oracles
@pytest.mark.filterwarnings("ignore")
def test_the_multimodal_checkpoint_gives_the_text_model(tmp_path: Path, context: OpenContext) -> None:
    import transformers

    source = save(tmp_path / "text", MODEL)
    type(source).save_pretrained(source, tmp_path / "whole")
    assert "text_config" in json.loads((tmp_path / "whole" / "config.json").read_text())
    qconv.convert_model(tmp_path / "whole", tmp_path / "model.gguf", "f32")
    qconv.convert_model(tmp_path / "model.gguf", tmp_path / "back")
    config = text_alone(transformers.AutoConfig.from_pretrained(tmp_path / "back"))
    again = transformers.Glm5NextForConditionalGeneration.from_pretrained(tmp_path / "back", config=config).eval()
    for prompt in PROMPTS:
        wanted = expected(source, prompt)
        assert np.abs(expected(again, prompt) - wanted).max() < 2e-4 * np.ptp(wanted)
        assert np.abs(log_softmax(logits(tmp_path / "model.gguf", prompt)) - wanted).max() < 2e-2


WIDE = {
    "hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256, "q_lora_rank": 256, "kv_lora_rank": 256, "v_head_dim": 64,
    "linear_head_dim": 64,
}  # fmt: skip


SMALL = {
    0: "hc_ffn_fn ssm_f_a ssm_f_b ssm_g_a ssm_g_b ssm_beta ssm_conv1d_q",
    2: "hc_attn_fn indexer.attn_q_b indexer.attn_k indexer.proj indexer_compressor_gate indexer_compressor_ape attn_kv_a_mqa attn_k_b attn_v_b",
}


@pytest.mark.oracles
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["q4_k_m", "q8_0", "f16"])
def test_mixtures_run(kind: str, tmp_path: Path) -> None:
    """Short vectors of queries are Q8_0 in every mixture, what is small and delicate stays F32, and llama.cpp and this runtime read the same of it."""
    save(tmp_path / "model", replace(MODEL, config=MODEL.config | WIDE))
    qconv.convert_model(tmp_path / "model", tmp_path / "model.gguf", kind)
    with qconv.open(tmp_path / "model.gguf") as model:
        types = {name: tensor.encoding.name for name, tensor in model.tensors.items()}
        network = load_network(model)
        blocks = {len(prompt): list(forward(network, [prompt])) for prompt in PROMPTS}
    for name in ("attn_q_a", "attn_q_b"):
        assert types[f"blk.2.{name}.weight"] == ("F16" if kind == "f16" else "Q8_0")
    for layer, names in SMALL.items():
        assert {types[f"blk.{layer}.{name}.weight"] for name in names.split()} == {"F32"}
    assert types["blk.0.attn_q.weight"] == {"q4_k_m": "Q4_K", "q8_0": "Q8_0", "f16": "F16"}[kind]
    assert np.isfinite(logits(tmp_path / "model.gguf", PROMPTS[0])).all()
    # llama.cpp rounds what meets blocks as well, which says nothing about the blocks: it gets what they hold
    qconv.convert_model(
        tmp_path / "model.gguf", tmp_path / "plain.gguf", "f32", settings=Settings(allow_requantize=True)
    )
    for prompt in PROMPTS:
        (found,) = blocks[len(prompt)]
        difference = np.abs(log_softmax(found.logits) - log_softmax(logits(tmp_path / "plain.gguf", prompt))).max()
        print(f"{kind}: {difference:.1e}")
        assert difference < 2e-2
