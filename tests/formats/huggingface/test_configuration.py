from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_folder import CONFIGS, architecture_named
from hypothesis import given, settings
from hypothesis import strategies as st

from qconv.errors import ModelError, QconvError
from qconv.formats.huggingface.configuration import (
    check_configuration,
    hyper_parameter_metadata,
    read_hyper_parameters,
    text_section,
)
from qconv.formats.huggingface.rope import read_rope
from qconv.formats.metadata import ValueType

PATH = Path("config.json")


def values_of(name: str, **config: Any) -> Any:
    return read_hyper_parameters(architecture_named(name), CONFIGS[name] | config, PATH)


def checked(name: str, **config: Any) -> tuple[str, ...]:
    architecture = architecture_named(name)
    return check_configuration(architecture, CONFIGS[name] | config, values_of(name, **config), PATH)


def test_keys_defaults_and_types() -> None:
    architecture = architecture_named("mixtral")
    metadata = hyper_parameter_metadata(architecture, values_of("mixtral", rms_norm_eps=3e-6))
    assert {key: field.value for key, field in metadata.items()} == {
        "llama.vocab_size": 24,
        "llama.context_length": 64,
        "llama.embedding_length": 16,
        "llama.block_count": 2,
        "llama.feed_forward_length": 20,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 4,
        "llama.attention.value_length": 4,
        "llama.attention.layer_norm_rms_epsilon": 3e-6,
        "llama.expert_count": 3,
        "llama.expert_used_count": 2,
    }
    assert metadata["llama.attention.layer_norm_rms_epsilon"].type is ValueType.FLOAT32
    assert metadata["llama.block_count"].type is ValueType.UINT32


def test_expressions_fill_in() -> None:
    assert values_of("llama", num_key_value_heads=None)["kv_heads"] == 4
    assert values_of("llama", head_dim=None)["head_dim"] == 4
    assert values_of("llama", head_dim=32)["head_dim"] == 32
    assert values_of("gpt2", n_inner=None)["feed_forward"] == 64
    assert values_of("phi3", sliding_window=None)["window"] == 0
    assert "final_soft_cap" not in values_of("gemma3", final_logit_softcapping=None)


def test_whole_floats_are_integers() -> None:
    assert values_of("llama", hidden_size=16.0)["hidden"] == 16


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 0),
        ("hidden_size", -16),
        ("hidden_size", 16.5),
        ("hidden_size", "16"),
        ("hidden_size", True),
        ("hidden_size", [16]),
        ("hidden_size", 1 << 31),
        ("hidden_size", 10**400),
        ("hidden_size", float("nan")),
        ("num_hidden_layers", 1025),
        ("rms_norm_eps", "tiny"),
        ("rms_norm_eps", float("inf")),
        ("rms_norm_eps", 1e39),
        ("rms_norm_eps", None),
        ("tie_word_embeddings", 1),
    ],
)
def test_values_that_make_no_sense_are_named(key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=key) as caught:
        values_of("llama", **{key: value})
    assert caught.value.path == PATH
    assert caught.value.remedy
    assert len(str(caught.value)) < 300


def test_an_absent_size_is_named() -> None:
    config = {key: value for key, value in CONFIGS["llama"].items() if key != "hidden_size"}
    with pytest.raises(ModelError, match="lacks hidden_size"):
        read_hyper_parameters(architecture_named("llama"), config, PATH)


def test_a_null_soft_cap_is_not_taken_for_the_usual_one() -> None:
    with pytest.raises(ModelError, match="attn_logit_softcapping to null"):
        values_of("gemma2", attn_logit_softcapping=None)


def test_the_text_section_covers_the_outer_configuration() -> None:
    config = {"tie_word_embeddings": True, "hidden_size": 1, "text_config": {"hidden_size": 2}}
    section = text_section(architecture_named("gemma3"), config)
    assert (section["hidden_size"], section["tie_word_embeddings"]) == (2, True)
    assert text_section(architecture_named("llama"), config) is config


