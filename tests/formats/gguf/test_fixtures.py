"""Files that llama.cpp's own programs wrote: three parts, versions 1 and 2, big-endian, seven vocabularies."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_files import CONTEXT, texts, write_layout
from llamacpp_models import logits

from qconv.errors import FormatError, MissingFileError
from qconv.formats.base import Model, OutputTensor, WriteOptions
from qconv.formats.gguf import lay_out_gguf, open_gguf, verify_gguf
from qconv.formats.metadata import ValueType, strings
from qconv.formats.summary import Summary, TokenizerSummary, summarize

pytestmark = pytest.mark.shared

VOCABULARIES = ("deepseek-llm", "falcon", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2")
META_NAMES = {
    "token_embd.weight": "tok_embeddings.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "output.weight",
    "attn_norm": "attention_norm",
    "attn_q": "attention.wq",
    "attn_k": "attention.wk",
    "attn_v": "attention.wv",
    "attn_output": "attention.wo",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_down": "feed_forward.w2",
    "ffn_up": "feed_forward.w3",
}


def meta_name(name: str) -> str:
    if not name.startswith("blk."):
        return META_NAMES[name]
    _, layer, kind, _ = name.split(".")
    return f"layers.{layer}.{META_NAMES[kind]}.weight"


def decoded_digests(model: Model) -> dict[str, str]:
    """SHA-256 of each tensor decoded to float32 by the gguf package, under Meta's names."""
    digests = {}
    for tensor in model.tensors.values():
        raw = tensor.read(0, tensor.row_count)
        values = gguf.dequantize(raw, gguf.GGMLQuantizationType[tensor.encoding.name])
        digests[meta_name(tensor.name)] = sha256(np.ascontiguousarray(values, "<f4").tobytes()).hexdigest()
    return digests


@pytest.fixture(scope="module")
def manifest(shared: Path) -> dict[str, dict[str, str]]:
    """Per legacy file the SHA-256 of each decoded tensor."""
    files = json.loads((shared / "fixtures/ggml-legacy/manifest.json").read_text())
    return {
        name: {tensor: facts["f32_sha256"] for tensor, facts in entry["tensors"].items()}
        for name, entry in files.items()
    }


def test_the_three_parts(shared: Path) -> None:
    folder = shared / "fixtures/gguf-split"
    expected = {
        tensor.name: (tensor.tensor_type.name, tensor.data.tobytes())
        for path in sorted(folder.glob("*.gguf"))
        for tensor in gguf.GGUFReader(path).tensors
    }
    with open_gguf(folder / "m-00001-of-00003.gguf", CONTEXT) as model:
        found = {t.name: (t.encoding.name, t.read(0, t.row_count).tobytes()) for t in model.tensors.values()}
        assert found == expected
        assert summarize(model).parameters == 1_869_056
    with pytest.raises(FormatError, match="Open m-00001-of-00003"):
        open_gguf(folder / "m-00003-of-00003.gguf", CONTEXT)


def test_a_missing_part(shared: Path, tmp_path: Path) -> None:
    for number in (1, 3):
        shutil.copy(shared / f"fixtures/gguf-split/m-0000{number}-of-00003.gguf", tmp_path)
    with pytest.raises(MissingFileError, match=r"m-00002-of-00003\.gguf: part 2 of 3 is missing"):
        open_gguf(tmp_path / "m-00001-of-00003.gguf", CONTEXT)


@pytest.mark.parametrize(
    ("name", "source", "version", "order"),
    [("v1-q4_0", "v3-q4_0.bin", 1, "little"), ("v3-be-q8_0", "v3-q8_0.bin", 3, "big")],
)
def test_old_files_hold_the_weights_they_were_made_from(
    shared: Path, manifest: dict[str, dict[str, str]], name: str, source: str, version: int, order: str
) -> None:
    with open_gguf(shared / f"fixtures/gguf-old/{name}.gguf", CONTEXT) as model:
        assert (model.container["version"], model.container["byte_order"]) == (version, order)
        assert decoded_digests(model) == manifest[source]


def test_strings_that_end_in_nul(shared: Path) -> None:
    with open_gguf(shared / "fixtures/gguf-old/v2-c-writer-nul-q4_0.gguf", CONTEXT) as model:
        assert model.architecture == "llama"
        assert model.metadata["general.name"].value == "v3-f16.bin"
        tokens = texts(model, "tokenizer.ggml.tokens")
        assert tokens[1:3] == ("<s>", "</s>")
        assert not any("\0" in text for text in (*tokens, *model.metadata, *model.tensors))
        assert model.tensors["blk.1.ffn_down.weight"].shape == (256, 768)


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "phi-3"])
def test_vocabularies(shared: Path, name: str) -> None:
    """Every key, by gguf's reader; it takes 14 s for the largest vocabulary, so only the three smallest are compared."""
    path = shared / f"fixtures/vocab/ggml-vocab-{name}.gguf"
    reader = gguf.GGUFReader(path)
    expected = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    with open_gguf(path, CONTEXT) as model:
        assert list(model.metadata) == list(expected)
        assert model.notes == ()
        for key, field in expected.items():
            value = model.metadata[key].value
            assert [int(kind) for kind in field.types] == [
                int(kind) for kind in (model.metadata[key].type, model.metadata[key].element) if kind is not None
            ]
            if isinstance(value, str | int | float):
                assert value == field.contents(), key
            else:
                assert list(value) == field.contents(), key


