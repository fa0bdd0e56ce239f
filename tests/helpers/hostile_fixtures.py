"""Small sound files of every kind that qconv reads, how each is damaged, and how each is read."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import ggml_files
import gguf_files
import huggingface_folder
import mistral_files
import numpy as np
import packed_floats
import packed_folders
import tokenizer_folders
import torch_files
from gguf_files import array, scalar
from mutations import length_fields, mutate_bytes, mutate_compact_base, mutate_json, mutate_safetensors
from qconv_encodings import ENCODINGS
from torch_mutations import interesting_places

from qconv.convert.execute import SLAB_WEIGHTS
from qconv.convert.opening import open_model
from qconv.errors import QconvError, TokenizerError
from qconv.formats.base import Layout, Model, OutputTensor, WriteOptions
from qconv.formats.gguf import lay_out_gguf, verify_gguf
from qconv.formats.imatrix import gguf_imatrix, legacy_imatrix, read_imatrix
from qconv.formats.metadata import ValueType, boolean, float32, numbers, string, strings, uint32
from qconv.formats.pretokenizers import find_pre_tokenizer
from qconv.formats.summary import summarize
from qconv.plugins.manager import Registries, load_plugins
from qconv.quantizers.base import Encoding
from qconv.quantizers.importance import ImportanceEntry, ImportanceMatrix
from qconv.runtime.measuring.bases import open_base
from qconv.runtime.measuring.compact_base import CompactWriter
from qconv.runtime.measuring.identity import ModelIdentity
from qconv.runtime.measuring.logits_file import encode_records, start_logits_file
from qconv.runtime.measuring.windows import cut_standard
from qconv.runtime.tokenizing.tokenizer import load_tokenizer

_ROWS = 3  # read at both ends of every tensor
_TENSORS = 60  # looked at in one file


@dataclass(frozen=True)
class Fixture:
    """Files that are sound together.

    Attributes:
        files: content by name.
        entry: the file to open, or an empty string for the folder.
        damaged: names of the files to be damaged, all if empty.
    """

    files: Mapping[str, bytes]
    entry: str = ""
    damaged: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the files that are damaged."""
        return self.damaged or tuple(self.files)


@dataclass
class Reader:
    """One kind of reader: its fixtures, and ``read``, which is given the path to open."""

    fixtures: Sequence[Fixture]
    read: Callable[[Path], None]
    _places: dict[bytes, Sequence[int]] = field(default_factory=dict)

    def damage(self, fixture: Fixture, name: str, source: random.Random) -> bytes:
        """Return one of the fixture's files, damaged as befits its kind."""
        data = fixture.files[name]
        others = [content for it in self.fixtures for content in it.files.values() if content] or [b"\0"]
        if name.endswith(".json"):
            return mutate_json(data, source)
        if name.endswith(".safetensors"):
            return mutate_safetensors(data, others, source)
        if name.endswith(".kl"):
            return mutate_compact_base(data, source)
        if data not in self._places:
            lengths = length_fields(data)
            pickled = name.endswith((".pth", ".bin")) and data[:2] in (b"PK", b"\x80\x02")
            near = interesting_places(data) if pickled else []
            names = [found.start() for found in re.finditer(rb"\.weight", data)]
            records = [max(0, place + step) for place in names for step in range(-40, 32)]
            self._places[data] = [*lengths, *lengths, *range(min(len(data), 2000)), *near, *records] or [0]
        return mutate_bytes(data, self._places[data], others, source)


@cache
def registries() -> Registries:
    """What the built-in plugins register."""
    return load_plugins("").registries()


