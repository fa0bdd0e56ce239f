"""Whole checkpoints, split as Meta splits them: the shards give back the tensors that were cut."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch_files as made
from numpy.typing import NDArray
from qconv_encodings import ENCODINGS

from qconv.errors import (
    FormatError,
    MissingFileError,
    MissingTensorError,
    ModelError,
    QconvError,
    ShapeError,
    UnmappedTensorError,
)
from qconv.formats.architectures import built_in_architectures
from qconv.formats.base import Model, OpenContext
from qconv.formats.meta import FORMAT, open_meta

CONTEXT = OpenContext(ENCODINGS, {architecture.name: architecture for architecture in built_in_architectures()})
PARAMS: dict[str, Any] = {"dim": 16, "n_layers": 2, "n_heads": 8, "n_kv_heads": 4, "vocab_size": -1, "multiple_of": 16, "norm_eps": 1e-6}  # fmt: skip
ROWS, WIDTH = 24, 48
Weights = dict[str, NDArray[np.float32]]
GGUF = {
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
}
TOP = {
    "tok_embeddings.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "output.weight": "output.weight",
}


def weights(kv: int = 8) -> Weights:
    """Return a model's tensors by Meta's name; ``kv`` are the rows of keys."""
    rng = np.random.default_rng(3)
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (ROWS, 16),
        "norm.weight": (16,),
        "output.weight": (ROWS, 16),
    }
    for layer in range(2):
        for name, shape in {
            "attention.wq": (16, 16),
            "attention.wk": (kv, 16),
            "attention.wv": (kv, 16),
            "attention.wo": (16, 16),
            "feed_forward.w1": (WIDTH, 16),
            "feed_forward.w2": (16, WIDTH),
            "feed_forward.w3": (WIDTH, 16),
            "attention_norm": (16,),
            "ffn_norm": (16,),
        }.items():
            shapes[f"layers.{layer}.{name}.weight"] = shape
    return {name: rng.standard_normal(shape).astype("<f4") for name, shape in shapes.items()}


def gguf_name(name: str) -> str:
    if name in TOP:
        return TOP[name]
    _, layer, inner = name.removesuffix(".weight").split(".", 2)
    return f"blk.{layer}.{GGUF[inner]}.weight"


def cut(name: str, array: NDArray[Any], shard: int, count: int, embedding: str) -> NDArray[Any]:
    """Return what Meta's programs give to a shard."""
    if array.ndim == 1:
        return array
    by_columns = ".wo." in name or ".w2." in name or (name.startswith("tok") and embedding == "columns")
    if not by_columns and array.shape[0] < count:  # fewer heads than shards: neighbours share one
        return array[[shard * array.shape[0] // count]]
    return np.array_split(array, count, axis=int(by_columns))[shard].copy()


def write(
    folder: Path,
    whole: Mapping[str, NDArray[Any]],
    count: int = 1,
    embedding: str = "columns",
    form: Any = made.zip_checkpoint,
    **params: Any,
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "params.json").write_text(
        json.dumps({key: value for key, value in (PARAMS | params).items() if value is not None})
    )
    for shard in range(count):
        arrays = {name: cut(name, array, shard, count, embedding) for name, array in whole.items()}
        arrays["rope.freqs"] = np.ones(1, "<f4")
        (folder / f"consolidated.{shard:02d}.pth").write_bytes(form(arrays))
    return folder


def opened(folder: Path, context: OpenContext = CONTEXT) -> Model:
    return open_meta(folder, context)


def check(model: Model, whole: Mapping[str, NDArray[Any]]) -> None:
    """Demand every tensor whole, read in pieces that cut heads and shards."""
    assert {gguf_name(name) for name in whole} == set(model.tensors)
    for name, array in whole.items():
        tensor = model.tensors[gguf_name(name)]
        assert tensor.name == gguf_name(name)
        assert tensor.shape == array.shape
        steps = range(0, tensor.row_count, 3)
        found = np.concatenate([tensor.rows(start, min(start + 3, tensor.row_count)) for start in steps])
        np.testing.assert_array_equal(found.reshape(array.shape), array)


def failure(folder: Path, kind: type[QconvError], context: OpenContext = CONTEXT) -> str:
    with pytest.raises(kind) as caught:
        opened(folder, context).close()
    assert caught.value.path is not None
    assert caught.value.remedy
    return str(caught.value)


@pytest.mark.parametrize("form", [made.zip_checkpoint, made.legacy_checkpoint])
@pytest.mark.parametrize(
    ("count", "embedding"), [(1, "columns"), (2, "columns"), (2, "rows"), (4, "columns"), (4, "rows")]
)
def test_shards_make_up_the_model(tmp_path: Path, count: int, embedding: str, form: Any) -> None:
    folder = write(tmp_path / "m", weights(), count, embedding, form)
    assert FORMAT.detect(folder)
    with opened(folder) as model:
        check(model, weights())
        assert model.container == {"shards": count, "container": "zip" if form is made.zip_checkpoint else "legacy"}
        assert len(model.files) == count + 1
        assert model.architecture == "llama"
        assert {
            key.removeprefix("llama."): field.value for key, field in model.metadata.items() if "llama." in key
        } == {
            "vocab_size": ROWS,
            "context_length": 2048,
            "embedding_length": 16,
            "block_count": 2,
            "feed_forward_length": WIDTH,
            "attention.head_count": 8,
            "attention.head_count_kv": 4,
            "attention.key_length": 2,
            "attention.value_length": 2,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "rope.dimension_count": 2,
            "rope.freq_base": 10000.0,
        }


def repeated(whole: Weights, copies: int) -> Weights:
    """Return the tensors with every key head repeated, so that each shard gets a copy."""
    out = dict(whole)
    for name in whole:
        if ".wk." in name or ".wv." in name:
            out[name] = np.repeat(whole[name].reshape(-1, 2, 16), copies, axis=0).reshape(-1, 16)
    return out


def test_replicated_key_heads(tmp_path: Path) -> None:
    """Eight shards of a model with four key heads: neighbours hold the same one."""
    folder = write(tmp_path / "m", repeated(weights(), 2), 8)
    with opened(folder) as model:
        check(model, weights())
    other = repeated(weights(), 2)
    other["layers.1.attention.wk.weight"][2] += 1  # the second copy of the first head
    with opened(write(folder, other, 8)) as model:
        model.tensors["blk.1.attn_k.weight"].rows(2, 8)
        with pytest.raises(
            FormatError, match=r"consolidated\.00\.pth.*consolidated\.01\.pth.*should hold the same heads"
        ):
            model.tensors["blk.1.attn_k.weight"].rows(0, 2)


def test_any_of_the_files_opens_the_checkpoint(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", weights(), 2)
    for name in ("consolidated.00.pth", "consolidated.01.pth"):
        assert FORMAT.detect(folder / name)
        with opened(folder / name) as model:
            check(model, weights())
    shutil.move(write(tmp_path / "one", weights()) / "consolidated.00.pth", tmp_path / "one" / "llama.pth")
    with opened(tmp_path / "one" / "llama.pth") as model:
        check(model, weights())


def test_mixed_encodings_become_float32(tmp_path: Path) -> None:
    half = {name: array.astype("<f2") for name, array in weights().items()}
    folder = write(tmp_path / "m", half, 2)
    arrays = {name: cut(name, array, 1, 2, "columns") for name, array in half.items()}
    arrays["layers.0.attention.wq.weight"] = arrays["layers.0.attention.wq.weight"].astype("<f4")
    (folder / "consolidated.01.pth").write_bytes(made.zip_checkpoint(arrays | {"rope.freqs": np.ones(1, "<f4")}))
    with opened(folder) as model:
        assert model.tensors["blk.0.attn_q.weight"].encoding.name == "F32"
        assert model.tensors["blk.0.attn_k.weight"].encoding.name == "F16"
        check(model, half)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", weights(), 4)
    (folder / "consolidated.02.pth").unlink()
    assert "1 of the 4 shards are missing: consolidated.02.pth" in failure(folder, MissingFileError)
    (folder / "consolidated.03.pth").unlink()
    assert "2 of the 4 shards are missing: consolidated.02.pth, consolidated.03.pth" in failure(
        folder, MissingFileError
    )
    (folder / "consolidated.01.pth").unlink()
    message = failure(folder / "consolidated.00.pth", MissingFileError)
    assert "has 4 of 16 rows, so there are 4 shards" in message
    assert "consolidated.01.pth, consolidated.02.pth, consolidated.03.pth" in message
    shutil.move(folder / "consolidated.00.pth", folder / "part.pth")
    assert "so there are 4 shards, and this is one of them" in failure(folder / "part.pth", MissingFileError)
    assert "no consolidated.00.pth" in failure(folder, MissingFileError)


def test_a_missing_parameter_file_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", weights())
    (folder / "params.json").unlink()
    assert FORMAT.detect(folder)
    assert "params.json: no such file, and it holds the model's hyper-parameters" in failure(folder, MissingFileError)
    (folder / "config.json").write_text("{}")
    assert "Name the folder instead" in failure(folder / "consolidated.00.pth", FormatError)


def test_shards_of_different_models(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", weights(), 2)
    extra = {name: cut(name, array, 1, 2, "columns") for name, array in weights().items()}
    (folder / "consolidated.01.pth").write_bytes(made.zip_checkpoint(extra))
    assert "such as 'rope.freqs'" in failure(folder, ShapeError)
    extra |= {"rope.freqs": np.ones(1, "<f4"), "layers.0.attention.wo.weight": np.ones((16, 4), "<f4")}
    (folder / "consolidated.01.pth").write_bytes(made.zip_checkpoint(extra))
    assert "tensor layers.0.attention.wo.weight: its slices have the shapes (16, 8), (16, 4)" in failure(
        folder, ShapeError
    )


@pytest.mark.parametrize(
    ("params", "kind", "problem"),
    [
        ({"n_layers": 3}, MissingTensorError, "9 tensors .* missing .layers.2.attention_norm.weight"),
        ({"n_layers": 1}, UnmappedTensorError, "9 tensors are none of a Llama's"),
        ({"n_layers": 2000}, ModelError, "n_layers: 2000, which must be a whole number from 1 to 1024"),
        ({"dim": 32}, QconvError, "16 of 32 rows"),
        ({"dim": 8}, ShapeError, "has 16 rows in each of 1 shards, and params.json gives 8"),
        ({"dim": "16"}, ModelError, "dim: '16', which must be a whole number"),
        ({"dim": None}, ModelError, "lacks dim"),
        ({"n_heads": 3}, ModelError, "n_heads: 3, which must be a divisor of dim, 16"),
        ({"n_kv_heads": 3}, ModelError, "n_kv_heads: 3, which must be a divisor of n_heads, 8"),
        ({"n_kv_heads": 2}, ShapeError, r"attention.wk.weight: has shape 8 × 16 in 1 shards, .* params.json gives \(4, 16\)"),
        ({"norm_eps": 0}, ModelError, "norm_eps: 0, which must be a number above 0"),
        ({"norm_eps": 1e39}, ModelError, r"norm_eps: 1e\+39, which must be a number above 0"),
        ({"multiple_of": 0}, ModelError, "multiple_of: 0"),
        ({"quantization_args": {"scheme": "int8"}}, ModelError, "the weights are quantized"),
        ({"moe": {"num_experts": 8}}, ModelError, "mixture of experts"),
    ],
)  # fmt: skip
def test_parameters_of_another_model(
    tmp_path: Path, params: dict[str, Any], kind: type[QconvError], problem: str
) -> None:
    folder = write(tmp_path / "m", weights(), **params)
    with pytest.raises(kind, match=problem) as caught:
        opened(folder)
    assert caught.value.path is not None


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("layers.0.feed_forward.experts.0.w1.weight", "mixture of experts"),
        ("vision_model.vision_encoder.conv1.weight", "vision tower"),
        ("layers.0.attention.wq.lora_a.weight", "holds adapters"),
        ("anything", "n_layers may be of another model"),
    ],
)
def test_unknown_tensors(tmp_path: Path, name: str, cause: str) -> None:
    folder = write(tmp_path / "m", weights() | {name: np.ones((2, 2), "<f4")})
    message = failure(folder, UnmappedTensorError)
    assert name in message
    assert cause in message


def test_a_hugging_face_checkpoint_by_itself(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(made.zip_checkpoint({"model.norm.weight": np.ones(4, "<f4")}))
    assert "no Llama in Meta's form: layers.0.attention.wq.weight is missing" in _with_params(tmp_path)


def _with_params(folder: Path) -> str:
    (folder / "params.json").write_text(json.dumps(PARAMS))
    return failure(folder / "pytorch_model.bin", MissingTensorError)


def test_sizes_come_from_the_tensors(tmp_path: Path) -> None:
    with opened(write(tmp_path / "m", weights(), 2, vocab_size=99, multiple_of=256)) as model:
        assert model.metadata["llama.vocab_size"].value == ROWS
        assert model.metadata["llama.feed_forward_length"].value == WIDTH
        assert f"vocab_size is 99 in params.json, tok_embeddings.weight has {ROWS} rows: the rows count" in model.notes
        assert any("are 256 wide" in note for note in model.notes)


@pytest.mark.parametrize(
    ("params", "context", "theta"),
    [
        ({}, 2048, 10000.0),
        ({"norm_eps": 1e-5}, 4096, 10000.0),
        ({"rope_theta": 1e6}, 16384, 1e6),
        ({"rope_theta": 500000.0}, 8192, 500000.0),
        ({"rope_theta": 500000.0, "use_scaled_rope": True}, 131072, 500000.0),
        ({"max_seq_len": 512}, 512, 10000.0),
    ],
)
def test_context_by_generation(tmp_path: Path, params: dict[str, Any], context: int, theta: float) -> None:
    with opened(write(tmp_path / "m", weights(), **params)) as model:
        assert model.metadata["llama.context_length"].value == context
        assert model.metadata["llama.rope.freq_base"].value == theta
        assert any("context length" in note for note in model.notes) == ("max_seq_len" not in params)


@pytest.mark.parametrize(("given", "factor"), [({}, 8.0), ({"rope_scaling_factor": 32}, 32.0)])
def test_stretched_positions(tmp_path: Path, given: dict[str, Any], factor: float) -> None:
    """Frequencies whose wavelength exceeds the original context are divided, short ones kept, those between blended."""
    whole = weights(kv=32)
    params = {"head_dim": 8, "use_scaled_rope": True, "rope_theta": 500000.0} | given
    for layer in range(2):
        whole[f"layers.{layer}.attention.wq.weight"] = np.ones((64, 16), "<f4")
        whole[f"layers.{layer}.attention.wo.weight"] = np.ones((16, 64), "<f4")
    with opened(write(tmp_path / "m", whole, **params)) as model:
        table = model.tensors["rope_freqs.weight"].rows(0, 1)[0]
        expected = []
        for pair in range(4):
            frequency = 500000.0 ** (-2 * pair / 8)
            length = 2 * np.pi / frequency
            blend = (8192 / length - 1) / 3
            scaled = frequency / factor
            value = (
                frequency if length < 2048 else scaled if length > 8192 else (1 - blend) * scaled + blend * frequency
            )
            expected.append(frequency / value)
        np.testing.assert_allclose(table, expected, rtol=1e-6)
        assert table[0] == 1.0
        assert table[-1] == factor


def test_nested_parameters_and_a_folder_called_original(tmp_path: Path) -> None:
    (tmp_path / "Llama-9").mkdir()
    folder = write(tmp_path / "Llama-9" / "original", weights())
    (folder / "params.json").write_text(json.dumps({"model": PARAMS}))
    with opened(folder) as model:
        check(model, weights())
        assert model.metadata["general.name"].value == "Llama-9"


def test_without_a_tokenizer(tmp_path: Path) -> None:
    with opened(write(tmp_path / "m", weights())) as model:
        assert model.metadata["tokenizer.ggml.model"].value == "none"
        assert any("no tokenizer.model" in note for note in model.notes)


def llama_3_tokenizer(rows: int) -> bytes:
    tokens = [bytes([value]) for value in range(256)] + [b"ab", b"abc"]
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens[:rows]))


def test_llama_3_tokenizer_beside_or_above(tmp_path: Path) -> None:
    whole = weights()
    rows = 258 + 256
    whole |= {name: np.ones((rows, 16), "<f4") for name in ("tok_embeddings.weight", "output.weight")}
    folder = write(tmp_path / "m", whole, 2, "rows")
    (tmp_path / "tokenizer.model").write_bytes(llama_3_tokenizer(rows))
    with opened(folder) as model:
        metadata = {key.removeprefix("tokenizer.ggml."): field.value for key, field in model.metadata.items()}
        assert (metadata["model"], metadata["pre"]) == ("gpt2", "llama-bpe")
        assert metadata["llama.rope.freq_base"] == 500000.0
        assert metadata["add_bos_token"] is True
        ids = [metadata[f"{role}_token_id"] for role in ("bos", "eos", "eot")]
        assert ids == [258, 259, 267]
        assert model.side_files == {"tokenizer.model": tmp_path / "tokenizer.model"}
    vocabulary_only = OpenContext(CONTEXT.encodings, CONTEXT.architectures, vocabulary_only=True)
    with opened(folder, vocabulary_only) as model:
        assert not model.tensors
        assert len(model.metadata["tokenizer.ggml.tokens"].value) == rows  # type: ignore[arg-type]  # a sequence


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", weights())
    assert "Leave --as-arch out" in failure(folder, ModelError, OpenContext(ENCODINGS, CONTEXT.architectures, "qwen2"))


def test_checklist_when_opened(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", weights(), 1)
    lines = [
        f"{hashlib.md5((folder / name).read_bytes()).hexdigest()}  {name}"
        for name in ("consolidated.00.pth", "params.json")
    ]
    (folder / "checklist.chk").write_text("\n".join(lines) + "\n")
    with opened(folder) as model:
        assert not any("checklist" in note for note in model.notes)
        assert folder / "checklist.chk" in model.files
    (folder / "params.json").write_text(json.dumps(PARAMS | {"max_seq_len": 77}))
    with opened(folder) as model:
        assert "params.json is not the file that checklist.chk describes: it was edited or damaged" in model.notes
    (folder / "checklist.chk").write_text("0" * 32 + "  consolidated.01.pth\n")
    assert "checklist.chk names shards that are missing: consolidated.01.pth" in failure(folder, MissingFileError)
