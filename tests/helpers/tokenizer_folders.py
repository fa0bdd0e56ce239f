"""Hugging Face folders with small tokenizers, made on the fly, and tokenizers rebuilt from GGUF vocabularies."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from qconv.formats.base import OpenContext
from qconv.formats.gguf.reader import open_gguf
from qconv.formats.huggingface.tokenizing.tokenizer import TokenizerResult, read_tokenizer
from qconv.formats.metadata import Scalar
from qconv.formats.pretokenizers import Stage, find_pre_tokenizer, to_tokenizer_json

TEXTS = (
    "",
    " ",
    "  ",
    "\n",
    "\n\n \t x",
    "Hello, world!",
    " Hello  world ",
    "I'll say we'RE done, they've 'told us it's so.",
    "({\n[\r\n\r\n\n]}); x\n\n\n\n        y a-b/c\n/d 'xyz 'SSa",
    "'twas rock'n'roll, I'dve said 'SOS'; SHE'LLED o'clocks",
    "naïve señor größer нещо на български",
    "École ÉCOLE Übergröße Български",
    "我想在apple工作1314151天～ 日本語 한국어",
    "हिन्दी বাংলা ไทย កាន់តែពិសេសអាច",
    "🚀 (normal) 😶‍🌫️ ✅ 🦙🦙",
    "3 33 333   3333  33333\n\n7 1,234,567.89 ½ ²",
    "def f(x):\r\n    return x ** 2  # CamelCase HTMLParser /usr/bin ===---=== '''```\"\"\"",
)
"""Texts that exercise every stage of every pre-tokenizer."""

CORPUS = (
    "the quick brown fox jumps over the lazy dog, and then it's told: don't jump again, will you?",
    "we'll see 12 or 123 or 1234 of them (or so) in 2024 and 1999; the foxes said 100%!",
    "HTTPServer camelCase parseJSON snake_case == != <= >= // /* comment */ return x;\n    if y:\n\treturn z",
)


def context(pre_tokenizer: str | None = None) -> OpenContext:
    """A context without encodings and architectures, which no tokenizer needs."""
    return OpenContext({}, {}, pre_tokenizer=pre_tokenizer)


def write_folder(folder: Path, **contents: Any) -> Path:
    """Write ``tokenizer_config={…}`` as ``tokenizer_config.json`` and so on; bytes and texts go to the name as it is with ``__`` for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        if isinstance(content, bytes):
            (folder / name.replace("__", ".")).write_bytes(content)
        elif isinstance(content, str):
            (folder / name.replace("__", ".")).write_text(content, encoding="utf-8")
        else:
            (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def read(folder: Path, rows: int, pre_tokenizer: str | None = None, **config: Any) -> TokenizerResult:
    """Read the tokenizer of ``folder`` with ``config`` as its ``config.json``."""
    return read_tokenizer(folder, config, context(pre_tokenizer), vocab_rows=rows)


def tokenizer_json(
    vocab: Mapping[str, int],
    merges: Iterable[Sequence[str]],
    stages: Iterable[Stage],
    *,
    ignore_merges: bool = False,
    normalizer: Mapping[str, Any] | None = None,
    added: Iterable[tuple[int, str, bool]] = (),
) -> dict[str, Any]:
    """A byte-level BPE ``tokenizer.json``; ``added`` are triples of id, text and whether it is special."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": special,
            }
            for token, text, special in added
        ],
        "normalizer": normalizer,
        "pre_tokenizer": to_tokenizer_json(stages),
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": dict(vocab),
            "merges": [list(pair) for pair in merges],
        },
    }


@cache
def train_byte_level(name: str, size: int = 700) -> dict[str, Any]:
    """A byte-level BPE ``tokenizer.json`` trained with the pre-tokenizer that llama.cpp knows by ``name``."""
    known = find_pre_tokenizer(name)
    assert known is not None
    empty = tokenizer_json({}, [], known.stages, ignore_merges=known.ignore_merges)
    tokenizer = Tokenizer.from_str(json.dumps(empty))
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator([*CORPUS, *TEXTS], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return tokenizer_json(
        model["vocab"],
        model["merges"],
        known.stages,
        ignore_merges=known.ignore_merges,
        normalizer={"type": known.normalizer} if known.normalizer else None,
        added=[(len(model["vocab"]), token, True) for token in ([known.token] if known.token else [])],
    )


@cache
def train_ranked(size: int = 520) -> dict[str, Any]:
    """A ``tokenizer.json`` as Gemma 4 has it: BPE over characters, ``▁`` for spaces, bytes for what has no token, runs of newlines as tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    cuts = (pre_tokenizers.Split(Regex(r"\n+"), "isolated"), pre_tokenizers.Split("▁", "merged_with_next"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(cuts))
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special + bytes_, show_progress=False)
    tokenizer.train_from_iterator([*CORPUS, *CORPUS, "\n\n\n\n"] * 2, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    markup = enumerate([*special, "<|turn>", "<turn|>", "<|channel>", "<|tool_response>"])
    spaces = {"String": " "}
    return {
        **tokenizer_json(
            model["vocab"],
            model["merges"],
            [],
            normalizer={"type": "Replace", "pattern": spaces, "content": "▁"},
            added=[(token if token < 5 else len(model["vocab"]) + token - 5, text, True) for token, text in markup],
        ),
        "pre_tokenizer": {"type": "Split", "pattern": spaces, "behavior": "MergedWithPrevious", "invert": False},
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": model,
    }


RANKED_HINTS: Mapping[str, Scalar] = {"model": "gemma4", "shown": "<|channel>"}
"""What Gemma 4's description says of its tokenizer, shortened."""


def read_ranked(folder: Path, contents: Mapping[str, Any], pre_tokenizer: str | None = None) -> TokenizerResult:
    """Write a ``tokenizer.json`` of that kind and read it."""
    names = {f"{role}_token": f"<{role}>" for role in ("bos", "eos", "unk", "pad")}
    write_folder(folder, tokenizer=dict(contents), tokenizer_config=names)
    rows = 1 + max(token["id"] for token in contents["added_tokens"])
    return read_tokenizer(folder, {}, context(pre_tokenizer), vocab_rows=rows, hints=RANKED_HINTS)


@cache
def train_sentencepiece(kind: str, **options: Any) -> bytes:
    """A ``tokenizer.model`` of ``kind`` (``bpe``, ``unigram``) trained on a small text."""
    model = io.BytesIO()
    settings: dict[str, Any] = {
        "vocab_size": 450 if kind == "unigram" else 500,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "character_coverage": 0.98,
        "hard_vocab_limit": False,
        "use_all_vocab": kind == "char",
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*CORPUS * 20, *(text for text in TEXTS if text.strip())]),
        model_writer=model,
        model_type=kind,
        **settings | {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()},
    )
    return model.getvalue()


