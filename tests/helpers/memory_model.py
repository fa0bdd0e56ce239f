"""A Model whose tensors are NumPy arrays, for tests of what happens between reader and writer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from qconv_encodings import ENCODINGS

from qconv.formats.base import Model, Tensor
from qconv.formats.metadata import Field, string, uint32


def tensor(name: str, values: NDArray[np.float32], encoding: str = "F32") -> Tensor:
    """Return a tensor that holds ``values`` in ``encoding``."""
    columns = values.shape[-1]
    data = ENCODINGS[encoding].encode(np.ascontiguousarray(values, np.float32).reshape(-1, columns))
    return Tensor(name, values.shape, ENCODINGS[encoding], partial(_rows, data), f"memory: {name}")


def _rows(data: NDArray[np.uint8], start: int, stop: int) -> NDArray[np.uint8]:
    return data[start:stop]


def model(source: Path, tensors: list[Tensor], metadata: Mapping[str, Field] | None = None) -> Model:
    """Return a model that claims to come from the file ``source``, which is made if it is not there."""
    if not source.exists():  # another time of change would be another source
        source.touch()
    fields = {"general.architecture": string("llama"), "llama.block_count": uint32(2), **(metadata or {})}
    return Model(source, "memory", fields, {it.name: it for it in tensors}, files=(source,))


def llama(
    source: Path, rows: int = 64, columns: int = 512, blocks: int = 2, seed: int = 0, encoding: str = "BF16"
) -> Model:
    """Return a model with the tensor names of a small Llama and random weights; it is not meant to run."""
    random = np.random.default_rng(seed)

    def weights(*shape: int) -> NDArray[np.float32]:
        return random.standard_normal(shape, np.float32) * np.float32(0.02)

    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    tensors = [tensor("token_embd.weight", weights(rows, columns), encoding)]
    for block in range(blocks):
        tensors += [tensor(f"blk.{block}.{name}.weight", weights(rows, columns), encoding) for name in names]
        tensors.append(tensor(f"blk.{block}.attn_norm.weight", weights(columns), "F32"))
    tensors.append(tensor("output.weight", weights(rows, columns), encoding))
    heads = {"llama.attention.head_count": uint32(8), "llama.attention.head_count_kv": uint32(8)}
    return model(source, tensors, {**heads, "llama.block_count": uint32(blocks)})
