"""Mistral's own form of models that are at hand in another: ``params.json``, ``consolidated*.safetensors``, ``tekken.json``.

Written by what mistral-inference and vLLM say of the form, without qconv's readers.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizer_folders
import torch_files
from huggingface_folder import Stored, safetensors_bytes, stored
from numpy.typing import NDArray

from qconv.formats.pretokenizers import find_pre_tokenizer

Floats = NDArray[np.float32]
SINGLE = ("consolidated.safetensors",)
SHARDS = tuple(f"consolidated-{part:05d}-of-00003.safetensors" for part in (1, 2, 3))
SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>")

_TOP = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
}
_INNER = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "self_attn.q_a_proj": "attention.wq_a",
    "self_attn.q_a_layernorm": "attention.q_a_norm",
    "self_attn.q_b_proj": "attention.wq_b",
    "self_attn.kv_a_proj_with_mqa": "attention.wkv_a_with_mqa",
    "self_attn.kv_a_layernorm": "attention.kv_a_norm",
    "self_attn.kv_b_proj": "attention.wkv_b",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.gate": "gate",
    "mlp.shared_experts.gate_proj": "shared_experts.w1",
    "mlp.shared_experts.down_proj": "shared_experts.w2",
    "mlp.shared_experts.up_proj": "shared_experts.w3",
}


def native_weights(
    weights: Mapping[str, Floats], config: Mapping[str, Any], *, older: bool = False
) -> dict[str, Floats]:
    """Return a model of transformers (its state by name) under Mistral's names; ``older`` has experts inside of the feed-forward, as Mixtral."""
    found: dict[str, Floats] = {}
    for name, array in weights.items():
        if name in _TOP:
            if not (name == "lm_head.weight" and config.get("tie_word_embeddings")):
                found[_TOP[name]] = array
            continue
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.+?)(\.weight)?", name)
        assert match is not None, name
        layer, inner = f"layers.{match[1]}.", match[2]
        place = layer + ("feed_forward." if older else "")
        if inner == "mlp.experts.gate_up_proj":
            for expert, matrix in enumerate(array):
                found[f"{place}experts.{expert}.w1.weight"], found[f"{place}experts.{expert}.w3.weight"] = np.split(
                    matrix, 2
                )
        elif inner == "mlp.experts.down_proj":
            found |= {f"{place}experts.{expert}.w2.weight": matrix for expert, matrix in enumerate(array)}
        elif inner == "mlp.gate":
            found[f"{place}gate.weight"] = array
        else:
            heads = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}.get(inner)
            found[f"{layer}{_INNER[inner]}.weight"] = array if heads is None else _interleaved(array, config[heads])
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def _interleaved(rows: Floats, heads: int) -> Floats:
    """Return rows of queries or keys whose pairs are neighbours, where transformers has them half a head apart."""
    halves = rows.reshape(heads, 2, -1, rows.shape[1])
    return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(rows.shape)


