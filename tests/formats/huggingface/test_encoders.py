"""Embedding models: real llama.cpp gives transformers' embeddings, tokens and pooling; the way back; no forward pass of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from f32_gguf import write_f32
from llamacpp_models import embeddings
from llamacpp_vocabulary import LlamaVocabulary
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizer_folders import CORPUS, TEXTS
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import qconv
from qconv.errors import ModelError
from qconv.formats.base import OpenContext
from qconv.formats.huggingface import open_huggingface
from qconv.runtime.network import load_network

pytestmark = [pytest.mark.oracles, pytest.mark.filterwarnings("ignore")]

TOLERANCE = 1e-3  # of the largest number; measured: 3e-4, since llama.cpp has gelu in a table of half precision
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
Embedder = Any


def word_pieces(lowercase: bool = True, size: int = 400) -> Tokenizer:
    """Train a BERT tokenizer on a few sentences."""
    found = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    found.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=list(SPECIAL), show_progress=False)
    found.train_from_iterator([*CORPUS, *(text.lower() for text in CORPUS), "é à ñ 東京 ß"], trainer)
    found.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return found


def save(folder: Path, class_name: str, tokenizer: Tokenizer, **config: Any) -> Embedder:
    """Save a seeded random encoder with a tokenizer; return it."""
    import torch
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(7)
    kind = getattr(transformers, class_name)
    settings = {"vocab_size": tokenizer.get_vocab_size(), **SIZES, **config}
    model = kind(kind.config_class(**settings), add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() > 1 else 0.3))
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return model


def expected(model: Embedder, tokens: list[int]) -> NDArray[np.float64]:
    import torch

    with torch.no_grad():
        return np.asarray(model(torch.tensor([tokens])).last_hidden_state[0].double().numpy())


def assert_close(found: NDArray[Any], wanted: NDArray[Any]) -> None:
    assert wanted.std() > 0.3, "the reference must not be flat, or the comparison says nothing"
    assert np.abs(found - wanted).max() < TOLERANCE * np.abs(wanted).max()


def assert_llama_cpp_agrees(folder: Path, model: Embedder, tokenizer: Tokenizer, context: OpenContext) -> Path:
    """llama.cpp makes the tokenizer's tokens of texts, and the model's embeddings of tokens; return the GGUF file."""
    path = folder.with_suffix(".gguf")
    with open_huggingface(folder, context) as opened:
        write_f32(path, opened)
    encoded = [tokenizer.encode(text).ids for text in TEXTS]
    with LlamaVocabulary(path) as vocabulary:
        for text, tokens in zip(TEXTS, encoded, strict=True):
            assert vocabulary.tokenize(text, add_special=True) == tokens, text
    for tokens in encoded[5:12]:
        assert_close(embeddings(path, tokens), expected(model, tokens))
    return path


def assert_there_and_back(folder: Path) -> None:
    """Weights to the bit, the configuration and the tokenizer, with what the file keeps of its source."""
    qconv.convert_model(folder, folder.with_suffix(".f32.gguf"), "f32")
    qconv.convert_model(folder.with_suffix(".f32.gguf"), folder.with_name("back"))
    one, other = (load_file(it / "model.safetensors") for it in (folder, folder.with_name("back")))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    for name in ("config.json", "tokenizer.json"):
        texts = [json.loads((it / name).read_text()) for it in (folder, folder.with_name("back"))]
        assert texts[0] == texts[1]


CASES = (
    ("bert", "BertModel", {}),
    ("nomic-bert", "NomicBertModel", {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}),
)


@pytest.mark.parametrize(
    ("name", "class_name", "config"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_embeddings_tokens_and_the_way_back(
    name: str, class_name: str, config: dict[str, Any], tmp_path: Path, context: OpenContext
) -> None:
    tokenizer = word_pieces()
    model = save(tmp_path / "model", class_name, tokenizer, **config)
    assert_llama_cpp_agrees(tmp_path / "model", model, tokenizer, context)
    assert_there_and_back(tmp_path / "model")
    with open_huggingface(tmp_path / "model", context) as opened:
        assert opened.architecture == name
        with pytest.raises(ModelError, match="predicts no next token"):
            load_network(opened)


def test_the_names_of_older_checkpoints(tmp_path: Path, context: OpenContext) -> None:
    """``bert.`` before names, ``gamma`` and ``beta`` in norms, heads for training that are left out."""
    tokenizer = word_pieces()
    model = save(tmp_path / "model", "BertModel", tokenizer)
    path = tmp_path / "model" / "model.safetensors"
    found = {}
    for name, array in load_file(path).items():
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        found[f"bert.{old}"] = array
    found["bert.pooler.dense.weight"] = found["cls.predictions.transform.dense.weight"] = np.zeros((64, 64), np.float32)
    save_file(found, path, {"format": "pt"})
    config = json.loads((path.parent / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    (path.parent / "config.json").write_text(json.dumps(config))
    assert_llama_cpp_agrees(tmp_path / "model", model, tokenizer, context)
    with open_huggingface(tmp_path / "model", context) as opened:
        assert sum("is left out" in note for note in opened.notes) == 2


def test_nomic_with_the_configuration_of_its_authors(tmp_path: Path, context: OpenContext) -> None:
    tokenizer = word_pieces()
    model = save(tmp_path / "model", "NomicBertModel", tokenizer)
    config = {
        "architectures": ["NomicBertModel"], "model_type": "nomic_bert", "vocab_size": tokenizer.get_vocab_size(), "n_embd": 64, "n_inner": 96,
        "n_layer": 3, "n_head": 4, "n_positions": 8192, "max_trained_positions": 2048, "rotary_emb_base": 1000, "layer_norm_epsilon": 1e-12,
        "activation_function": "swiglu", "type_vocab_size": 2, "prenorm": False, "causal": False, "rotary_emb_fraction": 1.0,
    }  # fmt: skip
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert_llama_cpp_agrees(tmp_path / "model", model, tokenizer, context)
    assert_there_and_back(tmp_path / "model")
    with open_huggingface(tmp_path / "model", context) as opened:
        assert opened.metadata["nomic-bert.context_length"].value == 2048


@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize("older", [True, False])
def test_pooling(mode: str, older: bool, tmp_path: Path, context: OpenContext) -> None:
    tokenizer = word_pieces()
    model = save(tmp_path / "model", "BertModel", tokenizer)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    flags = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
    pooling = (
        {f"pooling_mode_{flag}": name == mode for name, flag in flags.items()} if older else {"pooling_mode": mode}
    )
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "model" / "1_Pooling").mkdir()
    (tmp_path / "model" / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with open_huggingface(tmp_path / "model", context) as opened:
        path = write_f32(tmp_path / "model.gguf", opened)
    tokens = tokenizer.encode(TEXTS[0]).ids
    rows = expected(model, tokens)
    wanted = {"mean": rows.mean(axis=0), "cls": rows[0], "lasttoken": rows[-1]}[mode]
    assert_close(embeddings(path, tokens, pooled=True), wanted)
