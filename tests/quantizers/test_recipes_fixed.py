"""Each trap of llama.cpp's choice: there with ``compat``, gone without."""

from __future__ import annotations

from dataclasses import replace

import pytest
from model_shapes import LLAMA_7B, LLAMA_8B, MIXTRAL, QWEN3_MOE, Shapes

from qconv.errors import EncodingError
from qconv.quantizers.recipes import ModelFacts, RecipeRequest, TensorInfo, choose_types


def both(
    shapes: Shapes, request: RecipeRequest, facts: ModelFacts | None = None
) -> tuple[dict[str, str], dict[str, str]]:
    """Encodings by tensor name: llama.cpp's, and ours."""
    found = [
        {
            c.name: c.encoding
            for c in choose_types(shapes.tensors(), facts or shapes.facts(), replace(request, compat=compat))
        }
        for compat in (True, False)
    ]
    return found[0], found[1]


def test_overrides_do_not_shift_the_mixture() -> None:
    theirs, ours = both(LLAMA_7B, RecipeRequest("q4_k_m", tensor_rules=((r"blk\.[0-2]\.attn_v", "q8_0"),)))
    plain = both(LLAMA_7B, RecipeRequest("q4_k_m"))[1]
    later = [f"blk.{b}.attn_v.weight" for b in range(3, 32)]
    assert [ours[n] for n in later] == [plain[n] for n in later]
    assert [theirs[f"blk.{b}.attn_v.weight"] for b in (3, 4, 5, 6, 28, 29)] == ["Q6_K"] * 4 + ["Q4_K"] * 2
    assert ours["blk.0.attn_v.weight"] == theirs["blk.0.attn_v.weight"] == "Q8_0"


def test_the_last_rule_wins() -> None:
    theirs, ours = both(
        LLAMA_8B, RecipeRequest("q4_k_m", tensor_rules=(("attn_q", "q5_k"), (r"blk\.3\.attn_q", "q6_k")))
    )
    assert (theirs["blk.3.attn_q.weight"], ours["blk.3.attn_q.weight"]) == ("Q5_K", "Q6_K")
    assert (theirs["blk.4.attn_q.weight"], ours["blk.4.attn_q.weight"]) == ("Q5_K", "Q5_K")


def test_patterns_are_taken_as_written() -> None:
    theirs, ours = both(LLAMA_8B, RecipeRequest("q4_k_m", tensor_rules=((r"attn_q\S+", "q6_k"),)))
    assert (theirs["blk.4.attn_q.weight"], ours["blk.4.attn_q.weight"]) == ("Q4_K", "Q6_K")


@pytest.mark.parametrize("target", ["f16", "bf16", "f32", "copy"])
def test_overrides_hold_for_floats(target: str) -> None:
    theirs, ours = both(LLAMA_8B, RecipeRequest(target, tensor_rules=(("attn_q", "q6_k"),)))
    plain = {"f16": "F16", "bf16": "BF16", "f32": "F32", "copy": "F16"}[target]
    assert (theirs["blk.4.attn_q.weight"], ours["blk.4.attn_q.weight"]) == (plain, "Q6_K")


def test_overrides_are_checked_for_shape() -> None:
    tensors = [TensorInfo("token_embd.weight", (320, 288), "F16"), TensorInfo("output.weight", (320, 288), "F16")]
    request = RecipeRequest("q4_0", token_embedding_type="q4_k")
    embedding, _ = choose_types(tensors, ModelFacts("llama", 1), request)
    assert (embedding.wanted, embedding.encoding, embedding.is_fallback) == ("Q4_K", "Q5_0", True)
    with pytest.raises(EncodingError, match=r"token_embd\.weight.*288 columns"):
        choose_types(tensors, ModelFacts("llama", 1), replace(request, compat=True))


def test_sharing_is_that_of_attention_blocks() -> None:
    facts = ModelFacts("lfm2", 32, 0, (32,), (0, 8) * 16)
    theirs, ours = both(LLAMA_8B, RecipeRequest("q2_k"), facts)
    assert (theirs["blk.1.attn_v.weight"], ours["blk.1.attn_v.weight"]) == ("Q3_K", "Q4_K")


