"""Embedding models: real llama.cpp gives transformers' embeddings, tokens and pooling; the way back; no forward pass of ours."""

from __future__ import annotations

import json
import shutil
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from f32_gguf import write_f32
from huggingface_folder import architecture_named, hf_shapes, random_weights, stored, write_folder
from llamacpp_models import embeddings
from llamacpp_vocabulary import LlamaVocabulary
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from sentencepiece import sentencepiece_model_pb2
from tokenizer_folders import CORPUS, TEXTS, train_sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import qconv
from qconv.errors import ModelError
from qconv.formats.base import OpenContext
from qconv.formats.huggingface import open_huggingface
from qconv.runtime.building.network import load_network

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
    options = {"add_pooling_layer": False} if "add_pooling_layer" in signature(kind).parameters else {}
    model = kind(kind.config_class(**settings), **options).eval()
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


def assert_there_and_back(folder: Path, same_tokenizer: bool = True) -> None:
    """Weights to the bit, the configuration and the tokenizer, or its tokens, with what the file keeps of its source."""
    qconv.convert_model(folder, folder.with_suffix(".f32.gguf"), "f32")
    qconv.convert_model(folder.with_suffix(".f32.gguf"), folder.with_name("back"))
    one, other = (load_file(it / "model.safetensors") for it in (folder, folder.with_name("back")))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    for name in ("config.json", "tokenizer.json") if same_tokenizer else ("config.json",):
        texts = [json.loads((it / name).read_text()) for it in (folder, folder.with_name("back"))]
        assert texts[0] == texts[1]
    ours, theirs = (Tokenizer.from_file(str(it / "tokenizer.json")) for it in (folder, folder.with_name("back")))
    assert [ours.encode(text).ids for text in TEXTS] == [theirs.encode(text).ids for text in TEXTS]


CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
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


@pytest.mark.parametrize("class_name", ["RobertaModel", "XLMRobertaModel"])
def test_positions_after_padding(class_name: str, tmp_path: Path, context: OpenContext) -> None:
    """Bytes for RoBERTa, unigrams for XLM-RoBERTa, each between its begin and end tokens; positions count from the one after padding's."""
    tokenizer = byte_level() if class_name == "RobertaModel" else unigrams()
    model = save(tmp_path / "model", class_name, tokenizer, pad_token_id=1, type_vocab_size=1)
    assert_llama_cpp_agrees(tmp_path / "model", model, tokenizer, context)
    # the table of normalizations is too long to be kept twice
    assert_there_and_back(tmp_path / "model", same_tokenizer=class_name == "RobertaModel")
    with open_huggingface(tmp_path / "model", context) as opened:
        assert opened.metadata["bert.context_length"].value == SIZES["max_position_embeddings"] - 2
        with pytest.raises(ModelError, match="predicts no next token"):
            load_network(opened)


