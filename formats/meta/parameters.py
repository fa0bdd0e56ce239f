"""``params.json``: Meta's hyper-parameters, checked, as a Hugging Face configuration that the architecture's description understands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ModelError
from ..huggingface.configuration import LAYERS_MAX
from ..huggingface.json_files import read_json_object
from ..parameters_file import ParametersFile

__all__ = ["Parameters", "read_parameters"]

_THETA = 10000.0
_SMALL_LLAMA_3_2 = (2048, 3072)  # widths of Llama 3.2 1B and 3B, whose rotary positions are stretched further
_UNSUPPORTED = {
    "quantization_args": "the weights are quantized",
    "lora_args": "the checkpoint holds LoRA adapters",
    "moe": "the model is a mixture of experts",
    "moe_args": "the model is a mixture of experts",
    "vision_chunk_size": "the model has a vision tower",
    "sliding_window_pattern": "the layers attend in different ways",
}


@dataclass(frozen=True)
class Parameters:
    """A model's hyper-parameters.

    Attributes:
        hidden: width of the model.
        layers: number of layers.
        heads: number of query heads.
        kv_heads: number of key and value heads.
        head_dim: width of a head.
        vocabulary: number of tokens, None where the file leaves it to the tokenizer.
        feed_forward: width of the feed-forward layers by Meta's formula; the tensors know better.
        epsilon: of the norms.
        theta: base of the rotary positions, None where the file is silent.
        scaling: rotary scaling as Hugging Face writes it, or None.
        context: number of positions.
        notes: what was guessed.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int | None
    feed_forward: int
    epsilon: float
    theta: float | None
    scaling: Mapping[str, Any] | None
    context: int
    notes: tuple[str, ...]

    def configuration(self, vocabulary: int, feed_forward: int, default_theta: float = _THETA) -> dict[str, Any]:
        """Return the model as Hugging Face's ``config.json`` describes it, with the sizes that the tensors have."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": vocabulary,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "intermediate_size": feed_forward,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "rms_norm_eps": self.epsilon,
            "rope_theta": default_theta if self.theta is None else self.theta,
            "rope_scaling": self.scaling,
            "max_position_embeddings": self.context,
            "tie_word_embeddings": False,
            "hidden_act": "silu",
        }


def read_parameters(path: Path) -> Parameters:
    """Read ``params.json``; raises MissingFileError, FormatError, or ModelError with the key that makes no sense."""
    values = read_json_object(path, "the model's hyper-parameters")
    inner = values.get("model")
    if "dim" not in values and isinstance(inner, dict):
        values = inner
    for key, problem in _UNSUPPORTED.items():
        if values.get(key) is not None:
            raise ModelError(
                f"{problem} ({key}), which qconv does not read in Meta's form",
                path=path,
                remedy="Use the model's original BF16 checkpoint, or its Hugging Face form.",
            )
    source = ParametersFile(values, path)
    hidden, heads = source.integer("dim"), source.integer("n_heads")
    head_dim = source.integer("head_dim", hidden // heads)
    if hidden % heads and "head_dim" not in values:
        source.fail("n_heads", f"a divisor of dim, {hidden}")
    kv_heads = source.integer("n_kv_heads", heads)
    if heads % kv_heads:
        source.fail("n_kv_heads", f"a divisor of n_heads, {heads}")
    vocabulary = None if values.get("vocab_size") in (None, -1) else source.integer("vocab_size")
    epsilon = source.number("norm_eps", 1e-5)
    theta = source.number("rope_theta") if values.get("rope_theta") is not None else None
    scaling, notes = _scaling(source, hidden)
    context, guess = _context(source, theta, epsilon, scaling is not None)
    return Parameters(
        hidden=hidden,
        layers=source.integer("n_layers", limit=LAYERS_MAX),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=vocabulary,
        feed_forward=_feed_forward(source, hidden),
        epsilon=epsilon,
        theta=theta,
        scaling=scaling,
        context=context,
        notes=(*notes, *guess),
    )


def _feed_forward(source: ParametersFile, hidden: int) -> int:
    """Return Meta's formula: two thirds of four times the width, perhaps stretched, rounded up to a multiple."""
    if source.values.get("hidden_dim") is not None:  # Mistral's files
        return source.integer("hidden_dim")
    width = int(2 * (4 * hidden) / 3)
    if source.values.get("ffn_dim_multiplier") is not None:
        width = int(source.number("ffn_dim_multiplier") * width)
    multiple = source.integer("multiple_of", 256)
    return multiple * -(-width // multiple)


def _scaling(source: ParametersFile, hidden: int) -> tuple[Mapping[str, Any] | None, tuple[str, ...]]:
    """Return Llama 3.1's stretching of the rotary positions, where the file asks for it."""
    if source.values.get("use_scaled_rope") in (None, False):
        return None, ()
    notes: tuple[str, ...] = ()
    factor = 8.0
    if source.values.get("rope_scaling_factor") is not None:
        factor = source.number("rope_scaling_factor")
    elif hidden in _SMALL_LLAMA_3_2:
        factor = 32.0
        notes = (
            f"params.json does not say how far rotary positions are stretched; 32 is assumed, as in Llama 3.2 of width {hidden}",
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": source.number("rope_high_freq_factor", 4.0),
        "original_max_position_embeddings": 8192,
    }, notes


def _context(
    source: ParametersFile, theta: float | None, epsilon: float, stretched: bool
) -> tuple[int, tuple[str, ...]]:
    """Return the number of positions, which Meta's files leave to the program, by the model's generation."""
    if source.values.get("max_seq_len") is not None:
        return source.integer("max_seq_len"), ()
    if stretched:
        context, generation = 131072, "Llama 3.1 and later"
    elif theta == 500000.0:
        context, generation = 8192, "Llama 3"
    elif theta == 1000000.0:
        context, generation = 16384, "Code Llama"
    elif epsilon == 1e-5:
        context, generation = 4096, "Llama 2"
    else:
        context, generation = 2048, "Llama 1"
    return context, (f"params.json has no context length; {context} is assumed, as for {generation}",)