def test_prediction_blocks_do_not_count() -> None:
    shapes = replace(LLAMA_7B, blocks=33)
    facts = replace(shapes.facts(), prediction_blocks=1)
    theirs, ours = both(shapes, RecipeRequest("q4_k_m"), facts)
    plain = both(LLAMA_7B, RecipeRequest("q4_k_m"))[1]
    assert {name: ours[name] for name in plain} == plain
    assert (theirs["blk.32.ffn_down.weight"], ours["blk.32.ffn_down.weight"]) == ("Q6_K", "Q4_K")
    assert (theirs["blk.32.attn_v.weight"], ours["blk.32.attn_v.weight"]) == ("Q6_K", "Q4_K")
    assert theirs["blk.28.ffn_down.weight"] == "Q6_K"


def test_widely_shared_values_get_more_bits_in_models_of_any_depth() -> None:
    shallow = replace(LLAMA_8B, blocks=36, heads=64)
    theirs, ours = both(shallow, RecipeRequest("q4_k_m"))
    middle = "blk.5.attn_v.weight"
    assert (theirs[middle], ours[middle]) == ("Q4_K", "Q5_K")
    deep = replace(LLAMA_8B, blocks=80, heads=32)
    theirs, ours = both(deep, RecipeRequest("q4_k_m"))
    assert (theirs["blk.10.attn_v.weight"], ours["blk.10.attn_v.weight"]) == ("Q5_K", "Q4_K")


def test_many_experts() -> None:
    theirs, ours = both(QWEN3_MOE, RecipeRequest("q4_k_m"))
    for kind, compat, fixed in (
        ("attn_k", "Q4_K", "Q8_0"),
        ("attn_v", "Q4_K", "Q8_0"),
        ("attn_output", "Q4_K", "Q5_K"),
    ):
        assert (theirs[f"blk.7.{kind}.weight"], ours[f"blk.7.{kind}.weight"]) == (compat, fixed)
    theirs, ours = both(MIXTRAL, RecipeRequest("q3_k_l"))
    assert (theirs["blk.7.attn_output.weight"], ours["blk.7.attn_output.weight"]) == ("Q3_K", "Q5_K")


def test_per_layer_embeddings_are_no_output() -> None:
    tensors = [
        TensorInfo("token_embd.weight", (320, 256), "F16"),
        TensorInfo("per_layer_token_embd.weight", (320, 2560), "F16"),
    ]
    for compat, expected in ((True, ["Q6_K", "Q6_K"]), (False, ["Q6_K", "Q4_K"])):
        choices = choose_types(tensors, ModelFacts("gemma3n", 10), RecipeRequest("q4_k_m", compat=compat))
        assert [c.encoding for c in choices] == expected


def test_importance_is_looked_up_by_tensor() -> None:
    request = RecipeRequest("q4_0", importance=frozenset({"blk.1.ffn_down.weight"}))
    theirs, ours = both(LLAMA_7B, request)
    down = [f"blk.{b}.ffn_down.weight" for b in range(5)]
    assert [theirs[n] for n in down] == ["Q4_1"] * 4 + ["Q4_0"]
    assert [ours[n] for n in down] == ["Q4_0", "Q4_1", "Q4_0", "Q4_0", "Q4_0"]


def test_q1_0_falls_back() -> None:
    tensors = [TensorInfo("blk.0.attn_q.weight", (576, 576), "F16")]
    assert choose_types(tensors, ModelFacts("llama", 1), RecipeRequest("q1_0"))[0].encoding == "Q2_0"
    with pytest.raises(EncodingError, match="no fallback for Q1_0 with 576 columns"):
        choose_types(tensors, ModelFacts("llama", 1), RecipeRequest("q1_0", compat=True))


def test_llama_cpp_refuses_experts_outside_the_blocks() -> None:
    tensors = [TensorInfo("blk.9.ffn_down_exps.weight", (8, 256, 256), "F16")]
    facts = ModelFacts("llama", 2, expert_count=8)
    with pytest.raises(EncodingError, match="block 9 of 2"):
        choose_types(tensors, facts, RecipeRequest("q4_k_m", compat=True))
    assert choose_types(tensors, facts, RecipeRequest("q4_k_m"))[0].encoding == "Q4_K"
