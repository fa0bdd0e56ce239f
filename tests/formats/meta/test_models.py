"""Real checkpoints in Meta's form: the weights of their other forms, and the text that is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from qconv_encodings import ENCODINGS
from run_cli import Cli

from qconv.convert import api
from qconv.errors import FormatError
from qconv.formats.architectures import built_in_architectures
from qconv.formats.base import OpenContext
from qconv.formats.huggingface import open_huggingface
from qconv.formats.meta import open_meta

pytestmark = pytest.mark.shared

CONTEXT = OpenContext(ENCODINGS, {architecture.name: architecture for architecture in built_in_architectures()})
META_NAMES = {"token_embd": "tok_embeddings", "output_norm": "norm", "output": "output"}


@pytest.mark.parametrize("name", ["stories260K", "babyllama-tok105"])
def test_same_weights_as_the_hugging_face_folder(shared: Path, name: str) -> None:
    """Bit for bit, after the Hugging Face folder's rotary rows are put back into Meta's order."""
    folder = shared / "models" / name
    with open_meta(folder / "meta", CONTEXT) as meta, open_huggingface(folder / "hf", CONTEXT) as other:
        names = set(meta.tensors)
        if "output.weight" not in other.tensors:  # tied there, kept apart here
            names.remove("output.weight")
            tied = meta.tensors["output.weight"].read(0, meta.tensors["output.weight"].row_count)
            embedding = meta.tensors["token_embd.weight"]
            assert tied.tobytes() == embedding.read(0, embedding.row_count).tobytes()
        assert names == set(other.tensors)
        for label in names:
            ours, theirs = meta.tensors[label], other.tensors[label]
            assert (ours.shape, ours.encoding) == (theirs.shape, theirs.encoding)
            assert ours.read(0, ours.row_count).tobytes() == theirs.read(0, theirs.row_count).tobytes(), label
        differing = {key for key in meta.metadata if key.startswith("llama.")}
        differing -= {"llama.context_length"}  # Meta's form has none
        for key in differing:
            assert meta.metadata[key] == other.metadata[key]
        for key in ("model", "pre", "tokens", "bos_token_id", "eos_token_id", "add_bos_token"):
            assert meta.metadata[f"tokenizer.ggml.{key}"] == other.metadata[f"tokenizer.ggml.{key}"]


def test_two_shards(shared: Path) -> None:
    """The fixture was cut from known weights, in float16 but for one tensor in bfloat16."""
    known = np.load(shared / "fixtures" / "ggml-legacy" / "weights-v320.npz")
    with open_meta(shared / "fixtures" / "pth", CONTEXT) as model:
        assert len(model.tensors) == 21
        for name, tensor in model.tensors.items():
            found = tensor.rows(0, tensor.row_count).reshape(tensor.shape)
            expected = known[_meta_name(name)]
            if tensor.encoding.name == "BF16":
                np.testing.assert_allclose(found, expected, rtol=2**-8)
            else:
                np.testing.assert_array_equal(found, expected.astype(np.float16).astype(np.float32))


def _meta_name(name: str) -> str:
    inner = {
        "attn_q": "attention.wq", "attn_k": "attention.wk", "attn_v": "attention.wv", "attn_output": "attention.wo",
        "ffn_gate": "feed_forward.w1", "ffn_down": "feed_forward.w2", "ffn_up": "feed_forward.w3",
        "attn_norm": "attention_norm", "ffn_norm": "ffn_norm",
    }  # fmt: skip
    words = name.split(".")
    return f"layers.{words[1]}.{inner[words[2]]}.weight" if words[0] == "blk" else f"{META_NAMES[words[0]]}.weight"


@pytest.mark.parametrize("name", ["evil-reduce.pth", "evil-legacy.pth", "evil-missing.pth"])
def test_hostile_files_by_the_command_line(shared: Path, cli: Cli, name: str) -> None:
    for command in (("inspect",), ("hf-to-gguf", "--dry-run")):
        done = cli(*command, shared / "fixtures" / "pth" / name)
        assert done.code == 1
        assert "hostile" not in done.out + done.err
        assert done.err.count("error:") == 1


def test_a_shard_whose_sibling_is_elsewhere(shared: Path, cli: Cli) -> None:
    done = cli("inspect", shared / "fixtures" / "pth" / "legacy.00.pth")
    assert done.code == 1
    assert "1 of the 2 shards are missing: legacy.01.pth" in done.err.replace("\n", " ")
    with pytest.raises(FormatError, match="this is one of them"):
        open_meta(shared / "fixtures" / "pth" / "odd.pth", CONTEXT)


def test_inspect(shared: Path, cli: Cli) -> None:
    done = cli("inspect", shared / "models" / "stories260K" / "meta" / "consolidated.00.pth", "--json")
    found = json.loads(done.out)
    assert (done.code, found["format"], found["architecture"], found["tensors"]) == (0, "meta", "llama", 48)


@pytest.mark.oracles
def test_llama_cpp_tells_the_known_story(shared: Path, tmp_path: Path) -> None:
    from llamacpp_models import logits

    path = tmp_path / "stories.gguf"
    api.quantize(shared / "models" / "stories260K" / "meta", path, "f32")
    import sentencepiece

    model = str(shared / "models" / "stories260K" / "meta" / "tokenizer.model")
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=model)
    tokens = [1, *tokenizer.encode("Once upon a time")]
    for _ in range(48):
        tokens.append(int(logits(path, tokens)[-1].argmax()))
    text = tokenizer.decode(tokens)
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    assert text.startswith(story)