def test_eurobert(tmp_path: Path, context: OpenContext) -> None:
    """Heads of keys shared, rotations of halves; the head that predicts masked words is left out of a checkpoint that has it."""
    tokenizer, folder = byte_level(), tmp_path / "model"
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "mask_token_id": 4}
    model = save(folder, "EuroBertModel", tokenizer, num_key_value_heads=2, **ids)
    assert_llama_cpp_agrees(folder, model, tokenizer, context)
    assert_there_and_back(folder)
    weights = {f"model.{name}": array for name, array in load_file(folder / "model.safetensors").items()}
    weights["lm_head.weight"] = np.zeros((tokenizer.get_vocab_size(), 64), np.float32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["EuroBertForMaskedLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    assert_llama_cpp_agrees(folder, model, tokenizer, context)
    with open_huggingface(folder, context) as opened:
        assert opened.architecture == "eurobert"
        assert sum("is left out" in note for note in opened.notes) == 1
        with pytest.raises(ModelError, match="predicts no next token"):
            load_network(opened)


NEOBERT = {
    "architectures": ["NeoBERTLMHead"],
    "model_type": "neobert",
    "vocab_size": 0,
    "hidden_size": 64,
    "intermediate_size": 144,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_length": 128,
    "norm_eps": 1e-5,
}


def as_neobert(folder: Path, tokenizer: Tokenizer) -> Embedder:
    """Save a random EuroBERT in NeoBERT's names and order, with the head that predicts masked words; return the EuroBERT.

    NeoBERT has each head's queries, keys and values together, and rotates pairs where EuroBERT rotates halves.
    """
    model = save(
        folder, "EuroBertModel", tokenizer, intermediate_size=96, pad_token_id=0, bos_token_id=2, eos_token_id=3
    )
    tensors = load_file(folder / "model.safetensors")
    found = {"encoder.weight": tensors["embed_tokens.weight"], "layer_norm.weight": tensors["norm.weight"]}
    for layer in range(3):
        source, prefix = f"layers.{layer}.", f"transformer_encoder.{layer}."
        heads = [tensors[f"{source}self_attn.{part}_proj.weight"].reshape(4, 16, 64) for part in "qkv"]
        in_pairs = [part.reshape(4, 2, 8, 64).swapaxes(1, 2).reshape(4, 16, 64) for part in heads[:2]]
        found |= {
            f"{prefix}qkv.weight": np.stack([*in_pairs, heads[2]], axis=1).reshape(192, 64),
            f"{prefix}wo.weight": tensors[f"{source}self_attn.o_proj.weight"],
            f"{prefix}attention_norm.weight": tensors[f"{source}input_layernorm.weight"],
            f"{prefix}ffn_norm.weight": tensors[f"{source}post_attention_layernorm.weight"],
            f"{prefix}ffn.w3.weight": tensors[f"{source}mlp.down_proj.weight"],
            f"{prefix}ffn.w12.weight": np.concatenate(
                [tensors[f"{source}mlp.{it}_proj.weight"] for it in ("gate", "up")]
            ),
        }
    size = tokenizer.get_vocab_size()
    decoder = {"decoder.weight": np.zeros((size, 64), np.float32), "decoder.bias": np.zeros(size, np.float32)}
    save_file(
        {f"model.{name}": it for name, it in found.items()} | decoder, folder / "model.safetensors", {"format": "pt"}
    )
    (folder / "config.json").write_text(json.dumps(NEOBERT | {"vocab_size": size}))
    return model


def test_neobert(tmp_path: Path, context: OpenContext) -> None:
    tokenizer, folder = word_pieces(), tmp_path / "model"
    model = as_neobert(folder, tokenizer)
    assert_llama_cpp_agrees(folder, model, tokenizer, context)
    with open_huggingface(folder, context) as opened:
        assert sum("is left out" in note for note in opened.notes) == 1
    weights = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("model."): it for name, it in weights.items() if not name.startswith("decoder.")}
    save_file(bare, folder / "model.safetensors", {"format": "pt"})
    assert_there_and_back(folder)


def test_modernbert(tmp_path: Path, context: OpenContext) -> None:
    """Windows in two layers of three, with rotations of their own, no norm before the first attention, fused gates; old and new configurations."""
    tokenizer, folder = byte_level(), tmp_path / "model"
    ids = {"bos_token_id": 0, "cls_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
    model = save(folder, "ModernBertModel", tokenizer, num_hidden_layers=5, local_attention=8, **ids)
    assert_llama_cpp_agrees(folder, model, tokenizer, context)
    assert_there_and_back(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["layer_types"], config["rope_parameters"]
    older = {"global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config | older))
    shutil.rmtree(folder.with_name("back"))
    folder.with_suffix(".f32.gguf").unlink()
    assert_llama_cpp_agrees(folder, model, tokenizer, context)
    assert_there_and_back(folder)
    irregular = ["sliding_attention"] + ["full_attention"] * 4
    (folder / "config.json").write_text(json.dumps(config | {"layer_types": irregular}))
    with pytest.raises(ModelError, match="layer_types is not what"):
        open_huggingface(folder, context)


def byte_level() -> Tokenizer:
    """Train RoBERTa's kind of tokenizer."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator(CORPUS, trainer)
    found.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return found


def unigrams() -> Tokenizer:
    """Train XLM-RoBERTa's kind of tokenizer."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained = sentencepiece_model_pb2.ModelProto()
    trained.ParseFromString(train_sentencepiece("unigram", normalization_rule_name="nmt_nfkc"))
    found = Tokenizer(models.Unigram())
    found.normalizer = normalizers.Precompiled(trained.normalizer_spec.precompiled_charsmap)
    found.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    found.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    found.train_from_iterator([*CORPUS * 3, *TEXTS], trainer)
    found.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return found


class Jina:
    """Jina's encoder as its publication has it (arXiv:2310.19923): BERT's, with ALiBi on both sides and gelu-gated feed-forwards."""

    def __init__(self, folder: Path, heads: int) -> None:
        self.tensors, self.heads = load_file(folder / "model.safetensors"), heads

    def linear(self, name: str, values: Any) -> Any:
        import torch

        bias = self.tensors.get(f"{name}.bias")
        weight = torch.from_numpy(self.tensors[f"{name}.weight"])
        return torch.nn.functional.linear(values, weight, None if bias is None else torch.from_numpy(bias))

    def norm(self, name: str, values: Any) -> Any:
        import torch

        weight, bias = (torch.from_numpy(self.tensors[f"{name}.{kind}"]) for kind in ("weight", "bias"))
        return torch.nn.functional.layer_norm(values, weight.shape, weight, bias, 1e-12)

    def __call__(self, tokens: Any) -> Any:
        import torch

        ids, position = tokens[0], torch.arange(tokens.shape[1])
        slopes = torch.tensor([2 ** (-8 * (head + 1) / self.heads) for head in range(self.heads)])
        distance = -(position[:, None] - position).abs()[None] * slopes[:, None, None]
        embeddings_ = {
            name: torch.from_numpy(self.tensors[f"embeddings.{name}.weight"])
            for name in ("word_embeddings", "token_type_embeddings")
        }
        stream = self.norm(
            "embeddings.LayerNorm", embeddings_["word_embeddings"][ids] + embeddings_["token_type_embeddings"][0]
        )
        for layer in range(SIZES["num_hidden_layers"]):
            prefix = f"encoder.layer.{layer}."
            query, key, value = (
                self.linear(f"{prefix}attention.self.{kind}", stream).reshape(len(ids), self.heads, -1).transpose(0, 1)
                for kind in ("query", "key", "value")
            )
            weights = torch.softmax(query @ key.transpose(1, 2) / query.shape[2] ** 0.5 + distance, -1)
            mixed = (weights @ value).transpose(0, 1).reshape(len(ids), -1)
            stream = self.norm(
                f"{prefix}attention.output.LayerNorm", stream + self.linear(f"{prefix}attention.output.dense", mixed)
            )
            gate, up = self.linear(f"{prefix}mlp.gated_layers", stream).chunk(2, -1)
            gated = torch.nn.functional.gelu(gate) * up
            stream = self.norm(f"{prefix}mlp.layernorm", stream + self.linear(f"{prefix}mlp.wo", gated))
        return type("Output", (), {"last_hidden_state": stream[None]})


def test_jina(tmp_path: Path, context: OpenContext) -> None:
    tokenizer, folder = word_pieces(), tmp_path / "model"
    config = SIZES | {
        "vocab_size": tokenizer.get_vocab_size(),
        "architectures": ["JinaBertForMaskedLM"],
        "model_type": "jina_bert",
    }
    config |= {
        "position_embedding_type": "alibi",
        "feed_forward_type": "geglu",
        "hidden_act": "gelu",
        "type_vocab_size": 2,
    }
    shapes = hf_shapes(architecture_named("jina-bert-v2"), config)
    weights = random_weights(shapes, seed=3)
    small = {name: array * np.float32(0.15 if array.ndim > 1 else 0.5) for name, array in weights.items()}
    write_folder(folder, config, stored(small, "F32"))
    tokenizer.save(str(folder / "tokenizer.json"))
    assert_llama_cpp_agrees(folder, Jina(folder, SIZES["num_attention_heads"]), tokenizer, context)
    assert_there_and_back(folder)


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
    qconv.convert_model(path, tmp_path / "back")
    assert json.loads((tmp_path / "back" / "modules.json").read_text()) == modules
    with open_huggingface(tmp_path / "back", context) as opened, qconv.open(path) as original:
        assert opened.metadata["bert.pooling_type"] == original.metadata["bert.pooling_type"]
    made = json.loads((tmp_path / "back" / "1_Pooling" / "config.json").read_text())
    assert made["word_embedding_dimension"] == SIZES["hidden_size"]
    assert [key for key, value in made.items() if value is True] == [f"pooling_mode_{flags[mode]}"]