def native_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``params.json`` for a configuration as transformers writes it."""
    rope = config["rope_parameters"]
    found: dict[str, Any] = {
        "dim": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "head_dim": config["head_dim"],
        "hidden_dim": config["intermediate_size"],
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"],
        "norm_eps": config["rms_norm_eps"],
        "vocab_size": config["vocab_size"],
        "rope_theta": rope["rope_theta"],
        "max_position_embeddings": config["max_position_embeddings"],
        "tied_embeddings": config["tie_word_embeddings"],
    }
    if "kv_lora_rank" in config:
        found |= {
            key: config[key]
            for key in ("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
        }
        found["moe"] = {
            "expert_parallel": 1,
            "route_every_n": 1,
            "first_k_dense_replace": config["first_k_dense_replace"],
            "num_experts": config["n_routed_experts"],
            "num_experts_per_tok": config["num_experts_per_tok"],
            "num_expert_groups": config["n_group"],
            "num_expert_groups_per_tok": config["topk_group"],
            "routed_scale": config["routed_scaling_factor"],
            "expert_hidden_dim": config["moe_intermediate_size"],
            "num_shared_experts": config["n_shared_experts"],
        }
    elif "num_local_experts" in config:
        found["moe"] = {
            "num_experts": config["num_local_experts"],
            "num_experts_per_tok": config["num_experts_per_tok"],
        }
    if rope["rope_type"] == "yarn":
        latent = "kv_lora_rank" in config
        found["yarn"] = {
            "original_max_position_embeddings": rope["original_max_position_embeddings"],
            "factor": rope["factor"],
            "beta": rope.get("beta_fast", 32.0),
            "alpha": rope.get("beta_slow", 1.0),
            "apply_scale": ("mscale" in rope)
            == latent,  # latents are scaled by the logits, others are where the two do not cancel
        }
    if "llama_4_scaling_beta" in rope:
        original = rope["original_max_position_embeddings"]
        found["llama_4_scaling"] = {"original_max_position_embeddings": original, "beta": rope["llama_4_scaling_beta"]}
    return found


def write_native(
    folder: Path, parameters: Mapping[str, Any], tensors: Mapping[str, Stored], shards: Sequence[str] = SINGLE
) -> Path:
    """Write ``params.json`` and the tensors, dealt in turn to the shards, with an index where there are several; return ``folder``."""
    folder.mkdir(exist_ok=True)
    (folder / "params.json").write_text(json.dumps(dict(parameters)))
    weight_map = {name: shards[index % len(shards)] for index, name in enumerate(tensors)}
    for shard in shards:
        part = {name: tensors[name] for name in tensors if weight_map[name] == shard}
        (folder / shard).write_bytes(safetensors_bytes(part))
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "consolidated.safetensors.index.json").write_text(json.dumps(index))
    return folder


def tekken(size: int = 560, special: int = 12, spare: int = 7) -> dict[str, Any]:
    """Return a ``tekken.json`` of ``size`` tokens, ``special`` of them special and not all of these named, with ``spare`` entries nobody uses."""
    known = find_pre_tokenizer("tekken")
    assert known is not None
    trained = tokenizer_folders.train_byte_level("tekken", size - special + spare)["model"]["vocab"]
    characters = _byte_characters()
    tokens = [bytes(characters[letter] for letter in text) for text in sorted(trained, key=trained.__getitem__)]
    tokens = [bytes([value]) for value in range(256)] + [token for token in tokens if len(token) > 1]
    return {
        "config": {
            "pattern": known.stages[0].detail,
            "num_vocab_tokens": len(tokens),
            "default_vocab_size": size,
            "default_num_special_tokens": special,
            "version": "v11",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": token.decode(errors="replace")}
            for rank, token in enumerate(tokens)
        ],
        "special_tokens": [{"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(SPECIAL)],
    }


def _byte_characters() -> dict[str, int]:
    """Return GPT-2's byte alphabet, as its authors define it."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in kept]
    return {chr(value): value for value in kept} | {chr(256 + place): value for place, value in enumerate(others)}


def small_model(size: int = 560) -> tuple[dict[str, Any], dict[str, Floats]]:
    """Return the parameters and weights of a small dense model with so many tokens, in native form."""
    sizes: dict[str, Any] = {
        "dim": 32, "n_layers": 2, "head_dim": 8, "hidden_dim": 48, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5, "vocab_size": size,
        "rope_theta": 1e6, "max_position_embeddings": 128,
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (size, 32),
        "norm.weight": (32,),
        "output.weight": (size, 32),
    }
    for layer in range(2):
        for name, shape in {
            "attention.wq": (32, 32), "attention.wk": (16, 32), "attention.wv": (16, 32), "attention.wo": (32, 32), "attention_norm": (32,),
            "ffn_norm": (32,), "feed_forward.w1": (48, 32), "feed_forward.w2": (32, 48), "feed_forward.w3": (48, 32),
        }.items():  # fmt: skip
            shapes[f"layers.{layer}.{name}.weight"] = shape
    source = np.random.default_rng(5)
    return sizes, {name: source.standard_normal(shape).astype("<f4") for name, shape in shapes.items()}


def write_small(folder: Path, shards: Sequence[str] = SINGLE, dtype: str = "BF16", **parameters: Any) -> Path:
    """Write :func:`small_model` with its ``tekken.json``, with changes to its parameters, of which None removes one; return ``folder``."""
    sizes, weights = small_model()
    settings = {key: value for key, value in (sizes | parameters).items() if value is not None}
    write_native(folder, settings, stored(weights, dtype), shards)
    (folder / "tekken.json").write_text(json.dumps(tekken()))
    return folder


def write_first_mixtral(folder: Path) -> Path:
    """Write a small Mixtral as the first one was released, its experts in one tensor of torch's; return ``folder``."""
    sizes, weights = small_model()
    first = {name: array for name, array in weights.items() if ".feed_forward." not in name}
    source = np.random.default_rng(6)
    for layer in range(2):
        place = f"layers.{layer}.block_sparse_moe."
        first[f"{place}gate.weight"] = source.standard_normal((3, 32)).astype("<f4")
        first |= {f"{place}w{part}": source.standard_normal((3 * 48, 32)).astype("<f4") for part in (1, 2, 3)}
    folder.mkdir(exist_ok=True)
    moe = {"num_experts": 3, "num_experts_per_tok": 2}
    (folder / "params.json").write_text(json.dumps(sizes | {"moe": moe}))
    (folder / "consolidated.00.pth").write_bytes(torch_files.zip_checkpoint(first))
    (folder / "tekken.json").write_text(json.dumps(tekken()))
    return folder


