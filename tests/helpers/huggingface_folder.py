"""Small Hugging Face folders made without transformers: weights as an architecture's own description lists them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconv.formats.architectures import Architecture, at_layer, built_in_architectures, whole
from qconv.formats.huggingface.configuration import read_hyper_parameters

Stored = tuple[str, tuple[int, ...], bytes]  # dtype, shape, data

SIZES = {"vocab_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
CONFIG: dict[str, Any] = SIZES | {"hidden_size": 16, "intermediate_size": 20, "max_position_embeddings": 64}

LATENT = {
    "kv_lora_rank": 10,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "first_k_dense_replace": 1,
    "n_routed_experts": 3,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "moe_intermediate_size": 12,
}

INDEXED = {"q_lora_rank": 6, "index_n_heads": 8, "index_head_dim": 8, "index_topk": 12}

MULTIPLIERS = {
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.25,
    "logits_scaling": 4.0,
}

NEMOTRON_H = {
    "architectures": ["NemotronHForCausalLM"],
    "model_type": "nemotron_h",
    "head_dim": 8,
    "ssm_state_size": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "n_groups": 2,
}
DELTA_NET: dict[str, Any] = {
    "num_hidden_layers": 5,
    "head_dim": 8,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "rope_parameters": {
        "rope_theta": 1e4,
        "rope_type": "default",
        "partial_rotary_factor": 0.25,
        "mrope_section": [1, 0, 0],
    },
}
DELTA_MOE = {
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 14,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": CONFIG | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "mixtral": CONFIG
    | {"architectures": ["MixtralForCausalLM"], "num_local_experts": 3, "num_experts_per_tok": 2, "model_type": "mixtral"},
    "qwen2": CONFIG | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "qwen3": CONFIG | {"architectures": ["Qwen3ForCausalLM"], "head_dim": 8, "model_type": "qwen3"},
    "qwen3moe": CONFIG
    | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "head_dim": 8,
        "num_experts": 3,
        "moe_intermediate_size": 12,
        "norm_topk_prob": True,
    },
    "gemma2": CONFIG | {"architectures": ["Gemma2ForCausalLM"], "head_dim": 8, "query_pre_attn_scalar": 8, "model_type": "gemma2"},
    "gemma3": CONFIG | {"architectures": ["Gemma3ForCausalLM"], "head_dim": 8, "query_pre_attn_scalar": 8, "model_type": "gemma3_text"},
    "gemma3n": CONFIG
    | {
        "architectures": ["Gemma3nForCausalLM"],
        "model_type": "gemma3n_text",
        "num_hidden_layers": 25,
        "num_kv_shared_layers": 5,
        "head_dim": 8,
        "sliding_window": 4,
        "intermediate_size": 24,
        "vocab_size_per_layer_input": 20,
        "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 15,
    },
    "gemma4": CONFIG
    | {
        "architectures": ["Gemma4ForCausalLM"],
        "model_type": "gemma4_text",
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "head_dim": 4,
        "global_head_dim": 8,
        "sliding_window": 4,
        "hidden_size_per_layer_input": 6,
        "vocab_size_per_layer_input": 24,
        "use_double_wide_mlp": True,
        "enable_moe_block": True,
        "num_experts": 3,
        "top_k_experts": 2,
        "moe_intermediate_size": 12,
    },
    "phi3": CONFIG | {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"},
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": 24,
        "n_layer": 2,
        "n_head": 4,
        "n_embd": 16,
        "n_positions": 32,
    },
    "deepseek2": CONFIG | LATENT | {"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2"},
    "deepseek3": CONFIG
    | LATENT
    | {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "q_lora_rank": 6,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
    },
    "falcon": {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "vocab_size": 24,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_kv_heads": 4,
        "max_position_embeddings": 64,
    },
    "glm": CONFIG | {"architectures": ["GlmForCausalLM"], "model_type": "glm", "head_dim": 4},
    "glm4": CONFIG | {"architectures": ["Glm4ForCausalLM"], "model_type": "glm4", "head_dim": 8},
    "glm4moe": CONFIG
    | {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "head_dim": 8,
        "first_k_dense_replace": 1,
        "n_routed_experts": 3,
        "num_experts_per_tok": 2,
        "n_shared_experts": 2,
        "moe_intermediate_size": 12,
    },
    "cohere": CONFIG | {"architectures": ["CohereForCausalLM"], "model_type": "cohere"},
    "cohere2": CONFIG | {"architectures": ["Cohere2ForCausalLM"], "model_type": "cohere2", "sliding_window": 4},
    "gptneox": CONFIG | {"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "rotary_pct": 0.5},
    "stablelm": CONFIG | {"architectures": ["StableLmForCausalLM"], "model_type": "stablelm", "partial_rotary_factor": 0.5},
    "granite": CONFIG | {"architectures": ["GraniteForCausalLM"], "model_type": "granite"} | MULTIPLIERS,
    "granitehybrid": CONFIG
    | {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "model_type": "granitemoehybrid",
        "num_hidden_layers": 4,
        "layer_types": ["mamba", "attention", "mamba", "mamba"],
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 6,
        "mamba_n_groups": 2,
        "num_local_experts": 3,
        "shared_intermediate_size": 14,
    }
    | MULTIPLIERS,
    "nemotron_h": CONFIG
    | NEMOTRON_H
    | {"layers_block_type": ["mamba", "mlp", "attention", "mlp", "mamba"], "num_hidden_layers": 5},
    "nemotron_h_moe": CONFIG
    | NEMOTRON_H
    | {
        "hybrid_override_pattern": "ME*E",
        "num_hidden_layers": 4,
        "n_routed_experts": 3,
        "moe_intermediate_size": 16,
        "moe_shared_expert_intermediate_size": 24,
    },
    "granitemoe": CONFIG
    | {
        "architectures": ["GraniteMoeSharedForCausalLM"],
        "model_type": "granitemoeshared",
        "num_local_experts": 3,
        "shared_intermediate_size": 14,
    }
    | MULTIPLIERS,
    "internlm2": CONFIG | {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2"},
    "olmo2": CONFIG | {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2"},
    "olmoe": CONFIG
    | {
        "architectures": ["OlmoeForCausalLM"],
        "model_type": "olmoe",
        "num_key_value_heads": 4,
        "num_experts": 3,
        "num_experts_per_tok": 2,
    },
    "qwen2moe": CONFIG
    | {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
        "shared_expert_intermediate_size": 14,
    },
    "minicpm": CONFIG
    | {"architectures": ["MiniCPMForCausalLM"], "model_type": "minicpm", "scale_emb": 2, "scale_depth": 1.2, "dim_model_base": 8},
    "minicpm3": CONFIG
    | {
        "architectures": ["MiniCPM3ForCausalLM"],
        "model_type": "minicpm3",
        "num_key_value_heads": 4,
        "q_lora_rank": 6,
        "kv_lora_rank": 10,
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 4,
    },
    "bert": CONFIG | {"architectures": ["BertModel"], "model_type": "bert"},
    "roberta": CONFIG | {"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta", "pad_token_id": 1},
    "codeshell": {
        "architectures": ["CodeShellForCausalLM"],
        "model_type": "codeshell",
        "vocab_size": 24,
        "n_layer": 2,
        "n_head": 4,
        "n_embd": 16,
        "n_positions": 32,
        "num_query_groups": 2,
    },
    "neo-bert": CONFIG | {"architectures": ["NeoBERT"], "model_type": "neobert", "intermediate_size": 36, "max_length": 64},
    "eurobert": CONFIG | {"architectures": ["EuroBertModel"], "model_type": "eurobert"},
    "modern-bert": CONFIG | {"architectures": ["ModernBertModel"], "model_type": "modernbert"},
    "jina-bert-v2": CONFIG | {"architectures": ["JinaBertModel"], "model_type": "jina_bert", "position_embedding_type": "alibi"},
    "gemma": CONFIG | {"architectures": ["GemmaForCausalLM"], "model_type": "gemma", "head_dim": 8},
    "nemotron": CONFIG | {"architectures": ["NemotronForCausalLM"], "model_type": "nemotron"},
    "smollm3": CONFIG | {"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "num_hidden_layers": 5},
    "seed-oss": CONFIG | {"architectures": ["SeedOssForCausalLM"], "model_type": "seed_oss", "head_dim": 8},
    "ernie4_5": CONFIG | {"architectures": ["Ernie4_5ForCausalLM"], "model_type": "ernie4_5", "head_dim": 8},
    "ernie4_5moe": CONFIG
    | {
        "architectures": ["Ernie4_5_MoeForCausalLM"],
        "model_type": "ernie4_5_moe",
        "moe_intermediate_size": 12,
        "moe_num_experts": 3,
        "moe_k": 2,
    },
    "arcee": CONFIG | {"architectures": ["ArceeForCausalLM"], "model_type": "arcee"},
    "dots1": CONFIG
    | {
        "architectures": ["Dots1ForCausalLM"],
        "model_type": "dots1",
        "num_key_value_heads": 4,
        "first_k_dense_replace": 1,
        "n_routed_experts": 3,
        "num_experts_per_tok": 2,
        "n_shared_experts": 2,
        "moe_intermediate_size": 12,
    },
    "mistral3": CONFIG
    | {
        "architectures": ["Ministral3ForCausalLM"],
        "model_type": "ministral3",
        "head_dim": 8,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "mistral4": CONFIG
    | LATENT
    | {
        "architectures": ["Mistral4ForCausalLM"],
        "model_type": "mistral4",
        "q_lora_rank": 6,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "llama4": CONFIG
    | {
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        "num_hidden_layers": 5,
        "head_dim": 8,
        "intermediate_size": 12,
        "intermediate_size_mlp": 20,
        "num_local_experts": 3,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 7,
        "floor_scale": 5,
    },
    "deepseek32": CONFIG | LATENT | INDEXED | {"architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32"},
    "glm-dsa": CONFIG
    | LATENT
    | INDEXED
    | {
        "architectures": ["GlmMoeDsaForCausalLM"],
        "model_type": "glm_moe_dsa",
        "num_hidden_layers": 3,
        "indexer_types": ["full", "shared", "full"],
        "index_topk": 30,
    },
    "glm5-next": CONFIG
    | {
        "architectures": ["Glm5NextForConditionalGeneration"],
        "model_type": "glm5_next",
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "layer_types": ["linear_attention", "deepseek_sparse_attention", "deepseek_sparse_attention", "linear_attention"],
        "indexer_types": ["full", "full", "shared", "full"],
        "first_k_dense_replace": 1,
        "linear_attn_config": {"num_heads": 4, "head_dim": 8, "short_conv_kernel_size": 4, "gate_lower_bound": -5.0},
        "q_lora_rank": 6,
        "kv_lora_rank": 10,
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 0,
        "v_head_dim": 5,
        "n_routed_experts": 3,
        "num_experts_per_tok": 2,
        "n_shared_experts": 2,
        "moe_intermediate_size": 12,
        "index_n_heads": 8,
        "index_head_dim": 8,
        "index_topk": 24,
        "index_kpool": 4,
        "tie_word_embeddings": False,
    },
    "kimi-linear": CONFIG
    | {
        "architectures": ["KimiLinearForCausalLM"],
        "model_type": "kimi_linear",
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "linear_attn_config": {
            "kda_layers": [1, 2, 4],
            "full_attn_layers": [3],
            "num_heads": 4,
            "head_dim": 8,
            "short_conv_kernel_size": 4,
        },
        "kv_lora_rank": 10,
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 4,
        "v_head_dim": 5,
        "first_k_dense_replace": 1,
        "num_experts": 3,
        "num_experts_per_token": 2,
        "num_shared_experts": 2,
        "moe_intermediate_size": 12,
        "tie_word_embeddings": False,
    },
    "hunyuan-dense": CONFIG | {"architectures": ["HunYuanDenseV1ForCausalLM"], "model_type": "hunyuan_v1_dense", "head_dim": 8},
    "phi2": CONFIG | {"architectures": ["PhiForCausalLM"], "model_type": "phi"},
    "olmo": CONFIG | {"architectures": ["OlmoForCausalLM"], "model_type": "olmo", "clip_qkv": 0.5},
    "olmo3": CONFIG
    | {"architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3", "num_hidden_layers": 5, "sliding_window": 4},
    "exaone4": CONFIG | {"architectures": ["Exaone4ForCausalLM"], "model_type": "exaone4"},
    "qwen35": CONFIG | DELTA_NET | {"architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text"},
    "qwen35moe": CONFIG | DELTA_NET | DELTA_MOE | {"architectures": ["Qwen3_5MoeForCausalLM"], "model_type": "qwen3_5_moe_text"},
    "qwen3next": CONFIG | DELTA_NET | DELTA_MOE | {"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next"},
    "starcoder": {
        "architectures": ["GPTBigCodeForCausalLM"],
        "model_type": "gpt_bigcode",
        "vocab_size": 24,
        "n_layer": 2,
        "n_head": 4,
        "n_embd": 16,
        "n_positions": 32,
    },
    "nomic-bert": CONFIG | {"architectures": ["NomicBertModel"], "model_type": "nomic_bert"},
    "starcoder2": CONFIG | {"architectures": ["Starcoder2ForCausalLM"], "model_type": "starcoder2"},
    "gpt-oss": CONFIG
    | {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "head_dim": 8,
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        "sliding_window": 4,
    },
}  # fmt: skip


def architecture_named(name: str) -> Architecture:
    """Return a built-in architecture."""
    return next(item for item in built_in_architectures() if item.name == name)


def hf_shapes(
    architecture: Architecture, config: Mapping[str, Any], optional: bool = False
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that the description lists, optional ones only if asked for."""
    values = read_hyper_parameters(architecture, config, Path("config.json"))
    found: dict[str, tuple[int, ...]] = {}
    for entry in architecture.tensors:
        if not (entry.required or optional) or (entry.omitted_when and values.get(entry.omitted_when)):
            continue
        layers = range(whole(values, "layers")) if entry.per_layer else (0,)
        experts = range(whole(values, "experts")) if entry.per_expert else (0,)
        for layer in layers:
            scope = at_layer(values, layer if entry.per_layer else None)
            if entry.when is not None and not entry.when.holds(scope):
                continue
            for expert in experts:
                for name, shape in zip(entry.hf, entry.shapes, strict=True):
                    filled = name.replace("{layer}", str(layer)).replace("{expert}", str(expert))
                    found[filled] = tuple(size.evaluate(scope) for size in shape)
    return found


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Return float32 weights that BF16 holds exactly."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal(shape).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
        for name, shape in shapes.items()
    }


