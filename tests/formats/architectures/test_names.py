from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_folder import CONFIGS, architecture_named, hf_shapes

from qconv.formats.architectures import NameMap, built_in_architectures, map_names
from qconv.formats.architectures.names import least_distance
from qconv.formats.huggingface.configuration import read_hyper_parameters


def mapped(name: str, names: list[str], **values: object) -> NameMap:
    return map_names(architecture_named(name), names, {"layers": 2, "experts": 3, "tied": False} | values)


def names_of(name: str) -> list[str]:
    return list(hf_shapes(architecture_named(name), CONFIGS[name] | {"tie_word_embeddings": False}))


def test_order_is_embedding_layers_head_whatever_the_files_say() -> None:
    found = [name for item in mapped("llama", names_of("llama")[::-1]).mapped for name in item.gguf]
    assert found[0] == "token_embd.weight"
    assert found[-2:] == ["output_norm.weight", "output.weight"]
    layers = [int(name.split(".")[1]) for name in found[1:-2]]
    assert layers == sorted(layers)


def test_names_without_the_prefix_are_understood() -> None:
    for name, prefix in (("llama", "model."), ("gpt2", "transformer."), ("gemma3", "model.")):
        bare = [other.removeprefix(prefix) for other in names_of(name)]
        found = mapped(name, bare)
        assert not (found.unmapped or found.missing)
        assert {source for item in found.mapped for source in item.sources} == set(bare)


def test_the_language_model_within_a_multimodal_one() -> None:
    names = names_of("gemma3")
    older = [f"language_model.{name}" for name in names] + ["vision_tower.a.weight", "multi_modal_projector.b"]
    newer = [name.replace("model.", "model.language_model.", 1) for name in names] + ["model.vision_tower.a.weight"]
    for form in (older, newer):
        found = mapped("gemma3", form)
        assert not (found.unmapped or found.missing)
        assert {reason for _, reason in found.dropped} == {"the vision tower is left out: this is the text model alone"}


def test_two_names_for_one_tensor_are_ambiguous() -> None:
    found = mapped("llama", [*names_of("llama"), "norm.weight"])
    assert found.ambiguous == (("model.norm.weight", "norm.weight"),)


def test_odd_numbers_are_unmapped() -> None:
    odd = [
        "model.layers.2.input_layernorm.weight",
        "model.layers.00.input_layernorm.weight",
        "model.layers.-1.input_layernorm.weight",
        "model.layers.٣.input_layernorm.weight",
        f"model.layers.{'9' * 300}.input_layernorm.weight",
        "model.layers.{layer}.input_layernorm.weight",
    ]
    found = mapped("llama", [*names_of("llama"), *odd])
    assert set(found.unmapped) == set(odd)
    assert not found.missing


def test_caches_of_the_class_are_dropped_silently() -> None:
    inverse = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert mapped("llama", [*names_of("llama"), inverse]).dropped == ((inverse, None),)
    for name in ("transformer.h.0.attn.bias", "h.1.attn.masked_bias"):
        assert (name, None) in mapped("gpt2", [*names_of("gpt2"), name]).dropped


def test_a_stored_copy_of_tied_embeddings_is_dropped_with_a_reason() -> None:
    found = mapped("llama", names_of("llama"), tied=True)
    assert [name for name, _ in found.dropped] == ["lm_head.weight"]
    assert "output.weight" not in [name for item in found.mapped for name in item.gguf]


def test_untied_models_miss_their_head() -> None:
    names = [name for name in names_of("llama") if name != "lm_head.weight"]
    assert mapped("llama", names).missing == ("lm_head.weight",)
    assert mapped("llama", names, tied=True).missing == ()


def test_experts_may_be_stacked_already() -> None:
    separate = names_of("qwen3moe")
    stacked = [name for name in separate if ".experts." not in name]
    stacked += [f"model.layers.{layer}.mlp.experts.{part}_proj" for layer in range(2) for part in ("gate_up", "down")]
    found = mapped("qwen3moe", stacked)
    assert not (found.unmapped or found.missing)
    assert [name for item in found.mapped for name in item.gguf if "gate_exps" in name] == [
        "blk.0.ffn_gate_exps.weight",
        "blk.1.ffn_gate_exps.weight",
    ]


def test_one_absent_expert_is_missing_and_only_that() -> None:
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    assert mapped("qwen3moe", [other for other in names_of("qwen3moe") if other != name]).missing == (name,)


def test_both_forms_of_experts_leave_one_without_a_place() -> None:
    name = "model.layers.0.mlp.experts.down_proj"
    assert mapped("qwen3moe", [*names_of("qwen3moe"), name]).unmapped == (name,)


@pytest.mark.parametrize(
    "family", ["llama", "qwen3moe", "gemma3n", "nemotron_h", "granite", "bert", "gpt-oss", "deepseek2"]
)
def test_the_least_distance_is_no_more_than_the_distance(family: str) -> None:
    """For checkpoints of many kinds against every description, and for layers that are not there."""
    names = [*names_of(family), "odd.weight"]
    for architecture in built_in_architectures():
        config = CONFIGS[architecture.name]
        for layers in (1, 2, 9):
            values = {**read_hyper_parameters(architecture, config, Path("config.json")), "layers": layers}
            values = {key: value[:1] * layers if isinstance(value, tuple) else value for key, value in values.items()}
            found = map_names(architecture, names, values)
            assert least_distance(architecture, names, values) <= len(found.unmapped) + len(found.missing)


def test_layers_that_a_configuration_claims_are_not_gone_through() -> None:
    llama = architecture_named("llama")
    assert least_distance(llama, names_of("llama"), {"layers": 1 << 30, "tied": False}) > 1 << 29