def large_model(size: int = 560) -> tuple[dict[str, Any], dict[str, Floats]]:
    """Return the parameters and weights of a small model of Mistral Large 3's build: latents, a dense layer, experts."""
    sizes, dense = small_model(size)
    moe = {
        "num_experts": 3, "num_experts_per_tok": 2, "expert_hidden_dim": 24, "num_shared_experts": 1, "first_k_dense_replace": 1,
        "route_every_n": 1, "num_expert_groups": 1, "num_expert_groups_per_tok": 1, "routed_scale": 1.0,
    }  # fmt: skip
    sizes |= {
        "q_lora_rank": 12, "kv_lora_rank": 10, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 5, "n_kv_heads": 4, "moe": moe,
        "yarn": {"factor": 36, "beta": 32, "alpha": 1, "original_max_position_embeddings": 16, "apply_scale": False},
        "llama_4_scaling": {"beta": 0.1, "original_max_position_embeddings": 16},
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(2):
        place = f"layers.{layer}."
        for name, shape in {
            "attention.wq_a": (12, 32), "attention.q_a_norm": (12,), "attention.wq_b": (40, 12), "attention.wkv_a_with_mqa": (14, 32),
            "attention.kv_a_norm": (10,), "attention.wkv_b": (44, 10), "attention.wo": (32, 20),
        }.items():  # fmt: skip
            shapes[f"{place}{name}.weight"] = shape
    for owner in ("shared_experts", *(f"experts.{expert}" for expert in range(3))):
        shapes |= {f"layers.1.{owner}.w{part}.weight": (32, 24) if part == 2 else (24, 32) for part in (1, 2, 3)}
    shapes["layers.1.gate.weight"] = (3, 32)
    source = np.random.default_rng(6)
    kept = {
        name: it for name, it in dense.items() if ".attention.w" not in name and not name.startswith("layers.1.feed")
    }
    return sizes, kept | {name: source.standard_normal(shape).astype("<f4") for name, shape in shapes.items()}


def with_float8(tensors: Mapping[str, Stored], scale_shape: tuple[int, ...] = ()) -> dict[str, Stored]:
    """Return the tensors with random 8-bit floats and their scales for the matrices of the layers, all but the routers."""
    source = np.random.default_rng(8)
    found = dict(tensors)
    for name, (_, shape, _) in tensors.items():
        if name.startswith("layers.") and len(shape) == 2 and not name.endswith(".gate.weight"):
            codes = source.integers(0, 0x70, shape, np.uint8)
            found[name] = ("F8_E4M3", shape, codes.tobytes())
            stem = name.removesuffix("weight")
            found[f"{stem}qscale_weight"] = ("F32", scale_shape, np.float32(0.01).tobytes())
            found[f"{stem}qscale_act"] = ("F32", scale_shape, np.float32(0.5).tobytes())
    return found


def write_large(folder: Path, shards: Sequence[str] = SHARDS, **parameters: Any) -> Path:
    """Write :func:`large_model` in 8-bit floats with its ``tekken.json``, with changes to its parameters; return ``folder``."""
    sizes, weights = large_model()
    sizes |= {"quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}}
    settings = {key: value for key, value in (sizes | parameters).items() if value is not None}
    write_native(folder, settings, with_float8(stored(weights)), shards)
    (folder / "tekken.json").write_text(json.dumps(tekken()))
    return folder


def write_mistral_folder(source: Path, folder: Path) -> Path:
    """Write the Llama of the Hugging Face folder ``source``, BF16, in native form, with its ``tokenizer.model``; return ``folder``."""
    config = json.loads((source / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    weights: dict[str, Floats] = {}
    for path in sorted(source.glob("*.safetensors")):
        header, data = _raw(path)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            halves = np.frombuffer(data[begin:end], "<u2").astype(np.uint32) << 16
            weights[name] = halves.view(np.float32).reshape(entry["shape"])
    write_native(folder, native_parameters(config), stored(native_weights(weights, config)))
    shutil.copy(source / "tokenizer.model", folder)
    return folder


def _raw(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    return header, content[8 + length :]