def look_at(model: Model) -> None:
    """Look at everything that a model has: metadata, summary, vocabulary, rows of every tensor, slabs of the largest."""
    for value in model.metadata.values():
        if not isinstance(value.value, bool | int | float | str):
            list(value.value[:50])
    summarize(model).to_dict()
    tensors = list(model.tensors.values())
    for tensor in tensors[:_TENSORS]:
        look_at_rows(tensor.rows if _is_decoded(tensor.encoding) else tensor.read, tensor.row_count, _ROWS)
    if tensors:
        largest = max(tensors, key=lambda it: it.row_count * it.columns)
        look_at_rows(largest.read, largest.row_count, max(1, SLAB_WEIGHTS // max(1, largest.columns)))
    if any(key.startswith("tokenizer.") for key in model.metadata):
        with suppress(TokenizerError):  # not every kind that is converted can be run
            load_tokenizer(model).encode("Hello, wörld <s>")


def _is_decoded(encoding: Encoding) -> bool:
    """Whether a test looks at the weights of this encoding; kernels of IQ types take long to compile."""
    return encoding.load is not None and encoding.name[0] != "I"


def look_at_rows(read: Callable[[int, int], object], rows: int, most: int) -> None:
    """Read up to ``most`` rows from both ends of a tensor."""
    count = min(rows, most)
    for start in {0, rows - count}:
        try:
            read(start, start + count)
        except QconvError as error:
            if not str(error):
                raise AssertionError("an error without a message") from error


def read_model(path: Path, vocabulary_only: bool = False) -> None:
    """Open a model of any format and look at it."""
    with open_model(path, registries(), vocabulary_only=vocabulary_only) as model:
        look_at(model)


# --- GGUF


def _gguf_parts(options: WriteOptions) -> dict[str, bytes]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581a", "b", "\u2581", "H", "e"]
    metadata = {
        "general.architecture": string("llama"),
        "general.name": string("é" * 20),
        "llama.block_count": uint32(1),
        "llama.rope.freq_base": float32(1e4),
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.tokens": strings(tokens),
        "tokenizer.ggml.scores": numbers(-np.arange(len(tokens)), ValueType.FLOAT32),
        "tokenizer.ggml.token_type": numbers([2, 3, 3, *[6] * 256, *[1] * 5], ValueType.INT32),
        "tokenizer.ggml.bos_token_id": uint32(1),
        "tokenizer.ggml.eos_token_id": uint32(2),
        "tokenizer.ggml.add_bos_token": boolean(True),
        "tokenizer.chat_template": string("{{ messages }}"),
    }
    kinds = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q6_K", "IQ4_XS", "MXFP4")
    tensors = [OutputTensor("token_embd.weight", (len(tokens), 4), ENCODINGS["F32"])]
    tensors += [OutputTensor(f"blk.0.{kind.lower()}.weight", (2, 256), ENCODINGS[kind]) for kind in kinds]
    random_bytes = np.random.default_rng(1)
    data = {tensor.name: random_bytes.bytes(tensor.nbytes) for tensor in tensors}
    layout = lay_out_gguf(Path("m.gguf"), metadata, tensors, options)
    return {part.path.name: content for part, content in zip(layout.parts, _contents(layout, data), strict=True)}


def _contents(layout: Layout, data: Mapping[str, bytes]) -> list[bytes]:
    found = []
    for part in layout.parts:
        content = bytearray(part.size)
        header = part.header({name: "0" * 64 for name in data})
        content[: len(header)] = header
        for placement in part.placements:
            raw = data[placement.tensor.name]
            content[placement.offset : placement.offset + len(raw)] = raw
        found.append(bytes(content))
    return found


def _old_gguf(version: int, order: str) -> bytes:
    style = gguf_files.Style(order=order, wide=version > 1, nul=version == 1)
    entries: list[tuple[str | bytes, bytes]] = [
        ("general.architecture", scalar(gguf_files.STRING, "llama", style)),
        ("flags", array(gguf_files.BOOL, [0, 1], style=style)),
        *((f"k{kind}", scalar(kind, 1, style)) for kind in gguf_files.CODES if version > 1 or kind < 10),
    ]
    records = [gguf_files.Record("a", (32, 3), data=bytes(384)), gguf_files.Record("b", (32, 2), 8, bytes(68))]
    return gguf_files.Craft(entries, records, version, style).build()


def gguf_reader() -> Reader:
    for encoding in ENCODINGS.values():  # kernels are compiled once, and not by the reader that is watched
        if _is_decoded(encoding):
            encoding.decode(np.zeros((1, encoding.block_bytes), np.uint8))
    whole = _gguf_parts(WriteOptions())
    parts = _gguf_parts(WriteOptions(split_max_tensors=4))
    fixtures = [Fixture(whole, "m.gguf"), Fixture(whole, "m.gguf"), Fixture(parts, next(iter(parts)))]
    fixtures += [Fixture({"m.gguf": _old_gguf(*it)}, "m.gguf") for it in ((1, "<"), (2, "<"), (3, "<"), (3, ">"))]
    return Reader(fixtures, _read_gguf)


def _read_gguf(path: Path) -> None:
    with suppress(QconvError):
        verify_gguf(path, threads=1)
    read_model(path)


# --- Hugging Face


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def _tokenizer_files(work: Path, name: str) -> dict[str, bytes]:
    made = json.loads(json.dumps(tokenizer_folders.train_byte_level("gpt-2", 300)))
    made["added_tokens"] = []
    folder = tokenizer_folders.write_folder(
        work / name, tokenizer=made, tokenizer_config={"tokenizer_class": "GPT2Tokenizer"}
    )
    return _files(folder)


def huggingface_reader(work: Path) -> Reader:
    fixtures = []
    for name in ("llama", "qwen3moe", "phi3", "gpt2", "gemma3"):
        shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
        made = huggingface_folder.model_folder(
            work / f"hf-{name}", name, shards if name == "qwen3moe" else ("model.safetensors",)
        )
        weights = _files(made)
        fixtures.append(Fixture(weights | {"tokenizer.json": _small_tokenizer(24)}, "", tuple(weights)))
    return Reader(fixtures, read_model)


def _small_tokenizer(size: int) -> bytes:
    """A byte-level ``tokenizer.json`` of so many tokens; it lacks most bytes, which the reader does not mind."""
    vocabulary = {chr(0x21 + index): index for index in range(size)}
    stages = find_pre_tokenizer("gpt-2")
    assert stages is not None
    return json.dumps(tokenizer_folders.tokenizer_json(vocabulary, [], stages.stages)).encode()


# --- Hugging Face folders that are quantized


def packed_reader(work: Path) -> Reader:
    nvfp4 = {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}
    gptq = {"quant_method": "gptq", "group_size": 32}
    words = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    cases: dict[str, tuple[packed_folders.Packer, dict[str, Any]]] = {
        "gptq": (packed_folders.gptq(3, 32, act_order=True), gptq | {"bits": 3}),
        "gptq-2": (packed_folders.gptq(2, 32, layout="gptq_v2"), gptq | {"bits": 2, "checkpoint_format": "gptq_v2"}),
        "gptq-planes": (packed_folders.gptq(5, 32, layout="gptq_p"), gptq | {"bits": 5, "checkpoint_format": "gptq_p"}),
        "awq": (packed_folders.awq_gemm(32), {"quant_method": "awq", "bits": 4, "group_size": 32}),
        "awq-gemv": (packed_folders.awq_gemv(32), {"quant_method": "awq", "group_size": 32, "version": "gemv"}),
        "awq-fast": (
            packed_folders.awq_gemv_fast(32),
            {"quant_method": "awq", "group_size": 32, "version": "gemv_fast"},
        ),
        "exl2": (packed_folders.exl2(lambda inputs: [(6, 32), (2, inputs - 32)]), {"quant_method": "exl2"}),
        "exl3": (packed_folders.exl3(1.0), {"quant_method": "exl3"}),
        "nf4": (packed_floats.bitsandbytes_4bit(nested=4), {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "int8": (packed_floats.bitsandbytes_int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
        "words": (packed_floats.word_integers(3, 32, symmetric=False, act_order=True), words),
        "float8": (packed_floats.float8_blocks((16, 16)), {"quant_method": "fp8", "weight_block_size": [16, 16]}),
        "mxfp4": (packed_floats.mxfp4, {"quant_method": "compressed-tensors"}),
        "nvfp4": (packed_floats.nvfp4(), nvfp4),
        "wide": (_noise_of_two_bits, gptq | {"bits": 2}),
    }
    wide: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 1}
    sizes = {"wide": wide, "awq-fast": {"intermediate_size": 128}}
    fixtures = []
    for name, (pack, settings) in cases.items():
        packed_folders.packed_model(work / name, pack, settings, **sizes.get(name, {}))
        weights = _files(work / name)
        vocabulary = _small_tokenizer(json.loads(weights["config.json"])["vocab_size"])
        fixtures.append(Fixture(weights | {"tokenizer.json": vocabulary}, "", tuple(weights)))
    return Reader(fixtures, read_model)


def _noise_of_two_bits(weights: packed_folders.Floats, rng: np.random.Generator) -> packed_folders.PackedLayer:
    """Return a layer of GPTQ's with the shapes of ``weights`` and nothing of their values."""
    outputs, inputs = weights.shape
    scales = rng.random((inputs // 32, outputs)).astype(np.float32)
    tensors = {
        ".qweight": packed_folders.int32(rng.integers(0, 1 << 32, (inputs // 16, outputs), np.uint32)),
        ".qzeros": packed_folders.int32(rng.integers(0, 1 << 32, (inputs // 32, outputs // 16), np.uint32)),
        ".scales": packed_folders.float16(scales),
    }
    return packed_folders.PackedLayer(tensors, weights)


# --- torch


def torch_reader(work: Path) -> Reader:
    folder = work / "pickled"
    huggingface_folder.model_folder(folder, "llama")
    weights = huggingface_folder.random_weights(
        huggingface_folder.hf_shapes(
            huggingface_folder.architecture_named("llama"), huggingface_folder.CONFIGS["llama"]
        )
    )
    files = _files(folder) | {
        "pytorch_model.bin": torch_files.zip_checkpoint(weights),
        "tokenizer.json": _small_tokenizer(24),
    }
    del files["model.safetensors"]
    legacy = files | {"pytorch_model.bin": torch_files.legacy_checkpoint(weights)}
    value, data = torch_files.plain_tensors(weights)
    long = torch_files.archive(torch_files.members(torch_files.pickled(value), data), long=True)
    fixtures = [Fixture(it, "", ("pytorch_model.bin",)) for it in (files, legacy, files | {"pytorch_model.bin": long})]
    return Reader([*fixtures, *_meta_fixtures()], read_model)


def _meta_fixtures() -> list[Fixture]:
    sizes = {"dim": 64, "n_layers": 1, "n_heads": 4, "norm_eps": 1e-5, "vocab_size": 500}
    whole = ggml_files.weights()
    for name in ("tok_embeddings.weight", "output.weight"):
        whole[name] = np.resize(whole[name], (500, 64))
    model = tokenizer_folders.train_sentencepiece("bpe")
    one = {"consolidated.00.pth": torch_files.zip_checkpoint({name: it.astype("<f2") for name, it in whole.items()})}
    two: dict[str, bytes] = {}
    for shard in (0, 1):
        cut = {}
        for name, values in whole.items():
            axis = None if values.ndim == 1 else 1 if name.endswith(ggml_files.COLUMN_SPLIT) else 0
            cut[name] = (values if axis is None else np.split(values, 2, axis)[shard]).astype("<f2")
        two[f"consolidated.0{shard}.pth"] = torch_files.zip_checkpoint(cut)
    beside = {"params.json": json.dumps(sizes).encode(), "tokenizer.model": model}
    return [Fixture(it | beside, "", (*it, "params.json")) for it in (one, two)]


# --- Mistral's own form


def mistral_reader(work: Path) -> Reader:
    fixtures = []
    for name, shards in (("dense", mistral_files.SINGLE), ("shards", mistral_files.SHARDS)):
        folder = mistral_files.write_small(work / f"mistral-{name}", shards)
        fixtures.append(Fixture(_files(folder)))
    large = _files(mistral_files.write_large(work / "mistral-large"))
    fixtures.append(Fixture(large, "", tuple(name for name in large if name != "tekken.json")))
    fixtures.append(Fixture(_files(mistral_files.write_first_mixtral(work / "mistral-first"))))
    pieces = _files(_pieces_folder(work / "mistral-pieces"))
    fixtures.append(Fixture(pieces, "", ("params.json", "tokenizer.model.v3")))
    return Reader(fixtures, read_model)


def _pieces_folder(folder: Path) -> Path:
    """Write a model whose tokenizer is a sentencepiece model, under the name that tells its version; return ``folder``."""
    sizes, weights = mistral_files.small_model(500)
    mistral_files.write_native(folder, sizes, huggingface_folder.stored(weights))
    (folder / "tokenizer.model.v3").write_bytes(tokenizer_folders.train_sentencepiece("bpe"))
    return folder


# --- ggml


def ggml_reader() -> Reader:
    weights = ggml_files.weights()
    crafted = [
        ggml_files.Craft("ggjt", 3, records=ggml_files.records(weights, (1, ggml_files.halves))),
        ggml_files.Craft("ggjt", 3, records=ggml_files.records(weights, (0, ggml_files.floats))),
        ggml_files.Craft("ggml", records=ggml_files.records(weights, (1, ggml_files.halves))),
        ggml_files.Craft("ggmf", 1, records=ggml_files.records(weights, (1, ggml_files.halves))),
        ggml_files.Craft(
            "ggjt", 1, records=ggml_files.records(weights, (2, lambda rows: ggml_files.q4_0_rows(rows)[0]))
        ),
        ggml_files.Craft(
            "ggml",
            records=ggml_files.records(weights, (3, lambda rows: ggml_files.q4_1_rows(rows, planar=True)[0])),
        ),
    ]
    fixtures = [Fixture({"model.bin": it.build()}, "model.bin") for it in crafted]
    parts = {}
    for number in (0, 1):
        found = ggml_files.records(ggml_files.part_slices(weights, number, 2), (1, ggml_files.halves))
        parts["model.bin.1" if number else "model.bin"] = ggml_files.Craft("ggmf", 1, records=found).build()
    return Reader([*fixtures, Fixture(parts, "model.bin")], read_model)


# --- importance matrices


def imatrix_reader() -> Reader:
    entries = {
        name: ImportanceEntry(np.abs(np.random.default_rng(2).standard_normal((count, 8))), np.full(count, 512.0))
        for name, count in (("blk.0.attn_q.weight", 1), ("blk.0.ffn_gate_exps.weight", 3))
    }
    matrix = ImportanceMatrix(entries, ("text.txt",), 1, 512)
    contents = (gguf_imatrix(matrix), legacy_imatrix(matrix))
    context = registries().open_context()

    def read(path: Path) -> None:
        found = read_imatrix(path, context)
        for entry in list(found.entries.values())[:_TENSORS]:
            entry.sums.sum()

    return Reader([Fixture({"imatrix": it}, "imatrix") for it in contents], read)


# --- tokenizers


def tokenizer_reader(work: Path) -> Reader:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    fixtures = [Fixture(_tokenizer_files(work, "tokenizer-bytes"))]
    for kind in ("bpe", "unigram"):
        files = {
            "tokenizer.model": tokenizer_folders.train_sentencepiece(kind),
            "tokenizer_config.json": json.dumps(
                {
                    "tokenizer_class": "LlamaTokenizer",
                    "add_bos_token": True,
                    "bos_token": "<s>",
                    "chat_template": "{{ messages }}",
                    "added_tokens_decoder": {"500": {"content": "<x>", "special": True}},
                }
            ).encode(),
            "special_tokens_map.json": b'{"bos_token": {"content": "<s>"}, "eos_token": "</s>"}',
            "added_tokens.json": b'{"<x>": 500}',
            "generation_config.json": b'{"eos_token_id": [2, 3]}',
        }
        fixtures.append(Fixture(files))
    slow = {
        "vocab.json": json.dumps({chr(0x21 + i): i for i in range(90)} | {"!!": 90}).encode(),
        "merges.txt": b"#version: 0.2\n! !\n",
        "tokenizer_config.json": b'{"tokenizer_class": "GPT2Tokenizer"}',
    }
    fixtures.append(Fixture(slow))
    return Reader(fixtures, partial(_read_tokenizer, config))


def _read_tokenizer(config: Mapping[str, Any], folder: Path) -> None:
    found = tokenizer_folders.read(folder, 600, **config)
    model = Model(folder, "huggingface", {"general.architecture": string("llama"), **found.metadata}, {})
    look_at(model)


# --- bases of log-probabilities


def base_reader() -> Reader:
    random_numbers = np.random.default_rng(3)
    windows = cut_standard(random_numbers.integers(0, 12, 40).tolist(), 10, None)
    logits = random_numbers.normal(0, 5, (4 * windows.scored_per_window, 12)).astype(np.float32)
    whole, compact = io.BytesIO(), io.BytesIO()
    start_logits_file(whole, windows, 12)
    whole.write(encode_records(logits))
    identity = ModelIdentity("name", "llama", "0" * 64, (1.0, 2.0))
    writer = CompactWriter(compact, windows, 12, identity, "1" * 64, [{"name": "a", "sha256": "2" * 64}], kept=5)
    writer.add(logits, np.zeros(len(logits), np.int64))
    writer.finish()
    return Reader(
        [
            Fixture({"base.logits": whole.getvalue()}, "base.logits"),
            Fixture({"base.kl": compact.getvalue()}, "base.kl"),
        ],
        _read_base,
    )


def _read_base(path: Path) -> None:
    for _ in islice(open_base(path).chunks(), 4):
        pass


READERS: Mapping[str, Callable[[Path], Reader]] = {
    "gguf": lambda work: gguf_reader(),
    "huggingface": huggingface_reader,
    "packed": packed_reader,
    "torch": torch_reader,
    "mistral": mistral_reader,
    "ggml": lambda work: ggml_reader(),
    "imatrix": lambda work: imatrix_reader(),
    "tokenizer": tokenizer_reader,
    "base": lambda work: base_reader(),
}
