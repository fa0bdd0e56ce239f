"""Meta's form of a Llama that is at hand in another: ``consolidated.00.pth``, ``params.json``, ``tokenizer.model``."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
from torch_files import zip_checkpoint

import qconv

_NAMES = {
    "token_embd": "tok_embeddings",
    "output_norm": "norm",
    "attn_norm": "attention_norm",
    "attn_q": "attention.wq",
    "attn_k": "attention.wk",
    "attn_v": "attention.wv",
    "attn_output": "attention.wo",
    "ffn_gate": "feed_forward.w1",
    "ffn_down": "feed_forward.w2",
    "ffn_up": "feed_forward.w3",
}


def meta_name(name: str) -> str:
    """Return Meta's name of a tensor that GGUF calls ``name``."""
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if block:
        return f"layers.{block[1]}.{_NAMES.get(block[2], block[2])}.weight"
    stem = name.removesuffix(".weight")
    return f"{_NAMES.get(stem, stem)}.weight"


def write_meta_folder(source: Path, folder: Path) -> Path:
    """Write the Llama of the Hugging Face folder ``source``, BF16, as Meta would; return ``folder``."""
    folder.mkdir()
    with qconv.open(source) as model:
        facts = {key: field.value for key, field in model.metadata.items()}
        arrays = {
            meta_name(name): np.ascontiguousarray(tensor.read(0, tensor.row_count))
            .view(np.uint16)
            .reshape(tensor.shape)
            for name, tensor in model.tensors.items()
        }
    (folder / "consolidated.00.pth").write_bytes(zip_checkpoint(arrays))
    parameters = {
        "dim": facts["llama.embedding_length"],
        "n_layers": facts["llama.block_count"],
        "n_heads": facts["llama.attention.head_count"],
        "n_kv_heads": facts["llama.attention.head_count_kv"],
        "norm_eps": 1e-5,
        "vocab_size": facts["llama.vocab_size"],
    }
    (folder / "params.json").write_text(json.dumps(parameters))
    shutil.copy(source / "tokenizer.model", folder)
    return folder
