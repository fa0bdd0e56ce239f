"""``qconv validate`` on small models in the manner of Qwen2 and Qwen3: each breakage is found, in the block where it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from broken import change, with_one_scale_flipped, with_rotary_permutation
from huggingface_folder import CONFIGS, architecture_named, hf_shapes, random_weights, stored, write_folder
from measuring import PROSE
from numpy.typing import NDArray
from run_cli import Cli
from tokenizer_folders import train_byte_level

HEADS, KV_HEADS = 4, 2
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 512,
}
END = "<|endoftext|>"
Damage = Callable[[NDArray[Any]], NDArray[Any]]


@pytest.fixture(scope="module", params=["qwen2", "qwen3"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the family, weights as large as those of a fresh model, with the family's kind of tokenizer."""
    tokenizer = dict(train_byte_level("qwen2"))
    rows = len(tokenizer["model"]["vocab"])
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"] = [{"id": rows, "content": END, **special}]
    config = CONFIGS[request.param] | SIZES | {"vocab_size": rows + 1, "eos_token_id": rows}
    config |= {"head_dim": 64} if request.param == "qwen3" else {}
    shapes = hf_shapes(architecture_named(request.param), config, optional=request.param == "qwen2")
    weights = random_weights(shapes)
    small = {key: value * np.float32(1 / 16) if value.ndim > 1 else value for key, value in weights.items()}
    folder = write_folder(tmp_path_factory.mktemp(request.param) / "m", config, stored(small))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    names = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": END, "pad_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    return folder


def convert(cli: Cli, source: Path, output: Path, kind: str, *words: object) -> Path:
    done = cli("hf-to-gguf", source, "-o", output, "--type", kind, *words)
    assert done.code == 0, done.err
    return output


def validate(cli: Cli, source: Path, result: Path) -> tuple[int, dict[str, Any]]:
    words = ("--text", PROSE, "-c", 64, "--chunks", 4, "--json")
    done = cli("validate", source, result, *words)
    assert done.out, done.err
    found: dict[str, Any] = json.loads(done.out)
    return done.code, found


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q6_k"])
def test_sound_conversions_pass(cli: Cli, source: Path, tmp_path: Path, kind: str) -> None:
    code, found = validate(cli, source, convert(cli, source, tmp_path / "m.gguf", kind))
    assert (code, found["reasons"], found["first_difference"]) == (0, [], None)


@pytest.mark.parametrize("kind", ["f16", "q4_k"])
def test_rows_in_the_rotary_order_of_another_family(cli: Cli, source: Path, tmp_path: Path, kind: str) -> None:
    """As a converter leaves them that takes every model for a Llama."""
    plain = convert(cli, source, tmp_path / "plain.gguf", "f32")
    for layer in range(2, 6):
        change(plain, f"blk.{layer}.attn_q.weight", partial(with_rotary_permutation, heads=HEADS))
        change(plain, f"blk.{layer}.attn_k.weight", partial(with_rotary_permutation, heads=KV_HEADS))
    result = tmp_path / "m.gguf"
    assert cli("quantize", plain, result, "--type", kind).code == 0
    code, found = validate(cli, source, result)
    assert code == 1
    assert found["first_difference"]["layer"] == 2
    assert found["first_difference"]["tensor"] in ("blk.2.attn_q.weight", "blk.2.attn_k.weight")
    faults = {it["tensor"] for it in found["weights"]["faults"]}
    assert faults == {f"blk.{layer}.attn_{which}.weight" for layer in range(2, 6) for which in "kq"}


@pytest.mark.parametrize("matrix", ["attn_output", "ffn_down"])
def test_one_matrix_transposed(cli: Cli, source: Path, tmp_path: Path, matrix: str) -> None:
    result = convert(cli, source, tmp_path / "m.gguf", "f32")
    change(result, f"blk.3.{matrix}.weight", np.transpose)
    code, found = validate(cli, source, result)
    assert code == 1
    assert (found["first_difference"]["layer"], found["first_difference"]["tensor"]) == (3, f"blk.3.{matrix}.weight")


@pytest.mark.parametrize(("kind", "byte"), [("q8_0", 34 + 1), ("q4_k", 1), ("q6_k", 209)])
def test_one_scale_flipped(cli: Cli, source: Path, tmp_path: Path, kind: str, byte: int) -> None:
    result = convert(cli, source, tmp_path / "m.gguf", kind, "--pure")
    change(result, "blk.4.ffn_up.weight", partial(with_one_scale_flipped, row=17, byte=byte))
    code, found = validate(cli, source, result)
    assert code == 1
    (fault,) = found["weights"]["faults"]
    assert (fault["tensor"], fault["layer"], fault["bad_blocks"]) == ("blk.4.ffn_up.weight", 4, 1)
    assert found["first_difference"]["tensor"] == "blk.4.ffn_up.weight"


def test_a_wrong_bos_gives_no_number(cli: Cli, source: Path, tmp_path: Path) -> None:
    words = (
        "--override-kv",
        "tokenizer.ggml.bos_token_id=u32:7",
        "--override-kv",
        "tokenizer.ggml.add_bos_token=bool:true",
    )
    code, found = validate(cli, source, convert(cli, source, tmp_path / "m.gguf", "f16", *words))
    assert code == 1
    (reason,) = found["reasons"]
    assert "BOS" in reason
    assert found["statistics"] is None


def test_vectors_of_the_family_are_compared_too(cli: Cli, source: Path, tmp_path: Path) -> None:
    """Biases of Qwen2, norms of queries and keys of Qwen3."""
    result = convert(cli, source, tmp_path / "m.gguf", "f16")
    names = {it.name for it in gguf.GGUFReader(result).tensors}
    name = next(name for name in ("blk.1.attn_k.bias", "blk.1.attn_k_norm.weight") if name in names)
    change(result, name, np.zeros_like)
    code, found = validate(cli, source, result)
    assert code == 1
    assert [it["tensor"] for it in found["weights"]["faults"]] == [name]
    assert (found["first_difference"]["layer"], found["first_difference"]["tensor"]) == (1, name)