def stored(weights: Mapping[str, NDArray[np.float32]], dtype: str = "BF16") -> dict[str, Stored]:
    """Return the weights as they are held in ``BF16`` or ``F32``."""
    found: dict[str, Stored] = {}
    for name, array in weights.items():
        data = (
            (array.view(np.uint32) >> 16).astype("<u2").tobytes() if dtype == "BF16" else array.astype("<f4").tobytes()
        )
        found[name] = (dtype, array.shape, data)
    return found


def safetensors_bytes(tensors: Mapping[str, Stored], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a file's bytes."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    body = b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    return raw_safetensors(json.dumps(header).encode(), body)


def raw_safetensors(header: bytes, body: bytes, length: int | None = None) -> bytes:
    """Return a file with any header and any claimed length of it."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + body


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Stored],
    shards: Sequence[str] = ("model.safetensors",),
) -> Path:
    """Write ``config.json`` and the tensors, dealt in turn to the shards, with an index where there are several; return ``folder``."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    weight_map = {name: shards[index % len(shards)] for index, name in enumerate(tensors)}
    for shard in shards:
        part = {name: tensors[name] for name in tensors if weight_map[name] == shard}
        (folder / shard).write_bytes(safetensors_bytes(part))
    if len(shards) > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def model_folder(folder: Path, name: str, shards: Sequence[str] = ("model.safetensors",), **config: Any) -> Path:
    """Write a random BF16 model of a built-in architecture, with changes to its configuration; return ``folder``."""
    settings = CONFIGS[name] | config
    weights = random_weights(hf_shapes(architecture_named(name), settings))
    return write_folder(folder, settings, stored(weights), shards)
