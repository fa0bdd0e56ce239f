"""``params.json``: Mistral's hyper-parameters, checked, as a Hugging Face configuration that one of the families' descriptions understands.

========================================== ==============================================================================================
queries and keys through latents, experts  ``mistral4``: Mistral Large 3, Mistral Small 4
experts                                    ``mixtral``
``llama_4_scaling``                        ``mistral3``: Ministral 3
others                                     ``llama``: Mistral 7B, Nemo, Small 3, Ministral 8B, Devstral
========================================== ==============================================================================================

Keys and their meaning: mistral-inference's ``TransformerArgs``, and what vLLM makes of later ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ModelError
from ..huggingface.configuration import EXPERTS_MAX, LAYERS_MAX
from ..huggingface.json_files import read_json_object
from ..huggingface.rope import TEMPERATURE
from ..parameters_file import ParametersFile

__all__ = ["Parameters", "read_parameters"]

_CONTEXT = 32768
_THETA, _WINDOWED_THETA = 1e6, 1e4
_CLASSES = {
    "llama": ("MistralForCausalLM", "mistral"),
    "mixtral": ("MixtralForCausalLM", "mixtral"),
    "mistral3": ("Ministral3ForCausalLM", "ministral3"),
    "mistral4": ("Mistral4ForCausalLM", "mistral4"),
}
_YARN = ("factor", "alpha", "beta", "original_max_position_embeddings", "apply_scale")
_TEMPERATURE = ("beta", "original_max_position_embeddings")
_LATENT = ("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")


@dataclass(frozen=True)
class Parameters:
    """A model's hyper-parameters.

    Attributes:
        architecture: name of the family's description.
        config: the text model as Hugging Face's ``config.json`` describes it, with the quantizer's settings, if any.
        notes: what was guessed.
    """

    architecture: str
    config: Mapping[str, Any]
    notes: tuple[str, ...]


def read_parameters(path: Path) -> Parameters:
    """Read ``params.json``; raises MissingFileError, FormatError, or ModelError with the key that makes no sense."""
    source = ParametersFile(read_json_object(path, "the model's hyper-parameters"), path)
    kind = source.values.get("model_type")
    if kind not in (None, "transformer"):
        _refuse(source, f"model_type is {str(kind)[:40]!r}, and qconv reads transformers in this form")
    if source.has("lora"):
        _refuse(source, "it asks for LoRA adapters, which are no model by themselves")
    architecture = _architecture(source)
    notes: list[str] = []
    config = _common(source, architecture, notes)
    rope = _rope(source, architecture, notes)
    if architecture in ("mixtral", "mistral4"):
        config |= _experts(source, architecture)
    if architecture == "mistral4":
        config |= {key: source.integer(key) for key in _LATENT}
        del config["head_dim"]
    config["rope_parameters"] = rope
    quantization = source.inner("quantization")
    if quantization is not None:
        config["quantization_config"] = dict(quantization.values)
    return Parameters(architecture, config, tuple(notes))


def _refuse(source: ParametersFile, problem: str) -> None:
    raise ModelError(problem, path=source.path, remedy="Use the model's Hugging Face form.")


def _architecture(source: ParametersFile) -> str:
    latent, moe = source.has("kv_lora_rank") or source.has("q_lora_rank"), source.inner("moe")
    if latent and moe is None:
        _refuse(source, "kv_lora_rank is set without moe, and qconv knows latent attention in mixtures of experts only")
    if latent:
        return "mistral4"
    if moe is not None:
        if source.has("llama_4_scaling") or moe.integer("num_shared_experts", 0, least=0):
            _refuse(source, "it has moe with llama_4_scaling or shared experts, but no latent attention")
        return "mixtral"
    return "mistral3" if source.has("llama_4_scaling") else "llama"


def _common(source: ParametersFile, architecture: str, notes: list[str]) -> dict[str, Any]:
    hidden, heads = source.integer("dim"), source.integer("n_heads")
    kv_heads = source.integer("n_kv_heads", heads)
    if heads % kv_heads:
        source.fail("n_kv_heads", f"a divisor of n_heads, {heads}")
    if hidden % heads and not source.has("head_dim") and architecture != "mistral4":
        source.fail("n_heads", f"a divisor of dim, {hidden}")
    class_name, model_type = _CLASSES[architecture]
    return {
        "architectures": [class_name],
        "model_type": model_type,
        "vocab_size": source.integer("vocab_size"),
        "hidden_size": hidden,
        "num_hidden_layers": source.integer("n_layers", limit=LAYERS_MAX),
        "intermediate_size": source.integer("hidden_dim"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": source.integer("head_dim", max(1, hidden // heads)),
        "rms_norm_eps": source.number("norm_eps"),
        "max_position_embeddings": _context(source, notes),
        "sliding_window": _window(source),
        "tie_word_embeddings": source.flag("tied_embeddings", False),
        "hidden_act": source.values.get("activation") or "silu",
    }


def _context(source: ParametersFile, notes: list[str]) -> int:
    for key in ("max_position_embeddings", "max_seq_len"):
        if source.has(key):
            return source.integer(key)
    notes.append(f"params.json has no context length; {_CONTEXT} is assumed")
    return _CONTEXT


def _window(source: ParametersFile) -> int | None:
    """Return the window, which may be a text, or one for each of several layers in turn, of which the least counts; None for none."""
    value = source.values.get("sliding_window")
    entries = [each for each in value if each is not None] if isinstance(value, list) else [value]
    if value is None or not entries:
        return None
    numbers = [int(each) if isinstance(each, str) and each.isdecimal() and len(each) < 10 else each for each in entries]
    return min(ParametersFile({"sliding_window": each}, source.path).integer("sliding_window") for each in numbers)


# --- rotary positions -------------------------------------------------------------------------------------------------------------


def _rope(source: ParametersFile, architecture: str, notes: list[str]) -> dict[str, Any]:
    """Return the rotary positions as transformers spells them since its version 5."""
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": _theta(source, notes)}
    yarn, temperature = source.inner("yarn"), source.inner("llama_4_scaling")
    if yarn is not None:
        _known_keys(yarn, _YARN)
        found |= {
            "rope_type": "yarn",
            "factor": yarn.number("factor"),
            "original_max_position_embeddings": yarn.integer("original_max_position_embeddings"),
            "beta_fast": yarn.number("beta", 32.0),
            "beta_slow": yarn.number("alpha", 1.0),
        }
        found |= _magnitude(architecture, scaled=yarn.flag("apply_scale", True))
    if temperature is not None:
        _known_keys(temperature, _TEMPERATURE)
        original = temperature.integer("original_max_position_embeddings")
        if found.setdefault("original_max_position_embeddings", original) != original:
            temperature.fail("original_max_position_embeddings", f"yarn's, {found['original_max_position_embeddings']}")
        found[TEMPERATURE] = temperature.number("beta")
    return found


def _theta(source: ParametersFile, notes: list[str]) -> float:
    if source.has("rope_theta"):
        return source.number("rope_theta")
    theta = _WINDOWED_THETA if source.has("sliding_window") or source.has("kv_lora_rank") else _THETA
    notes.append(f"params.json has no rope_theta; {theta:g} is assumed")
    return theta


def _magnitude(architecture: str, *, scaled: bool) -> dict[str, float]:
    """Return what yarn multiplies by: cosines and sines by ``1 + 0.1 ln(factor)``, or with latents the logits by its square; nothing unless ``scaled``."""
    equal = {"mscale": 1.0, "mscale_all_dim": 1.0}
    if architecture == "mistral4":
        return equal if scaled else {"attention_factor": 1.0}
    return {} if scaled else equal


def _known_keys(source: ParametersFile, known: tuple[str, ...]) -> None:
    unknown = next((key for key in source.values if key not in known), None)
    if unknown is not None:
        source.fail(unknown, f"absent: qconv knows {', '.join(known)} there")


# --- experts ----------------------------------------------------------------------------------------------------------------------


def _experts(source: ParametersFile, architecture: str) -> dict[str, Any]:
    moe = source.inner("moe")
    assert moe is not None
    if moe.integer("route_every_n", 1) != 1:
        moe.fail("route_every_n", "1: there are experts in every layer after the leading ones")
    count = moe.integer("num_experts", limit=EXPERTS_MAX)
    found: dict[str, Any] = {"num_experts_per_tok": moe.integer("num_experts_per_tok", limit=count)}
    if architecture == "mixtral":
        return {**found, "num_local_experts": count}
    return {
        **found,
        "n_routed_experts": count,
        "n_shared_experts": moe.integer("num_shared_experts"),
        "moe_intermediate_size": moe.integer("expert_hidden_dim"),
        "first_k_dense_replace": moe.integer("first_k_dense_replace", 0, least=0),
        "routed_scaling_factor": moe.number("routed_scale", 1.0),
        "n_group": moe.integer("num_expert_groups", 1),
        "topk_group": moe.integer("num_expert_groups_per_tok", 1),
        "norm_topk_prob": True,
    }
