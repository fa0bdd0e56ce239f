"""Tiny random models of every family, made by transformers, and what transformers says of them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = 96
PROMPTS = tuple(
    [int(token) for token in np.random.default_rng(seed).integers(3, VOCABULARY, size)]
    for seed, size in ((1, 5), (2, 23), (3, 60))
)

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Case:
    """A class of transformers, its configuration, and what the test name says about it."""

    name: str
    class_name: str
    config: dict[str, Any] = field(default_factory=dict)


def case(name: str, class_name: str, **config: Any) -> Case:
    return Case(name, class_name, COMMON | config)


def yarn(**more: Any) -> dict[str, Any]:
    return {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64} | more


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
FACTORS = {
    "short_factor": [1.0, 1.1, 1.3, 1.5, 1.7, 2.0, 2.5, 3.0],
    "long_factor": [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0],
}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0} | FACTORS
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.125,
    "logits_scaling": 0.5,
}
LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 32, "qk_nope_head_dim": 24, "qk_rope_head_dim": 16, "v_head_dim": 20, "first_k_dense_replace": 1,
    "n_routed_experts": 6, "num_experts_per_tok": 2, "n_shared_experts": 2, "moe_intermediate_size": 32, "num_hidden_layers": 3,
}  # fmt: skip
MISTRAL4 = yarn(mscale=1.0, mscale_all_dim=1.0, original_max_position_embeddings=16, llama_4_scaling_beta=0.3)
UNSCALED = yarn(original_max_position_embeddings=16, llama_4_scaling_beta=0.3, attention_factor=1.0)
LLAMA4 = {
    "intermediate_size": 32,
    "intermediate_size_mlp": 96,
    "num_local_experts": 4,
    "head_dim": 32,
    "num_hidden_layers": 5,
}
INDEXED = {"q_lora_rank": 48, "index_n_heads": 16, "index_head_dim": 64, "index_topk": 16}
MINICPM3 = {
    key: LATENT[key]
    for key in ("num_key_value_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
} | {"q_lora_rank": 48}
GLM_MOE = {
    key: LATENT[key] for key in LATENT if not key.endswith(("_rank", "_dim")) and key != "num_key_value_heads"
} | {"head_dim": 32}
DOTS = {key: GLM_MOE[key] for key in GLM_MOE if key != "head_dim"} | {
    "n_group": 1, "topk_group": 1, "num_key_value_heads": 4,
}  # fmt: skip
ERNIE_MOE = {
    "num_hidden_layers": 3, "moe_intermediate_size": 32, "moe_k": 2, "moe_num_experts": 6, "moe_num_shared_experts": 2, "moe_layer_start_index": 1,
}  # fmt: skip
DELTA_NET = {
    "num_hidden_layers": 5, "head_dim": 32, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 6,
}  # fmt: skip
GLM5_NEXT = {
    "num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": 48, "qk_nope_head_dim": 24, "v_head_dim": 20, "linear_num_heads": 4, "linear_head_dim": 16,
    "n_routed_experts": 6, "num_experts_per_tok": 2, "n_shared_experts": 2, "moe_intermediate_size": 32, "swiglu_limit": 0.7,
    "index_n_heads": 16, "index_head_dim": 64, "index_topk": 16, "index_kpool": 4,
}  # fmt: skip
KIMI_LINEAR = {
    "num_key_value_heads": 4, "kv_lora_rank": 32, "qk_nope_head_dim": 24, "qk_rope_head_dim": 16, "v_head_dim": 20, "linear_num_heads": 4, "linear_head_dim": 16,
    "num_local_experts": 6, "num_experts_per_tok": 2, "n_shared_experts": 2, "moe_intermediate_size": 32, "num_hidden_layers": 5, "first_k_dense_replace": 1,
    "rms_norm_eps": 1e-6,
}  # fmt: skip
_L, _I = "linear_attention", "indexed_attention"
GLM5_NEXT_LAYERS = {
    "num_hidden_layers": 5, "layer_types": [_L, _L, _I, _L, _I], "mlp_layer_types": ["dense"] + ["sparse"] * 4, "first_k_dense_replace": 1,
}  # fmt: skip
GLM5_NEXT_SHARED = {
    "num_hidden_layers": 4, "layer_types": [_I, _I, _I, _L], "indexer_types": ["full", "shared", "full", "full"], "mlp_layer_types": ["dense"] * 2 + ["sparse"] * 2,
    "first_k_dense_replace": 2,
}  # fmt: skip
SECTIONS = {
    "rope_type": "default",
    "rope_theta": 1e7,
    "partial_rotary_factor": 0.25,
    "mrope_section": [2, 1, 1],
    "mrope_interleaved": True,
}
DELTA_MOE = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
}
MAMBA = {
    "num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 2, "mamba_expand": 2, "shared_intermediate_size": 48,
}  # fmt: skip
NEMOTRON_H = {
    "head_dim": 16, "ssm_state_size": 16, "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "time_step_min": 1e-9,
}  # fmt: skip
GPT_OSS = {"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
_KINDS = {"s": "sliding_attention", "f": "full_attention"}
GEMMA4 = {
    "head_dim": 16, "global_head_dim": 32, "sliding_window": 8, "hidden_size_per_layer_input": 0, "final_logit_softcapping": 3.0,
    "num_hidden_layers": 4, "layer_types": [_KINDS[letter] for letter in "sfsf"],
}  # fmt: skip
GEMMA4_SHARED = GEMMA4 | {
    "num_hidden_layers": 7, "layer_types": [_KINDS[letter] for letter in "ssfsfsf"], "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": VOCABULARY,
}  # fmt: skip

# llama.cpp demands 20 layers with keys of their own, and fixed widths
GEMMA3N = case(
    "gemma3n", "Gemma3nForCausalLM", num_hidden_layers=25, num_kv_shared_layers=5, head_dim=16, intermediate_size=1024, sliding_window=8,
    activation_sparsity_pattern=[0.95] * 10 + [0.0] * 15, vocab_size_per_layer_input=80,
)  # fmt: skip

CASES = (
    case("llama", "LlamaForCausalLM"),
    case("llama-1", "LlamaForCausalLM", num_key_value_heads=4, rms_norm_eps=1e-5),
    case("llama-3-scaling", "LlamaForCausalLM", rope_parameters=LLAMA3),
    case("llama-linear", "LlamaForCausalLM", rope_parameters={"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}),
    case("llama-yarn", "LlamaForCausalLM", rope_parameters=yarn()),
    case("llama-yarn-betas", "LlamaForCausalLM", rope_parameters=yarn(beta_fast=8.0, beta_slow=2.0)),
    case("llama-yarn-attention", "LlamaForCausalLM", rope_parameters=yarn(attention_factor=0.7)),
    case("llama-yarn-mscale", "LlamaForCausalLM", rope_parameters=yarn(mscale=1.5, mscale_all_dim=0.8)),
    case("llama-yarn-exact-range", "LlamaForCausalLM", rope_parameters=yarn(truncate=False)),
    case("llama-biases-tied", "LlamaForCausalLM", attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    case("mistral-head-size", "MistralForCausalLM", head_dim=32, sliding_window=None),
    case("mixtral", "MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2),
    case("qwen2-tied", "Qwen2ForCausalLM", tie_word_embeddings=True),
    case("qwen2-yarn", "Qwen2ForCausalLM", rope_parameters=yarn()),
    case("qwen3", "Qwen3ForCausalLM", head_dim=32),
    case("qwen3-moe", "Qwen3MoeForCausalLM", head_dim=32, num_experts=4, **MOE),
    case("gemma2", "Gemma2ForCausalLM", **GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    case("gemma2-27b", "Gemma2ForCausalLM", **GEMMA | {"query_pre_attn_scalar": 16}, num_hidden_layers=46),
    case("gemma3", "Gemma3ForCausalLM", **GEMMA, num_hidden_layers=7, final_logit_softcapping=3.0),
    case("gemma3-linear", "Gemma3ForCausalLM", **GEMMA, num_hidden_layers=7, rope_parameters={
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }),
    case("gemma3-period", "Gemma3ForCausalLM", **GEMMA, num_hidden_layers=5, sliding_window_pattern=3),
    GEMMA3N,
    case("gemma4", "Gemma4ForCausalLM", **GEMMA4_SHARED, use_double_wide_mlp=True),
    case("gemma4-shared", "Gemma4ForCausalLM", **GEMMA4_SHARED, tie_word_embeddings=False),
    case("gemma4-keys-as-values", "Gemma4ForCausalLM", **GEMMA4, attention_k_eq_v=True, num_global_key_value_heads=1),
    case("gemma4-rotary", "Gemma4ForCausalLM", **GEMMA4, rope_parameters={
        "full_attention": {"rope_type": "proportional", "rope_theta": 1e5, "partial_rotary_factor": 0.5, "factor": 2.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    }),
    case("gemma4-unified", "Gemma4UnifiedForCausalLM", **{key: GEMMA4[key] for key in GEMMA4 if key != "hidden_size_per_layer_input"}),
    case("gemma4-experts", "Gemma4ForCausalLM", **GEMMA4, attention_k_eq_v=True, num_global_key_value_heads=1, enable_moe_block=True, num_experts=6, top_k_experts=2, moe_intermediate_size=32),
    case("phi3", "Phi3ForCausalLM"),
    case("phi3-long", "Phi3ForCausalLM", original_max_position_embeddings=32, rope_parameters=LONGROPE),
    case("phi3-short", "Phi3ForCausalLM", original_max_position_embeddings=512, max_position_embeddings=4096, rope_parameters=LONGROPE),
    case("phi4-partial", "Phi3ForCausalLM", rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}),
    case("deepseek2", "DeepseekV2ForCausalLM", **LATENT, q_lora_rank=48),
    case("deepseek2-lite", "DeepseekV2ForCausalLM", **LATENT | {"num_hidden_layers": 27}, q_lora_rank=None, routed_scaling_factor=2.5, rope_parameters=yarn(mscale=0.707, mscale_all_dim=0.707)),
    case("deepseek3", "DeepseekV3ForCausalLM", **LATENT, q_lora_rank=48, n_group=1, topk_group=1, num_mtp_layers=0),
    case("deepseek3-groups-yarn", "DeepseekV3ForCausalLM", **LATENT | {"n_routed_experts": 8}, q_lora_rank=48, n_group=4, topk_group=2, rope_parameters=yarn(mscale=1.0, mscale_all_dim=1.0)),
    case("deepseek3-unscaled", "DeepseekV3ForCausalLM", **LATENT, q_lora_rank=48, n_group=1, topk_group=1, num_mtp_layers=0, rope_parameters=yarn(attention_factor=1.0)),
    case("deepseek3-yarn-plain", "DeepseekV3ForCausalLM", **LATENT, q_lora_rank=48, n_group=1, topk_group=1, num_mtp_layers=0, rope_parameters=yarn()),
    case("deepseek3-linear", "DeepseekV3ForCausalLM", **LATENT, q_lora_rank=48, n_group=1, topk_group=1, num_mtp_layers=0, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}),
    case("deepseek3-yarn-mscales", "DeepseekV3ForCausalLM", **LATENT, q_lora_rank=48, n_group=1, topk_group=1, num_mtp_layers=0, rope_parameters=yarn(mscale=1.5, mscale_all_dim=0.6)),
    case("glm4moe-lite", "Glm4MoeLiteForCausalLM", **LATENT, q_lora_rank=48, n_group=1, topk_group=1, routed_scaling_factor=1.8, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    case("glm", "GlmForCausalLM", head_dim=16),
    case("glm4", "Glm4ForCausalLM", head_dim=16),
    case("glm4-no-biases", "Glm4ForCausalLM", head_dim=32, attention_bias=False, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}),
    case("glm4moe", "Glm4MoeForCausalLM", **GLM_MOE, n_group=1, topk_group=1, attention_bias=True, num_mtp_layers=0),
    case("glm4moe-norms-groups", "Glm4MoeForCausalLM", **GLM_MOE | {"n_routed_experts": 8}, n_group=4, topk_group=2, use_qk_norm=True, routed_scaling_factor=2.5),
    case("granite", "GraniteForCausalLM", **MULTIPLIERS),
    case("granite-biases-tied", "GraniteForCausalLM", attention_bias=True, mlp_bias=True, tie_word_embeddings=True, rope_parameters=LLAMA3),
    case("granitemoe", "GraniteMoeForCausalLM", **MULTIPLIERS, num_local_experts=4, num_experts_per_tok=2),
    case("granitemoe-shared", "GraniteMoeSharedForCausalLM", **MULTIPLIERS, num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=48),
    case("olmoe", "OlmoeForCausalLM", num_key_value_heads=4, num_experts=6, num_experts_per_tok=3),
    case("qwen2moe", "Qwen2MoeForCausalLM", **MOE | {"norm_topk_prob": False}, num_experts=6, shared_expert_intermediate_size=48),
    case("olmo2", "Olmo2ForCausalLM"),
    case("olmo2-yarn", "Olmo2ForCausalLM", num_key_value_heads=4, rope_parameters=yarn()),
    case("falcon-7b", "FalconForCausalLM", num_kv_heads=4),
    case("falcon-40b", "FalconForCausalLM", num_kv_heads=2, new_decoder_architecture=True, tie_word_embeddings=False),
    case("falcon-11b", "FalconForCausalLM", num_kv_heads=2, new_decoder_architecture=True, num_ln_in_parallel_attn=1, ffn_hidden_size=160),
    case("minicpm3", "MiniCPM3ForCausalLM", **MINICPM3),
    case("minicpm3-long", "MiniCPM3ForCausalLM", **MINICPM3, original_max_position_embeddings=32, rope_parameters=LONGROPE),
    case("starcoder2", "Starcoder2ForCausalLM"),
    case("starcoder2-untied", "Starcoder2ForCausalLM", tie_word_embeddings=False, sliding_window=256),
    case("cohere", "CohereForCausalLM", logit_scale=1.5),
    case("cohere2", "Cohere2ForCausalLM", logit_scale=1.5, sliding_window=8, num_hidden_layers=5),
    case("gptneox", "GPTNeoXForCausalLM", rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}),
    case("gptneox-in-turn", "GPTNeoXForCausalLM", use_parallel_residual=False, rope_parameters={"rope_type": "default", "rope_theta": 1e5, "partial_rotary_factor": 1.0}),
    case("stablelm", "StableLmForCausalLM", num_key_value_heads=4),
    case("stablelm-parallel", "StableLmForCausalLM", use_parallel_residual=True, use_qkv_bias=True),
    case("gpt-oss", "GptOssForCausalLM", **GPT_OSS, rope_parameters=yarn(truncate=True)),
    case("gpt-oss-plain", "GptOssForCausalLM", **GPT_OSS, rope_parameters={"rope_type": "default", "rope_theta": 150000.0}, num_hidden_layers=3),
    case("gemma", "GemmaForCausalLM", head_dim=32),
    case("nemotron", "NemotronForCausalLM"),
    case("nemotron-biases", "NemotronForCausalLM", attention_bias=True, mlp_bias=True, num_key_value_heads=4),
    case("smollm3", "SmolLM3ForCausalLM", num_hidden_layers=5),
    case("smollm3-untied-yarn", "SmolLM3ForCausalLM", num_hidden_layers=4, tie_word_embeddings=False, rope_parameters=yarn()),
    case("seed-oss", "SeedOssForCausalLM", head_dim=32),
    case("ernie4_5", "Ernie4_5ForCausalLM", head_dim=32),
    case("mistral3", "Ministral3ForCausalLM", head_dim=32, rope_parameters=yarn(mscale=1.0, mscale_all_dim=1.0, original_max_position_embeddings=16, llama_4_scaling_beta=0.3)),
    case("mistral4", "Mistral4ForCausalLM", **LATENT | {"n_shared_experts": 1, "first_k_dense_replace": 0}, q_lora_rank=48, rope_parameters=MISTRAL4),
    case("mistral4-dense-groups", "Mistral4ForCausalLM", **LATENT | {"n_routed_experts": 8}, q_lora_rank=48, n_group=4, topk_group=2, norm_topk_prob=False, routed_scaling_factor=1.8, tie_word_embeddings=True, rope_parameters=MISTRAL4),
    case("mistral4-unscaled", "Mistral4ForCausalLM", **LATENT | {"n_shared_experts": 1}, q_lora_rank=48, rope_parameters=UNSCALED),
    case("mistral4-yarn-attention", "Mistral4ForCausalLM", **LATENT | {"n_shared_experts": 1}, q_lora_rank=48, rope_parameters=MISTRAL4 | {"attention_factor": 1.2, "mscale_all_dim": 0.4}),
    # GLM's latents are normalised with 1e-6 in transformers, and with what the configuration says in llama.cpp
    case("deepseek32", "DeepseekV32ForCausalLM", **LATENT | INDEXED | {"n_routed_experts": 8}, n_group=4, topk_group=2, rope_parameters=yarn(mscale=1.0, mscale_all_dim=1.0)),
    case("deepseek32-yarn-share", "DeepseekV32ForCausalLM", **LATENT | INDEXED | {"n_routed_experts": 8}, n_group=4, topk_group=2, rope_parameters=yarn(mscale=0.707, mscale_all_dim=0.707)),
    case("glm-dsa", "GlmMoeDsaForCausalLM", **LATENT | INDEXED, rms_norm_eps=1e-6),
    case("glm-dsa-shared", "GlmMoeDsaForCausalLM", **LATENT | INDEXED | {"num_hidden_layers": 5}, indexer_types=["full", "shared", "full", "shared", "shared"], tie_word_embeddings=True, rms_norm_eps=1e-6),
    case("glm5-next", "Glm5NextForConditionalGeneration", **GLM5_NEXT, **GLM5_NEXT_LAYERS),
    case("glm5-next-shared", "Glm5NextForConditionalGeneration", **GLM5_NEXT | {"n_routed_experts": 8, "index_topk": 6, "index_kpool": 3}, **GLM5_NEXT_SHARED, n_group=4, topk_group=2, norm_topk_prob=False, linear_conv_kernel_dim=3, linear_lower_bound=-2.0, hc_sinkhorn_iters=3, hc_eps=1e-3),
    # as GLM's, Kimi's latents are normalised with 1e-6 in transformers
    case("kimi-linear", "KimiLinearForCausalLM", **KIMI_LINEAR),
    case("kimi-linear-groups", "KimiLinearForCausalLM", **KIMI_LINEAR | {"num_local_experts": 8}, n_group=4, topk_group=2, linear_conv_kernel_dim=3, layer_types=["full_attention", "linear_attention"] * 2 + ["full_attention"]),
    case("llama4", "Llama4ForCausalLM", **LLAMA4, rope_parameters=LLAMA3 | {"high_freq_factor": 1.0}),
    case("llama4-interleaved", "Llama4ForCausalLM", **LLAMA4 | {"intermediate_size": 16, "num_local_experts": 128, "num_experts_per_tok": 3}, interleave_moe_layer_step=2, use_qk_norm=False, tie_word_embeddings=True),
    case("llama4-yarn", "Llama4ForCausalLM", **LLAMA4, rope_parameters=yarn()),
    case("hunyuan-dense", "HunYuanDenseV1ForCausalLM", head_dim=32, tie_word_embeddings=True),
    case("hunyuan-dense-alpha", "HunYuanDenseV1ForCausalLM", head_dim=32, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 50.0, "factor": 1.0}),
    case("phi2", "PhiForCausalLM", num_key_value_heads=4),
    case("olmo", "OlmoForCausalLM"),
    case("olmo-clipped", "OlmoForCausalLM", clip_qkv=0.6, num_key_value_heads=4),
    case("olmo3", "Olmo3ForCausalLM", sliding_window=8, num_hidden_layers=5),
    case("olmo3-yarn", "Olmo3ForCausalLM", sliding_window=8, num_hidden_layers=4, rope_parameters={
        "full_attention": yarn(rope_theta=2e5), "sliding_attention": {"rope_type": "default", "rope_theta": 2e5},
    }),
    case("exaone4", "Exaone4ForCausalLM", sliding_window=None, layer_types=["full_attention"] * 2, rope_parameters=LLAMA3),
    case("arcee", "ArceeForCausalLM"),
    case("arcee-tied-scaling", "ArceeForCausalLM", head_dim=32, tie_word_embeddings=True, rope_parameters=LLAMA3),
    case("arcee-yarn", "ArceeForCausalLM", rope_parameters=yarn()),
    case("dots1", "Dots1ForCausalLM", **DOTS, norm_topk_prob=True, routed_scaling_factor=2.5),
    case("dots1-plain-weights", "Dots1ForCausalLM", **DOTS | {"first_k_dense_replace": 0}, head_dim=32),
    case("ernie4_5moe", "Ernie4_5_MoeForCausalLM", **ERNIE_MOE),
    case("ernie4_5moe-no-shared", "Ernie4_5_MoeForCausalLM", **ERNIE_MOE | {"moe_num_shared_experts": 0, "moe_layer_start_index": 2}, tie_word_embeddings=False),
    case("qwen35", "Qwen3_5ForCausalLM", **DELTA_NET, rope_parameters=SECTIONS),
    case("qwen35-tied", "Qwen3_5ForCausalLM", **DELTA_NET | {"linear_num_value_heads": 2, "linear_conv_kernel_dim": 3}, rope_parameters=SECTIONS, tie_word_embeddings=True),
    case("qwen35moe", "Qwen3_5MoeForCausalLM", **DELTA_NET, **DELTA_MOE, rope_parameters=SECTIONS),
    case("qwen3next", "Qwen3NextForCausalLM", **DELTA_NET, **DELTA_MOE),
    case("granitehybrid", "GraniteMoeHybridForCausalLM", **MAMBA, **MULTIPLIERS, num_local_experts=4, num_experts_per_tok=2),
    case("granitehybrid-dense", "GraniteMoeHybridForCausalLM", **MAMBA, **MULTIPLIERS, num_local_experts=0, num_experts_per_tok=0, tie_word_embeddings=True),
    case("granitehybrid-attention", "GraniteMoeHybridForCausalLM", **MAMBA | {"layer_types": ["full_attention"] * 4}, num_local_experts=0, num_experts_per_tok=0, position_embedding_type="rope"),
    case("nemotron_h", "NemotronHForCausalLM", **NEMOTRON_H, layers_block_type=["linear_attention", "mlp", "full_attention", "mlp", "linear_attention"]),
    case("nemotron_h_moe", "NemotronHForCausalLM", **NEMOTRON_H, layers_block_type=["linear_attention", "moe", "full_attention", "moe"], n_routed_experts=6, moe_intermediate_size=32, moe_shared_expert_intermediate_size=48, routed_scaling_factor=2.5),
    case("nemotron_h_moe-latent", "NemotronHForCausalLM", **NEMOTRON_H, layers_block_type=["linear_attention", "moe", "full_attention", "moe"], n_routed_experts=6, moe_intermediate_size=32, moe_shared_expert_intermediate_size=48, moe_latent_size=32, norm_topk_prob=False),
    Case("starcoder", "GPTBigCodeForCausalLM", {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    Case("gpt2", "GPT2LMHeadModel", {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}),
)  # fmt: skip

# too many layers for tests that go there and back
DEEP = (
    case("exaone4-windows", "Exaone4ForCausalLM", sliding_window=8, num_hidden_layers=64, hidden_size=32, intermediate_size=32),
    case("cohere-plus", "CohereForCausalLM", logit_scale=1.5, num_hidden_layers=64, hidden_size=32, intermediate_size=32, use_qk_norm=True, rope_parameters={"rope_type": "default", "rope_theta": 75e4}),
)  # fmt: skip

# what transformers and this project's runtime do, and llama.cpp does otherwise; a note says so
BEYOND_LLAMACPP = (
    case("llama4-chunks", "Llama4ForCausalLM", **LLAMA4, attention_chunk_size=8, floor_scale=6, attn_scale=0.4),
    case("deepseek2-groups", "DeepseekV2ForCausalLM", **LATENT | {"n_routed_experts": 8}, q_lora_rank=48, n_group=4, topk_group=2, topk_method="group_limited_greedy"),
)  # fmt: skip


def save(folder: Path, model_case: Case) -> Any:
    """Save a seeded random model, its norms and biases random too, and return it."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(7)
    kind = getattr(transformers, model_case.class_name)
    model = kind(text_alone(kind.config_class(**model_case.config))).eval()
    if hasattr(model.config, "vision_config"):
        model.save_pretrained = lambda folder: _save_text_model(model, folder)
    if model_case is GEMMA3N:
        for layer in model.model.layers[20:]:  # nothing reads them, and released checkpoints have them
            attention = layer.self_attn
            attention.k_proj, attention.v_proj = (torch.nn.Linear(64, 32, bias=False) for _ in range(2))
            attention.k_norm = type(attention.q_norm)(dim=16, eps=1e-6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() > 1 else 0.3))
            if model_case is GEMMA3N and ".post_" in name:
                parameter.mul_(0.1)  # so many layers multiply what float16 loses, unless each of them adds little
        for name, buffer in model.named_buffers():
            if name.endswith(("e_score_correction_bias", "layer_scalar")):
                buffer.add_(torch.randn_like(buffer) * 0.3)
    model.save_pretrained(folder)
    return model


