"""Tiny models of every family, made without transformers, ready for a forward pass."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from huggingface_folder import CONFIGS, architecture_named, hf_shapes, random_weights, stored, write_folder
from memory_model import tensor
from numpy.typing import NDArray
from qconv_encodings import ENCODINGS

from qconv.formats.architectures import RuntimeFacts, built_in_architectures
from qconv.formats.base import Model, OpenContext
from qconv.formats.huggingface import open_huggingface
from qconv.formats.huggingface.tokenizing.tokenizer import TokenizerResult
from qconv.runtime.building.network import Network, load_network
from qconv.runtime.forward import forward

FAMILIES = tuple(name for name in CONFIGS if isinstance(architecture_named(name).runtime, RuntimeFacts))
STANDALONE = tuple(name for name in FAMILIES if name != "gemma3n")
"""Those that have models whose blocks read nothing but the residual stream before them."""
VOCABULARY = 24
UNBOUND: dict[str, dict[str, Any]] = {
    "gemma4": {"num_kv_shared_layers": 0, "use_double_wide_mlp": False, "hidden_size_per_layer_input": 0}
}
"""Changes to configurations of families whose blocks may read more than the residual stream before them, such that they do not."""
CONTEXT = OpenContext(ENCODINGS, {architecture.name: architecture for architecture in built_in_architectures()})

Floats = NDArray[np.float32]


def open_folder(folder: Path) -> Model:
    """Open a Hugging Face folder that need not hold tokenizer files."""
    with patch("qconv.formats.huggingface.reader.read_tokenizer", return_value=TokenizerResult({}, ())):
        return open_huggingface(folder, CONTEXT)


def in_memory(name: str, path: Path, **config: Any) -> Model:
    """Return a random model of a family, all tensors in memory as F32; ``path`` is what it claims to come from."""
    settings = CONFIGS[name] | ({"num_experts_per_tok": 2} if name == "qwen3moe" else {}) | config
    weights = random_weights(hf_shapes(architecture_named(name), settings, optional=name in ("llama", "qwen2")))
    small = {key: value * np.float32(0.25 if value.ndim > 1 else 0.5) for key, value in weights.items()}
    if name == "gemma3n":  # so many layers multiply what rounding loses, unless each of them adds little
        small |= {key: value * np.float32(0.05) for key, value in small.items() if ".post_" in key}
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), settings, stored(small))
        with open_folder(Path(folder)) as source:
            tensors = [
                tensor(key, value.rows(0, value.row_count).reshape(value.shape))
                for key, value in source.tensors.items()
            ]
            return Model(path, "memory", source.metadata, {item.name: item for item in tensors})


def network(name: str, **config: Any) -> Network:
    """Return the network of :func:`in_memory`."""
    return load_network(in_memory(name, Path("tiny"), **config))


def logits(found: Network, *sequences: list[int], **options: Any) -> list[Floats]:
    """Return float32 (tokens, vocabulary) for each sequence of one run."""
    blocks = list(forward(found, sequences, **options))
    rows = np.concatenate([block.logits for block in blocks])
    owners = np.concatenate([block.sequences for block in blocks])
    return [rows[owners == number] for number in range(len(sequences))]


def tokens(count: int, seed: int = 0) -> list[int]:
    """Return random token ids of the tiny vocabulary."""
    return [int(token) for token in np.random.default_rng(seed).integers(0, VOCABULARY, count)]