@pytest.mark.parametrize(
    ("name", "config", "sentence"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu' in the configuration, not 'silu'"),
        ("qwen3moe", {"norm_topk_prob": False}, "norm_topk_prob is False"),
        ("qwen3moe", {"norm_topk_prob": None}, "norm_topk_prob is False"),
        ("qwen3moe", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
        ("gemma2", {"query_pre_attn_scalar": 256}, "not 8"),
        ("gemma2", {"query_pre_attn_scalar": 8, "num_hidden_layers": 46}, "not 4"),
        ("gemma2", {"tie_word_embeddings": False}, "tied embeddings only"),
        ("gemma3", {"use_bidirectional_attention": True}, "both directions"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "caps no attention logits"),
        ("gemma3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("exaone4", {"sliding_window": 8}, "64 layers only"),
        ("smollm3", {"no_rope_layers": [1, 1, 0, 1, 1]}, "no_rope_layers is not 0 in every layer 4"),
        ("llama4", {"no_rope_layers": [1, 1, 0, 1, 1]}, "no_rope_layers is not 0 in every layer 4"),
        ("llama4", {"layer_types": ["full_attention"] * 5}, "'chunked_attention' in the rest"),
        ("smollm3", {"no_rope_layer_interval": 3}, "every fourth layer"),
        ("minicpm3", {"scale_emb": 10}, "by 12"),
        ("roberta", {"pad_token_id": 0}, "token 1"),
        ("gpt2", {"activation_function": "relu"}, "relu"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "alike in every layer"),
    ],
)
def test_what_cannot_be_expressed_is_an_error(name: str, config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelError) as caught:
        checked(name, **config)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("llama", {"sliding_window": 32}),
        ("qwen2", {"use_sliding_window": True}),
        ("phi3", {"sliding_window": 63}),
    ],
)
def test_windows_that_llama_cpp_ignores_are_notes(name: str, config: dict[str, Any]) -> None:
    (note,) = checked(name, **config)
    assert "window" in note


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("llama", {"sliding_window": 4096, "hidden_act": "silu"}),
        ("llama", {"sliding_window": None}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 8}),
        ("gemma2", {"layer_types": ["sliding_attention", "full_attention"]}),
        ("gemma3", {"sliding_window_pattern": 2, "layer_types": ["sliding_attention", "full_attention"]}),
        ("gemma2", {"query_pre_attn_scalar": 4, "num_hidden_layers": 46}),
    ],
)
def test_what_is_usual_needs_no_word(name: str, config: dict[str, Any]) -> None:
    assert checked(name, **config) == ()


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["factor", "rope_type", "full_attention", "x"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
KEYS = sorted(
    {key for name in CONFIGS for parameter in architecture_named(name).hyper_parameters for key in parameter.config}
    | {check.config for name in CONFIGS for check in architecture_named(name).checks}
    | {"rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor", "layer_types", "original_max_position_embeddings"}
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(sorted(CONFIGS)), changes=st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=3))
def test_junk_gives_an_error_of_ours_or_none(name: str, changes: dict[str, Any]) -> None:
    config = json.loads(json.dumps(CONFIGS[name] | changes))
    architecture = architecture_named(name)
    try:
        values = read_hyper_parameters(architecture, config, PATH)
        check_configuration(architecture, config, values, PATH)
        read_rope(architecture, config, values, PATH)
    except QconvError as error:
        assert str(error)


def test_null_alone_refuses_every_value() -> None:
    assert checked("olmoe") == checked("olmoe", clip_qkv=None) == ()
    with pytest.raises(
        ModelError, match=r"clip_qkv is 8.0 in the configuration, not null: llama\.cpp clips no queries"
    ):
        checked("olmoe", clip_qkv=8.0)


def test_sizes_that_follow_from_others_and_those_that_may_be_zero() -> None:
    values = values_of("deepseek3", first_k_dense_replace=0)
    assert (values["dense_layers"], values["head_dim"], values["mla_key_dim"], values["kv_heads"]) == (0, 14, 10, 1)
    with pytest.raises(ModelError, match="first_k_dense_replace: -1, which must be a whole number from 0"):
        values_of("deepseek3", first_k_dense_replace=-1)
    assert values_of("falcon")["kv_heads"] == 1
    assert values_of("falcon", new_decoder_architecture=True, num_kv_heads=2)["kv_heads"] == 2
    assert values_of("gpt-oss", quantization_config={"quant_method": "mxfp4"})["packed"] is True
    assert values_of("gpt-oss", quantization_config=None)["packed"] is False
