"""Recipes: names, the mixtures' sizes against those of llama.cpp's own files, requests and their errors."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import gguf
import numpy as np
import pytest
from model_shapes import LLAMA_7B, LLAMA_8B, LLAMA_70B, MIXTRAL, PHI_3, QWEN3_MOE, SMOL, Shapes
from qconv_encodings import ENCODINGS

from qconv.errors import EncodingError, ModelError, UnknownTypeError, UsageError
from qconv.quantizers.recipes import (
    ALIASES,
    Choice,
    ModelFacts,
    RecipeRequest,
    TensorInfo,
    check_importance,
    choose_types,
    find_recipe,
    model_facts,
    recipes,
    unmatched_rules,
    visiting_order,
    without_importance,
)
from qconv.quantizers.recipes.situation import CONDITIONS
from qconv.quantizers.recipes.tables import fallbacks

# bits per weight of real llama-quantize's files, an importance matrix given, for the six models in this order
MODELS = (LLAMA_7B, LLAMA_8B, LLAMA_70B, MIXTRAL, QWEN3_MOE, PHI_3)
BITS = {
    "IQ1_S": (1.81, 2.00, 1.74, 1.68, 1.68, 2.01),
    "IQ1_M": (1.96, 2.15, 1.90, 1.86, 1.85, 2.13),
    "IQ2_XXS": (2.20, 2.38, 2.16, 2.15, 2.14, 2.32),
    "IQ2_XS": (2.42, 2.59, 2.40, 2.38, 2.38, 2.49),
    "IQ2_S": (2.61, 2.74, 2.52, 2.42, 2.42, 2.81),
    "IQ2_M": (2.80, 2.93, 2.73, 2.65, 2.66, 2.96),
    "Q2_K_S": (2.75, 2.97, 2.77, 2.75, 2.76, 2.78),
    "Q2_K": (3.01, 3.16, 2.99, 2.97, 2.95, 3.16),
    "IQ3_XXS": (3.07, 3.25, 3.11, 3.12, 3.10, 3.17),
    "IQ3_XS": (3.32, 3.50, 3.32, 3.31, 3.30, 3.40),
    "IQ3_S": (3.50, 3.66, 3.50, 3.50, 3.48, 3.52),
    "IQ3_M": (3.70, 3.76, 3.62, 3.67, 3.53, 3.88),
    "Q3_K_S": (3.50, 3.64, 3.50, 3.50, 3.48, 3.52),
    "Q3_K_M": (3.91, 4.00, 3.88, 3.86, 3.85, 4.11),
    "Q3_K_L": (4.27, 4.30, 4.21, 4.14, 4.16, 4.61),
    "IQ4_XS": (4.30, 4.42, 4.30, 4.30, 4.29, 4.31),
    "IQ4_NL": (4.54, 4.65, 4.54, 4.54, 4.53, 4.55),
    "Q4_0": (4.55, 4.65, 4.55, 4.55, 4.55, 4.57),
    "Q4_1": (5.03, 5.10, 5.02, 5.03, 5.03, 5.04),
    "Q4_K_S": (4.58, 4.67, 4.57, 4.58, 4.57, 4.61),
    "Q4_K_M": (4.84, 4.89, 4.82, 4.87, 4.87, 5.02),
    "Q5_0": (5.54, 5.59, 5.53, 5.54, 5.54, 5.54),
    "Q5_1": (6.01, 6.04, 6.01, 6.02, 6.02, 6.02),
    "Q5_K_S": (5.52, 5.57, 5.52, 5.52, 5.52, 5.53),
    "Q5_K_M": (5.68, 5.70, 5.66, 5.69, 5.69, 5.77),
    "Q6_K": (6.56, 6.56, 6.56, 6.57, 6.57, 6.56),
    "Q8_0": (8.50, 8.50, 8.50, 8.50, 8.51, 8.50),
    "MXFP4_MOE": (8.50, 8.50, 8.50, 4.40, 4.41, 8.50),
}


def chosen(shapes: Shapes, request: RecipeRequest, source: str = "F16") -> dict[str, Choice]:
    """The choices by tensor name."""
    return {c.name: c for c in choose_types(shapes.tensors(source), shapes.facts(), request)}


def encodings(shapes: Shapes, request: RecipeRequest) -> dict[str, str]:
    """The chosen encodings by tensor name."""
    return {name: c.encoding for name, c in chosen(shapes, request).items()}


def bits_per_weight(shapes: Shapes, request: RecipeRequest) -> float:
    """Bits of all tensors by their number of weights."""
    found = encodings(shapes, request)
    tensors = shapes.tensors()
    return sum(8 * ENCODINGS[found[t.name]].nbytes(t.shape) for t in tensors) / sum(prod(t.shape) for t in tensors)


def everything(shapes: Shapes) -> frozenset[str]:
    """An importance matrix with an entry for every tensor."""
    return frozenset(t.name for t in shapes.tensors())


def test_names_numbers_and_aliases() -> None:
    names = [name for name in recipes() if name != "COPY"]
    assert len(names) == 35
    numbers = {member.name.removeprefix("MOSTLY_").removeprefix("ALL_"): member.value for member in gguf.LlamaFileType}
    assert {name: recipes()[name].file_type for name in names if name != "Q2_0"} == {
        name: numbers[name] for name in names if name != "Q2_0"
    }
    assert find_recipe("q2_0").file_type == 41
    assert [find_recipe(alias.lower()).name for alias in ALIASES] == ["Q3_K_M", "Q4_K_M", "Q5_K_M"]
    assert find_recipe("15").name == "Q4_K_M"
    assert all(recipe.about for recipe in recipes().values())


def test_every_encoding_and_condition_in_the_data_exists() -> None:
    for recipe in recipes().values():
        named = {recipe.base, recipe.output, recipe.embedding} - {None}
        rules = [rule for several in recipe.rules.values() for rule in several]
        assert named | {rule.encoding for rule in rules} <= set(ENCODINGS)
        assert {condition for rule in rules for condition in rule.conditions} <= set(CONDITIONS)
    table = fallbacks()
    assert {*table.llama_cpp, *table.llama_cpp.values(), *table.added, *table.added.values(), table.last} <= set(
        ENCODINGS
    )


def test_an_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(UnknownTypeError, match=r"did you mean .*Q4_K_M.*qconv types"):
        find_recipe("q4km")
    with pytest.raises(UnknownTypeError, match="Q6_K"):
        choose_types([], ModelFacts(), RecipeRequest("q8_0", tensor_rules=(("attn", "q6k"),)))
    with pytest.raises(EncodingError, match="does not hold weights"):
        choose_types([], ModelFacts(), RecipeRequest("q8_0", output_tensor_type="i32"))
    with pytest.raises(UsageError, match="no regular expression"):
        choose_types([], ModelFacts(), RecipeRequest("q8_0", tensor_rules=(("attn(", "q6_k"),)))


@pytest.mark.parametrize("name", BITS)
def test_bits_per_weight_are_llama_cpps(name: str) -> None:
    for shapes, expected in zip(MODELS, BITS[name], strict=True):
        request = RecipeRequest(name, compat=True, importance=everything(shapes))
        assert bits_per_weight(shapes, request) == pytest.approx(expected, abs=0.0051)


@pytest.mark.parametrize("name", BITS)
def test_fixes_leave_ordinary_dense_models_alone(name: str) -> None:
    """Nothing of §"fixed traps" applies to the Llama family, nor to Mixtral apart from Q3_K_L."""
    for shapes in (LLAMA_7B, LLAMA_8B, LLAMA_70B, SMOL, *([] if name == "Q3_K_L" else [MIXTRAL])):
        for importance in (frozenset[str](), everything(shapes)):
            request = RecipeRequest(name, importance=importance)
            assert encodings(shapes, request) == encodings(shapes, replace(request, compat=True))


def test_more_bits_for_half_of_the_blocks() -> None:
    found = encodings(LLAMA_7B, RecipeRequest("q4_k_m"))
    raised = [b for b in range(32) if found[f"blk.{b}.attn_v.weight"] == "Q6_K"]
    assert raised == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert [b for b in range(32) if found[f"blk.{b}.ffn_down.weight"] == "Q6_K"] == raised
    for blocks, count in {16: 8, 24: 12, 26: 13, 28: 14, 36: 18, 40: 20, 48: 24, 61: 30, 64: 32, 80: 40}.items():
        other = encodings(replace(LLAMA_7B, blocks=blocks), RecipeRequest("q4_k_m"))
        assert sum(other[f"blk.{b}.attn_v.weight"] == "Q6_K" for b in range(blocks)) == count


def test_what_is_never_quantized() -> None:
    names = {
        "blk.0.attn_norm.weight": (64, 256),
        "blk.0.ffn_gate_inp.weight": (8, 256),
        "blk.0.attn_q.bias": (256,),
        "blk.0.ssm_a": (16, 256),
        "blk.0.ffn_gate_inp_shexp.weight": (1, 256),
        "position_embd.weight": (1024, 256),
    }
    tensors = [TensorInfo(name, shape, "BF16") for name, shape in names.items()]
    integers = TensorInfo("blk.0.ffn_gate.weight", (256, 256), "I32")
    kept = choose_types([*tensors, integers], ModelFacts("llama", 1), RecipeRequest("q8_0"))
    assert [c.encoding for c in kept] == ["BF16"] * 6 + ["I32"]
    assert all(c.is_copy and c.why.startswith("never quantized: ") for c in kept)
    widened = choose_types([*tensors, integers], ModelFacts("llama", 1), RecipeRequest("q8_0", unquantized="F32"))
    assert [c.encoding for c in widened] == ["F32"] * 6 + ["I32"]


@pytest.mark.parametrize(
    ("recipe", "usual"), [("q2_k", "Q2_K"), ("q4_k_m", "Q4_K"), ("q6_k", "Q6_K"), ("q8_0", "Q8_0")]
)
def test_what_glm5_next_keeps(recipe: str, usual: str) -> None:
    """llama.cpp gives short vectors of queries and the way into the block for the token after next Q8_0 in every mixture, and leaves what is delicate alone."""
    eight = ("blk.9.attn_q_a.weight", "blk.9.attn_q_b.weight", "blk.9.nextn.eh_proj.weight")
    kept = [
        "hc_attn_fn",
        "hc_ffn_fn",
        "indexer.attn_q_b",
        "indexer.attn_k",
        "indexer.proj",
        "indexer_compressor_gate",
        "indexer_compressor_ape",
    ]
    kept += ["ssm_f_a", "ssm_f_b", "ssm_g_a", "ssm_g_b", "ssm_beta", "attn_kv_a_mqa", "attn_k_b", "attn_v_b"]
    names = ["blk.9.attn_q.weight", *eight, *(f"blk.9.{name}.weight" for name in kept)]
    tensors = [TensorInfo(name, (256, 256), "BF16") for name in names]
    for architecture, copied in (("glm5-next", len(kept)), ("glm-dsa", 0)):
        found = {it.name: it for it in choose_types(tensors, ModelFacts(architecture, 46), RecipeRequest(recipe))}
        assert found["blk.9.attn_q.weight"].encoding == usual
        assert sum(it.is_copy for it in found.values()) == copied
        if copied:
            assert {found[name].encoding for name in eight} == {"Q8_0"}


def test_copy_and_floats() -> None:
    tensors = [TensorInfo("blk.0.attn_q.weight", (300, 300), "BF16"), TensorInfo("output_norm.weight", (300,), "BF16")]
    facts = ModelFacts("llama", 1)
    assert [c.encoding for c in choose_types(tensors, facts, RecipeRequest("copy"))] == ["BF16", "BF16"]
    assert [c.encoding for c in choose_types(tensors, facts, RecipeRequest("f16", unquantized="F32"))] == ["F16", "F32"]
    quantized = [TensorInfo("blk.0.attn_q.weight", (256, 256), "Q4_K")]
    assert choose_types(quantized, facts, RecipeRequest("f32"))[0].encoding == "F32"
    assert choose_types(quantized, facts, RecipeRequest("q4_k_s"))[0].is_copy
    for request in (RecipeRequest("q6_k"), RecipeRequest("f32", compat=True)):
        with pytest.raises(EncodingError, match=r"blk\.0\.attn_q\.weight.*Q4_K already.*--allow-requantize"):
            choose_types(quantized, facts, request)
        assert not choose_types(quantized, facts, replace(request, allow_requantize=True))[0].is_copy


def test_pure_and_leave_output() -> None:
    pure = encodings(LLAMA_8B, RecipeRequest("q4_k_m", pure=True))
    assert set(pure.values()) == {"Q4_K", "F32"}
    assert encodings(LLAMA_8B, RecipeRequest("q4_k_m", leave_output_tensor=True))["output.weight"] == "F16"
    with pytest.raises(UsageError):
        choose_types([], ModelFacts(), RecipeRequest("q8_0", leave_output_tensor=True, output_tensor_type="q8_0"))


def test_embedding_and_output_overrides() -> None:
    request = RecipeRequest("q4_k_m", output_tensor_type="q8_0", token_embedding_type="q5_k")
    found = chosen(LLAMA_8B, request)
    assert (found["output.weight"].encoding, found["token_embd.weight"].encoding) == ("Q8_0", "Q5_K")
    tied = encodings(SMOL, RecipeRequest("f16", output_tensor_type="q8_0"))
    assert tied["token_embd.weight"] == "Q8_0"


def test_fallbacks() -> None:
    found = chosen(SMOL, RecipeRequest("q4_k_m"))
    changed = [c for c in found.values() if c.is_fallback]
    assert len(changed) == 181  # 180 and the embedding, which doubles as the output
    query = found["blk.5.attn_q.weight"]
    assert (query.wanted, query.encoding, query.why) == ("Q4_K", "Q5_0", "fallback: 576 columns are no multiple of 256")
    assert (found["token_embd.weight"].wanted, found["token_embd.weight"].encoding) == ("Q6_K", "Q8_0")
    assert bits_per_weight(SMOL, RecipeRequest("q4_k_m")) == pytest.approx(6.17, abs=0.0051)
    with pytest.raises(EncodingError, match=r"576 columns.*and so for 180 more tensors.*--no-fallback"):
        chosen(SMOL, RecipeRequest("q4_k_m", no_fallback=True))


@pytest.mark.parametrize(
    ("wanted", "columns", "expected"),
    [
        ("q1_0", 384 + 64, "Q2_0"),
        ("q1_0", 288, "Q4_0"),
        ("q2_0", 288, "Q4_0"),
        ("mxfp4_moe", 100, "F16"),
        ("q6_k", 288, "Q8_0"),
        ("iq4_xs", 288, "IQ4_NL"),
        ("iq4_xs", 100, "F16"),
        ("q5_k_s", 288, "Q5_1"),
    ],
)
def test_each_fallback(wanted: str, columns: int, expected: str) -> None:
    (choice,) = choose_types(
        [TensorInfo("blk.9.other.weight", (4, columns), "F32")], ModelFacts("llama", 10), RecipeRequest(wanted)
    )
    assert (choice.encoding, choice.is_fallback) == (expected, True)


def test_the_output_of_an_odd_width_is_q8_0_whatever_was_wanted() -> None:
    tensors = [TensorInfo("output.weight", (320, 288), "F32")]
    (choice,) = choose_types(tensors, ModelFacts("llama", 10), RecipeRequest("iq2_xs"))
    assert (choice.wanted, choice.encoding) == ("Q5_K", "Q8_0")


def test_importance_is_demanded_by_tensor() -> None:
    importance = everything(LLAMA_8B)
    needy = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"}
    for name in recipes():
        request = RecipeRequest(name)
        choices = choose_types(LLAMA_8B.tensors(), LLAMA_8B.facts(), request)
        assert bool(without_importance(choices, request)) == (name in needy)
        whole = replace(request, importance=importance)
        check_importance(choose_types(LLAMA_8B.tensors(), LLAMA_8B.facts(), whole), whole)
    request = RecipeRequest("iq2_xs", importance=importance - {"blk.7.ffn_up.weight"})
    choices = choose_types(LLAMA_8B.tensors(), LLAMA_8B.facts(), request)
    with pytest.raises(EncodingError, match=r"blk\.7\.ffn_up\.weight.*no entry.*--imatrix"):
        check_importance(choices, request)
    bare = RecipeRequest("iq2_xs")
    with pytest.raises(EncodingError, match=r"no importance matrix, and so for \d+ more tensors"):
        check_importance(choose_types(LLAMA_8B.tensors(), LLAMA_8B.facts(), bare), bare)


def test_keys_that_nothing_reads_need_no_importance() -> None:
    unread = {f"blk.{block}.attn_{kind}.weight" for block in range(28, 32) for kind in "kv"}
    facts = replace(LLAMA_8B.facts(), shared_blocks=4)
    for name in ("iq1_s", "iq2_xxs", "q2_k_s"):
        request = RecipeRequest(name, importance=everything(LLAMA_8B) - unread)
        choices = choose_types(LLAMA_8B.tensors(), facts, request)
        check_importance(choices, request)
        found = {choice.name: choice for choice in choices}
        assert {found[tensor].encoding for tensor in unread} <= {"Q3_K", "Q4_K"}
        assert found["blk.28.attn_k.weight"].why == f"{name.upper()}: nothing reads it"
        assert found["blk.27.attn_k.weight"].encoding != "Q3_K"
        with pytest.raises(EncodingError, match="no entry"):
            check_importance(choose_types(LLAMA_8B.tensors(), LLAMA_8B.facts(), request), request)
    key = {"general.architecture": "gemma4", "gemma4.block_count": 9, "gemma4.attention.shared_kv_layers": 3}
    assert model_facts(key).shared_blocks == 3


def test_visiting_order() -> None:
    names = ["blk.10.a", "blk.2.b", "output.weight", "blk.2.a", "A"]
    assert visiting_order(names) == ["A", "output.weight", "blk.2.a", "blk.2.b", "blk.10.a"]


def test_model_facts() -> None:
    facts = model_facts(
        {
            "general.architecture": "lfm2",
            "lfm2.block_count": 4,
            "lfm2.attention.head_count": 32,
            "lfm2.attention.head_count_kv": np.array([0, 8, 0, 8], np.int32),
            "lfm2.nextn_predict_layers": 1,
            "tokenizer.ggml.tokens": ("a", "b"),
        }
    )
    assert facts == ModelFacts("lfm2", 4, 1, (32,), (0, 8, 0, 8), 0)
    assert (facts.first_sharing, facts.usual_sharing, facts.main_blocks) == (0, 4, 3)
    assert model_facts({"general.architecture": "x", "x.attention.head_count": 4}).key_value_heads == (4,)
    assert model_facts({}) == ModelFacts()
    assert model_facts({"general.architecture": "glm5next", "glm5next.block_count": 46}) == ModelFacts("glm5-next", 46)
    with pytest.raises(ModelError, match=r"x\.block_count"):
        model_facts({"general.architecture": "x", "x.block_count": "many"})
    with pytest.raises(ModelError, match="nextn"):
        model_facts({"general.architecture": "x", "x.block_count": 1, "x.nextn_predict_layers": 2})


def test_unmatched_rules() -> None:
    request = RecipeRequest("q8_0", tensor_rules=(("attn_v", "q6_k"), ("atn_q", "q6_k")))
    assert unmatched_rules(LLAMA_8B.tensors(), request) == ["atn_q"]