@cache
def gguf_vocabulary(path: Path) -> Mapping[str, Any]:
    """The metadata of a GGUF file, values only; its header is read by qconv, since gguf's reader takes 18 s for a large vocabulary."""
    with open_gguf(path, replace(context(), vocabulary_only=True)) as model:
        return {key: _plain(field.value) for key, field in model.metadata.items()}


def _plain(value: Scalar | NDArray[np.generic] | Sequence[str]) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value if isinstance(value, bool | int | float | str) else list(value)


@cache
def tokenizer_json_of_gguf(path: Path) -> dict[str, Any]:
    """The ``tokenizer.json`` that a byte-level GGUF vocabulary was made from, as far as the file tells."""
    metadata = gguf_vocabulary(path)
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    known = find_pre_tokenizer(metadata["tokenizer.ggml.pre"])
    assert known is not None
    base = {text: i for i, (text, kind) in enumerate(zip(tokens, types, strict=True)) if kind == 1}
    added = [(i, text, kind == 3) for i, (text, kind) in enumerate(zip(tokens, types, strict=True)) if kind in (3, 4)]
    return tokenizer_json(
        base,
        [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]],
        known.stages,
        ignore_merges=known.ignore_merges,
        normalizer={"type": known.normalizer} if known.normalizer else None,
        added=added,
    )


def fixture_texts(shared: Path, name: str) -> tuple[list[str], list[list[int]]]:
    """The texts of a vocabulary fixture and the ids that llama.cpp must give for them."""
    stem = shared / "fixtures" / "vocab" / f"ggml-vocab-{name}.gguf"
    texts = stem.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = stem.with_suffix(".gguf.out").read_text().split("\n")
    return texts, [[int(word) for word in line.split()] for line in lines[: len(texts)]]


__all__ = [
    "CORPUS",
    "TEXTS",
    "context",
    "fixture_texts",
    "gguf_vocabulary",
    "read",
    "tokenizer_json",
    "tokenizer_json_of_gguf",
    "train_byte_level",
    "train_sentencepiece",
    "write_folder",
]