def text_alone(config: Any) -> Any:
    """Give a configuration of several models a vision tower of next to nothing, which no text meets, and return it."""
    if hasattr(config, "vision_config"):
        sizes = {
            "depth": 0,
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_heads": 1,
            "projection_intermediate_size": 8,
        }
        config.vision_config = type(config.vision_config)(**sizes, out_hidden_size=config.text_config.hidden_size)
    return config


def _save_text_model(model: Any, folder: Path) -> None:
    """Save the text model alone, under the names and with the class of the whole one: keys of its section stand at the top of the configuration."""
    weights = {name: tensor for name, tensor in model.state_dict().items() if "visual." not in name}
    type(model).save_pretrained(model, folder, state_dict=weights)
    whole = json.loads((folder / "config.json").read_text())
    kept = {key: whole[key] for key in ("architectures", "dtype", "transformers_version")}
    text = whole["text_config"] | kept | {"model_type": whole["model_type"]}
    (folder / "config.json").write_text(json.dumps(text))


def expected(model: Any, prompt: list[int]) -> np.ndarray[Any, Any]:
    import torch

    with torch.no_grad():
        return np.asarray(torch.log_softmax(model(torch.tensor([prompt])).logits[0].double(), -1).numpy())


def log_softmax(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    wide = rows.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))