def tokenizer(summary: Summary) -> TokenizerSummary:
    assert summary.tokenizer is not None
    return summary.tokenizer


@pytest.mark.parametrize(
    ("name", "model", "pre", "size", "merges", "bos", "eos", "context"),
    [
        (
            "deepseek-llm",
            "gpt2",
            "deepseek-llm",
            102400,
            99757,
            "<｜begin▁of▁sentence｜>",
            "<｜end▁of▁sentence｜>",
            4096,
        ),
        ("falcon", "gpt2", "falcon", 65024, 64784, "<|endoftext|>", "<|endoftext|>", 2048),
        ("gpt-2", "gpt2", "gpt-2", 50257, 50000, "<|endoftext|>", "<|endoftext|>", 1024),
        ("llama-bpe", "gpt2", "llama-bpe", 128256, 280147, "<|begin_of_text|>", "<|end_of_text|>", 8192),
        ("llama-spm", "llama", "default", 32000, 0, "<s>", "</s>", 4096),
        ("phi-3", "llama", "default", 32064, 0, "<s>", "<|endoftext|>", 4096),
        ("qwen2", "gpt2", "qwen2", 151936, 151387, "<|endoftext|>", "<|endoftext|>", 32768),
    ],
)
def test_summaries_of_vocabularies(
    shared: Path, name: str, model: str, pre: str, size: int, merges: int, bos: str, eos: str, context: int
) -> None:
    with open_gguf(shared / f"fixtures/vocab/ggml-vocab-{name}.gguf", CONTEXT) as opened:
        summary = summarize(opened)
    found = tokenizer(summary)
    assert (found.model, found.pre, found.size, found.merges) == (model, pre, size, merges)
    assert (found.special["bos"].text, found.special["eos"].text) == (bos, eos)
    assert summary.context_length == context
    assert (summary.tensors, summary.bits_per_weight) == (0, None)
    assert not summary.digests
    assert json.loads(json.dumps(summary.to_dict()))["tokenizer"]["special"]["bos"]["text"] == bos


@pytest.mark.parametrize("name", VOCABULARIES)
def test_vocabularies_are_written_back_byte_for_byte(shared: Path, tmp_path: Path, name: str) -> None:
    source = shared / f"fixtures/vocab/ggml-vocab-{name}.gguf"
    with open_gguf(source, CONTEXT) as model:
        copied = dict(model.metadata)
        decoded = {
            key: strings(texts(model, key)) if field.element is ValueType.STRING else field
            for key, field in copied.items()
        }
    original = source.read_bytes()
    for metadata in (copied, decoded):
        (path,) = write_layout(lay_out_gguf(tmp_path / "m.gguf", metadata, [], WriteOptions(digests=False)), {})
        assert path.read_bytes() == original + bytes(-len(original) % 32)


def rewrite(source: Path, target: Path, options: WriteOptions) -> list[Path]:
    """Copy a model through reader and writer; returns the parts."""
    with open_gguf(source, CONTEXT) as model:
        tensors = [OutputTensor(t.name, t.shape, t.encoding) for t in model.tensors.values()]
        data = {t.name: t.read(0, t.row_count).tobytes() for t in model.tensors.values()}
        return write_layout(lay_out_gguf(target, model.metadata, tensors, options), data)


@pytest.mark.parametrize(
    "options",
    [
        WriteOptions(),
        WriteOptions(digests=False),
        WriteOptions(alignment=4096),
        WriteOptions(split_max_tensors=5),
        WriteOptions(split_max_size=300_000, alignment=64),
        WriteOptions(split_max_tensors=8, metadata_only_first=True),
    ],
    ids=["plain", "no digests", "aligned", "split by number", "split by size", "first part empty"],
)
@pytest.mark.oracles
def test_llama_cpp_runs_what_is_written(shared: Path, tmp_path: Path, options: WriteOptions) -> None:
    """The model gives the same logits as the file that llama.cpp itself wrote."""
    source = shared / "fixtures/gguf-split/m-00001-of-00003.gguf"
    tokens = [1, 290, 310, 263, 293, 77, 5]
    paths = rewrite(source, tmp_path / "out.gguf", options)
    assert np.array_equal(logits(paths[0], tokens), logits(source, tokens))
    if options.digests:
        assert verify_gguf(paths[0]).ok
