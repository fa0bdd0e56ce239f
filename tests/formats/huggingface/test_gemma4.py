"""Gemma 4: both spellings of what layers have for themselves, what a checkpoint has too much, and what llama.cpp cannot express."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_folder import CONFIGS, architecture_named, hf_shapes, random_weights, stored, write_folder
from memory_model import tensor as memory_tensor
from qconv_encodings import ENCODINGS
from tiny_networks import open_folder

import qconv
from qconv.errors import ModelError
from qconv.formats.architectures import map_names
from qconv.formats.huggingface.assembly import assemble
from qconv.formats.huggingface.checkpoint import open_checkpoint
from qconv.formats.huggingface.configuration import check_configuration, read_hyper_parameters, text_section
from qconv.formats.huggingface.rope import read_rope

GEMMA4 = architecture_named("gemma4")
CONFIG = CONFIGS["gemma4"]
PATH = Path("config.json")
KINDS = {"s": "sliding_attention", "f": "full_attention"}


def kinds(letters: str) -> list[str]:
    return [KINDS[letter] for letter in letters]


def values_of(config: dict[str, Any]) -> dict[str, Any]:
    return dict(read_hyper_parameters(GEMMA4, text_section(GEMMA4, config, PATH), PATH))


def check(config: dict[str, Any]) -> None:
    section = text_section(GEMMA4, config, PATH)
    check_configuration(GEMMA4, section, read_hyper_parameters(GEMMA4, section, PATH), PATH)


def test_both_spellings_of_full_layers() -> None:
    older = CONFIG | {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
    own = {"head_dim": 8, "num_key_value_heads": 1}
    newer = {key: value for key, value in older.items() if "global" not in key} | {
        "per_layer_config": {"1": own, "3": own}
    }
    assert values_of(newer) == values_of(older)
    assert values_of(newer)["kv_heads"] == (2, 1, 2, 1)
    assert values_of(newer)["head_dim"] == (4, 8, 4, 8)
    alike = {key: value for key, value in newer.items() if key != "per_layer_config"} | {"per_layer_config": {}}
    assert values_of(alike)["head_dim"] == (4,) * 4


def test_fewer_heads_of_full_layers_count_only_where_keys_are_values() -> None:
    assert values_of(CONFIG | {"num_global_key_value_heads": 1})["kv_heads"] == (2,) * 4


@pytest.mark.parametrize(
    "own",
    [
        {"1": {"head_dim": 8}, "3": {"head_dim": 16}},
        {"0": {"head_dim": 8}, "1": {"head_dim": 8}, "3": {"head_dim": 8}},
        {"1": {"head_dim": 8, "intermediate_size": 7}, "3": {"head_dim": 8, "intermediate_size": 7}},
        {"1": 8},
    ],
)
def test_layers_that_gguf_cannot_tell_apart_are_refused(own: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"per_layer_config .*GGUF cannot express"):
        values_of(CONFIG | {"per_layer_config": own})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer_types": kinds("sffs")}, "the last layer attends to everything"),
        ({"layer_types": kinds("fsff")}, "takes the keys of shared layers from the last two layers"),
        ({"layer_types": kinds("ffsf")}, "takes the keys of shared layers from the last two layers"),
        ({"num_kv_shared_layers": 4}, "must have keys of their own"),
        ({"num_kv_shared_layers": 3}, "must have keys of their own"),
        ({"use_bidirectional_attention": "all"}, "reads text in both directions"),
        ({"vocab_size_per_layer_input": 20}, "embeddings for the layers of every token"),
        ({"enable_moe_block": False}, "says that there are none"),
        ({"attention_bias": True}, "no biases"),
        ({"hidden_activation": "silu"}, "gelu_pytorch_tanh only"),
    ],
)
def test_what_llama_cpp_cannot_express_is_refused(changes: dict[str, Any], words: str) -> None:
    check(CONFIG)
    check(CONFIG | {"use_bidirectional_attention": "vision"})
    with pytest.raises(ModelError, match=words):
        check(CONFIG | changes)


def test_the_table_says_which_pairs_turn() -> None:
    def table(**full: Any) -> list[float]:
        parameters = {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": 5e3}}
        config = CONFIG | ({"rope_parameters": parameters} if full else {})
        found = read_rope(GEMMA4, config, values_of(config), PATH)
        assert found.metadata["gemma4.rope.dimension_count"].value == 8
        assert found.metadata["gemma4.rope.dimension_count_swa"].value == 4
        assert found.metadata["gemma4.rope.freq_base_swa"].value == (5e3 if full else 1e4)
        return [float(value) for value in found.tables["rope_freqs.weight"]]

    still = float(np.float32(1e30))
    assert table() == [1.0, still, still, still]
    assert table(rope_type="proportional", rope_theta=1e6, partial_rotary_factor=0.5) == [1.0, 1.0, still, still]
    assert table(rope_type="proportional", rope_theta=1e6, factor=4.0) == [4.0] * 4
    assert table(rope_type="default", rope_theta=1e6, partial_rotary_factor=0.5) == [1.0] * 4
    with pytest.raises(ModelError, match="partial_rotary_factor"):
        table(rope_type="proportional", rope_theta=1e6, partial_rotary_factor=2.0)
    with pytest.raises(ModelError, match="'yarn' is not known"):
        table(rope_type="yarn", rope_theta=1e6, factor=4.0)


def whole_checkpoint() -> dict[str, Any]:
    """Weights of a multimodal checkpoint: prefixes, towers, and keys of shared layers that nothing reads."""
    shapes = hf_shapes(GEMMA4, CONFIG, optional=True)
    found = {f"model.language_{name}": array for name, array in random_weights(shapes).items()}
    towers = ("vision_tower.encoder.x.weight", "audio_tower.y.weight", "embed_vision.z.weight", "embed_audio.z.weight")
    return found | {f"model.{name}": np.ones((2, 2), np.float32) for name in towers}


def test_a_multimodal_checkpoint(tmp_path: Path) -> None:
    text = {key: value for key, value in CONFIG.items() if key != "architectures"}
    outer = {"architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "text_config": text}
    write_folder(tmp_path / "source", outer, stored(whole_checkpoint()))
    with open_folder(tmp_path / "source") as model:
        assert [note.split(": ")[1] for note in model.notes] == [
            f"the {tower} tower is left out" for tower in ("vision", "audio")
        ]
        assert "blk.2.attn_k.weight" in model.tensors, "kept, although it is another layer's that is read"
        assert "blk.3.attn_v.weight" in model.tensors
        assert model.metadata["gemma4.attention.shared_kv_layers"].value == 2


@pytest.mark.usefixtures("no_tokenizer")
def test_there_and_back_without_what_the_file_keeps(tmp_path: Path) -> None:
    from conversions import convert_without_source

    weights = random_weights(hf_shapes(GEMMA4, CONFIG, optional=True))
    write_folder(tmp_path / "source", CONFIG, stored(weights))
    qconv.convert_model(tmp_path / "source", tmp_path / "model.gguf", "bf16")
    convert_without_source(tmp_path / "model.gguf", tmp_path / "back", "hf")
    found = json.loads((tmp_path / "back" / "config.json").read_text())
    wanted = {key: value for key, value in CONFIG.items() if key != "architectures"}
    assert {key: found[key] for key in wanted} == wanted
    assert found["rope_parameters"] == {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    with open_folder(tmp_path / "source") as source, open_folder(tmp_path / "back") as back:
        assert source.tensors.keys() == back.tensors.keys()


def test_a_scale_of_a_tensor_does_not_take_the_place_of_the_models_own(tmp_path: Path) -> None:
    """GGUF calls both the experts' weights in a sum, and the scale of an NVFP4 tensor, ``ffn_down_exps.scale``."""
    shapes = hf_shapes(GEMMA4, CONFIG)
    values, label = values_of(CONFIG), "model.layers.0.experts.down_proj"
    write_folder(tmp_path / "m", CONFIG, stored(random_weights(shapes)))
    with closing(open_checkpoint(tmp_path / "m")) as checkpoint:
        names = map_names(GEMMA4, checkpoint.tensors, values)
        scale = memory_tensor(f"{label}_scale", np.ones(3, np.float32))
        with pytest.raises(ModelError, match=r"blk\.0\.ffn_down_exps\.scale in GGUF another tensor"):
            assemble(names, checkpoint.tensors, values, ENCODINGS, {label: scale})
