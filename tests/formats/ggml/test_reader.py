"""What the reader makes of every container: names, shapes, exact weights, metadata, vocabulary, notes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import ggml_files as crafted
import numpy as np
import pytest
from ggml_files import Craft, Record, sound, vocabulary
from gguf_files import CONTEXT, texts
from numpy.typing import NDArray

from qconv.errors import FormatError, MissingFileError, MissingTensorError, ShapeError, UnmappedTensorError
from qconv.formats.base import Model
from qconv.formats.ggml import detect_ggml, open_ggml
from qconv.formats.summary import summarize

CONTAINERS = [("ggml", 0), ("ggmf", 1), ("ggjt", 1), ("ggjt", 2), ("ggjt", 3)]


def check_weights(model: Model, expected: Mapping[str, NDArray[np.float32]]) -> None:
    """Every tensor, in file order, whole and in the slabs that a conversion asks for."""
    assert list(model.tensors) == [crafted.GGUF_NAMES[name] for name in expected]
    for name, wanted in expected.items():
        tensor = model.tensors[crafted.GGUF_NAMES[name]]
        assert tensor.shape == wanted.shape
        rows = wanted.reshape(tensor.row_count, -1)
        assert np.array_equal(tensor.rows(0, tensor.row_count), rows), name
        for start, stop in ((0, 0), (0, 1), (tensor.row_count // 3, tensor.row_count)):
            assert np.array_equal(tensor.rows(start, stop), rows[start:stop]), (name, start, stop)
        with pytest.raises(IndexError):
            tensor.read(0, tensor.row_count + 1)


@pytest.mark.parametrize(("container", "version"), CONTAINERS)
def test_float_files(tmp_path: Path, container: str, version: int) -> None:
    path = sound(container, version).write(tmp_path / "m.bin")
    assert detect_ggml(path)
    with open_ggml(path, CONTEXT) as model:
        check_weights(model, crafted.weights())
        assert model.architecture == "llama"
        assert model.container["container"] == container
        assert model.container.get("version", 0) == version
        assert model.container["stored_types"] == "F32"
        assert model.files == (path,)
        metadata = {key: field.value for key, field in model.metadata.items()}
    assert metadata["llama.embedding_length"] == 64
    assert metadata["llama.feed_forward_length"] == 192
    assert metadata["llama.block_count"] == 1
    assert metadata["llama.attention.head_count"] == metadata["llama.attention.head_count_kv"] == 4
    assert metadata["llama.rope.dimension_count"] == 16
    assert metadata["llama.rope.freq_base"] == 10000
    assert metadata["llama.context_length"] == 2048
    assert metadata["llama.vocab_size"] == 268
    assert metadata["llama.attention.layer_norm_rms_epsilon"] == 5e-6
    assert metadata["general.file_type"] == 0


def test_half_precision(tmp_path: Path) -> None:
    with open_ggml(sound(number=1, pack=crafted.halves).write(tmp_path / "m.bin"), CONTEXT) as model:
        assert {tensor.encoding.name for tensor in model.tensors.values()} == {"F16", "F32"}
        rounded = {
            name: values.astype(np.float16).astype(np.float32) if values.ndim > 1 else values
            for name, values in crafted.weights().items()
        }
        check_weights(model, rounded)


def quantized(
    kind: str, order: str, planar: bool = False
) -> tuple[tuple[int, crafted.Packer], dict[str, NDArray[np.float32]]]:
    """Return type number with packer, and the decoded weights."""
    number = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 8}[kind]

    def pack(rows: NDArray[np.float32]) -> tuple[bytes, NDArray[np.float32]]:
        if kind == "Q8_0":
            return crafted.q8_0_rows(rows)
        return (crafted.q4_0_rows if kind == "Q4_0" else crafted.q4_1_rows)(rows, order, planar)

    decoded = {name: values if values.ndim == 1 else pack(values)[1] for name, values in crafted.weights().items()}
    return (number, lambda rows: pack(rows)[0]), decoded


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize(("container", "version"), CONTAINERS[:4])
def test_float32_scales_stay_exact(tmp_path: Path, container: str, version: int, kind: str) -> None:
    (number, pack), decoded = quantized(kind, "split" if version == 2 else "interleaved")
    path = sound(container, version, number, pack, file_type=number).write(tmp_path / "m.bin")
    with open_ggml(path, CONTEXT) as model:
        check_weights(model, decoded)
        assert model.tensors["output.weight"].encoding.name == "F32"
        assert model.container["stored_types"] == f"{kind} with float32 scales + F32"
        assert any("already quantized" in note for note in model.notes)
        assert any(f"no type of GGUF holds the values of {kind} (float32 scales)" in note for note in model.notes)
        assert model.metadata["llama.attention.layer_norm_rms_epsilon"].value == 1e-6


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_planar_rows_are_told_by_their_scales(tmp_path: Path, kind: str) -> None:
    (number, pack), decoded = quantized(kind, "interleaved", planar=True)
    path = sound("ggml", 0, number, pack, file_type=number).write(tmp_path / "m.bin")
    with open_ggml(path, CONTEXT) as model:
        assert model.container["stored_types"] == f"{kind} with float32 scales, planar rows + F32"
        check_weights(model, decoded)


def test_each_type_has_rows_of_its_own_kind(tmp_path: Path) -> None:
    """Between 2023-03-11 and 03-17 Q4_0 was interleaved and Q4_1 still planar."""
    zero, decoded_zero = quantized("Q4_0", "interleaved")
    one, decoded_one = quantized("Q4_1", "interleaved", planar=True)
    kinds = {name: one if "feed_forward" in name else zero for name in crafted.SHAPES}
    craft = Craft("ggml", records=crafted.records(crafted.weights(), kinds))
    with open_ggml(craft.write(tmp_path / "m.bin"), CONTEXT) as model:
        check_weights(model, {n: (decoded_one if "feed_forward" in n else decoded_zero)[n] for n in crafted.SHAPES})


def test_the_day_on_which_q8_0_had_another_number(tmp_path: Path) -> None:
    (_, pack), decoded = quantized("Q8_0", "split")
    path = sound("ggjt", 1, 6, pack, file_type=7).write(tmp_path / "m.bin")
    with open_ggml(path, CONTEXT) as model:
        check_weights(model, decoded)
        assert model.container["stored_types"] == "Q8_0 with float32 scales + F32"


def test_super_blocks_of_64_are_told_by_the_files_end(tmp_path: Path) -> None:
    """Rows of 64 fit no other super-block; with 256 columns only the end of the file tells, as the fixtures show."""

    def pack(rows: NDArray[np.float32]) -> bytes:
        return np.random.default_rng(1).integers(0, 60, (rows.size // 64, 54), np.uint8).tobytes()

    wide = {name: values for name, values in crafted.weights().items() if "w2" not in name}
    craft = sound()
    records = [*crafted.records(wide, (14, pack))]
    records += crafted.records({n: v for n, v in crafted.weights().items() if "w2" in n}, (0, crafted.floats))
    with open_ggml(replace(craft, records=records).write(tmp_path / "m.bin"), CONTEXT) as model:
        assert model.tensors["output.weight"].encoding.name == "F32"
        assert "Q6_K with super-blocks of 64" in str(model.container["stored_types"])


@pytest.mark.parametrize(("container", "planar"), [("ggml", False), ("ggml", True), ("ggmf", False)])
def test_parts_are_joined(tmp_path: Path, container: str, planar: bool) -> None:
    """Each part's rows are decoded before columns are joined: planar rows of halves are no halves of planar rows."""
    (number, pack), _ = quantized("Q4_0", "interleaved", planar)
    craft = sound(container, 1, number, pack, file_type=2)
    paths = [tmp_path / "m.bin", tmp_path / "m.bin.1"]
    slices = [crafted.part_slices(crafted.weights(), part, 2) for part in range(2)]
    for path, piece in zip(paths, slices, strict=True):
        replace(craft, records=crafted.records(piece, (number, pack))).write(path)
    expected = {}
    for name, values in crafted.weights().items():
        halves = [crafted.q4_0_rows(piece[name], planar=planar)[1] for piece in slices] if values.ndim > 1 else []
        axis = 1 if name.endswith(crafted.COLUMN_SPLIT) else 0
        expected[name] = np.concatenate(halves, axis) if halves else values
    with open_ggml(paths[0], CONTEXT) as model:
        check_weights(model, expected)
        assert model.files == tuple(paths)
        assert model.container["parts"] == 2
    with pytest.raises(FormatError, match=r"m\.bin\.1: this is part 2 of a model in 2 parts\. Open m\.bin instead"):
        open_ggml(paths[1], CONTEXT)
    altered = replace(craft, tokens=[*vocabulary()[:-1], (b" y", -8.0)])
    replace(altered, records=crafted.records(slices[1], (number, pack))).write(paths[1])
    with pytest.raises(
        FormatError, match=r"m\.bin\.1: this is no part of m\.bin: they do not have the same vocabulary"
    ):
        open_ggml(paths[0], CONTEXT)
    paths[1].unlink()
    with pytest.raises(MissingFileError, match=r"one of 2 parts of a model; missing: m\.bin\.1"):
        open_ggml(paths[0], CONTEXT)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("pack", [crafted.floats, crafted.halves])
@pytest.mark.parametrize(("container", "version"), [("ggml", 0), ("ggmf", 1), ("ggjt", 1), ("ggjt", 3)])
def test_any_number_of_parts(tmp_path: Path, container: str, version: int, pack: crafted.Packer, parts: int) -> None:
    number = int(pack is crafted.halves)
    craft = sound(container, version, number, pack, file_type=number)
    for part in range(parts):
        slices = crafted.part_slices(crafted.weights(), part, parts)
        path = tmp_path / ("m.bin" if part == 0 else f"m.bin.{part}")
        replace(craft, records=crafted.records(slices, (number, pack))).write(path)
    half = np.float16 if number else np.float32
    expected = {n: w.astype(half).astype(np.float32) if w.ndim > 1 else w for n, w in crafted.weights().items()}
    with open_ggml(tmp_path / "m.bin", CONTEXT) as model:
        check_weights(model, expected)
        assert model.container["parts"] == parts
        tensor = model.tensors["blk.0.ffn_gate.weight"]
        assert np.array_equal(tensor.rows(37, 151), expected["layers.0.feed_forward.w1.weight"][37:151])


def test_every_missing_part_is_named(tmp_path: Path) -> None:
    pieces = crafted.part_slices(crafted.weights(), 2, 4)
    craft = replace(sound("ggmf", 1), records=crafted.records(pieces, (0, crafted.floats)))
    craft.write(tmp_path / "llama.bin.2")
    with pytest.raises(MissingFileError, match=r"missing: llama\.bin, llama\.bin\.1, llama\.bin\.3\. Put all parts"):
        open_ggml(tmp_path / "llama.bin.2", CONTEXT)


def test_shared_heads(tmp_path: Path) -> None:
    values = {n: v[:32] if ".wk." in n or ".wv." in n else v for n, v in crafted.weights().items()}
    craft = replace(sound(), records=crafted.records(values, (0, crafted.floats)))
    with open_ggml(craft.write(tmp_path / "m.bin"), CONTEXT) as model:
        check_weights(model, values)
        assert model.metadata["llama.attention.head_count_kv"].value == 2
        assert model.metadata["llama.attention.layer_norm_rms_epsilon"].value == 1e-5
        assert model.metadata["llama.context_length"].value == 4096


@pytest.mark.parametrize(
    ("name", "base", "context", "epsilon", "family"),
    [
        ("codellama-7b.ggmlv3.F16.bin", 1e6, 16384, 1e-5, "those of Code Llama"),
        ("llama-2-13b-chat.ggmlv3.bin", 1e4, 4096, 1e-5, "those of Llama 2"),
        ("llama2-7b.bin", 1e4, 4096, 1e-5, "those of Llama 2"),
        ("Llama-1-7b.bin", 1e4, 2048, 1e-6, "those of Llama 1"),
        ("llama-23b.bin", 1e4, 2048, 5e-6, "nothing tells"),
        ("vicuna.bin", 1e4, 2048, 5e-6, "nothing tells"),
    ],
)
def test_what_only_the_name_tells(
    tmp_path: Path, name: str, base: float, context: int, epsilon: float, family: str
) -> None:
    with open_ggml(sound().write(tmp_path / name), CONTEXT) as model:
        assert model.metadata["llama.rope.freq_base"].value == base
        assert model.metadata["llama.context_length"].value == context
        assert model.metadata["llama.attention.layer_norm_rms_epsilon"].value == epsilon
        assert any("does not store these" in note and family in note for note in model.notes)


def test_vocabulary(tmp_path: Path) -> None:
    tokens = [*vocabulary()[:264], (b"", 0.0), (b"<|im end|>", -1000.0), (b" \xff", -1000.0)]
    craft = replace(sound(), tokens=tokens, numbers=(len(tokens), 0, 0, 1, 0, 0, 0), records=())
    with open_ggml(craft.write(tmp_path / "vocab.bin"), CONTEXT) as model:
        assert not model.tensors
        found = texts(model, "tokenizer.ggml.tokens")
        assert found[:4] == ("<unk>", "<s>", "</s>", "<0x00>")
        assert found[258:264] == ("<0xFF>", "▁", "e", "t", "▁t", "he")
        assert found[264:] == ("[EMPTY_264]", "<|im end|>", " \udcff")
        assert len(found) == 267
        assert found[-1] == " \udcff"
        types = model.metadata["tokenizer.ggml.token_type"].value
        assert isinstance(types, np.ndarray)
        assert types.tolist() == [2, 3, 3, *[6] * 256, 1, 1, 1, 1, 1, 3, 4, 4]
        scores = model.metadata["tokenizer.ggml.scores"].value
        assert isinstance(scores, np.ndarray)
        assert scores.tolist() == [score for _, score in tokens]
        special = {role: (token.id, token.text) for role, token in summarize(model).tokenizer.special.items()}  # type: ignore[union-attr]  # it has one
        assert special == {"bos": (1, "<s>"), "eos": (2, "</s>"), "unknown": (0, "<unk>")}


def test_the_piece_ranked_1000th_is_not_an_added_token(tmp_path: Path) -> None:
    tokens = vocabulary([f" {i}".encode() for i in range(1001)])
    for added in (0, 2):
        whole = [*tokens, *[(b"x y", -1000.0)] * added]
        craft = Craft(numbers=(len(whole), 0, 0, 1, 0, 0, 0), tokens=whole)
        with open_ggml(craft.write(tmp_path / "vocab.bin"), CONTEXT) as model:
            types = model.metadata["tokenizer.ggml.token_type"].value
            assert isinstance(types, np.ndarray)
            assert types[1257:].tolist() == [1] * 3 + [4] * added
            assert texts(model, "tokenizer.ggml.tokens")[1259] == "▁1000"


def test_one_byte_pieces_are_no_bytes(tmp_path: Path) -> None:
    """A vocabulary of characters has no byte tokens, though its pieces have one byte each."""
    tokens = [*vocabulary()[:3], *[(bytes([letter]), -float(i)) for i, letter in enumerate(b" eatoinshr")]]
    with open_ggml(Craft(numbers=(13, 0, 0, 1, 0, 0, 0), tokens=tokens).write(tmp_path / "v.bin"), CONTEXT) as model:
        assert texts(model, "tokenizer.ggml.tokens")[3:5] == ("▁", "e")


def test_first_converters_lost_bytes_and_scores(tmp_path: Path) -> None:
    """Day-one files hold a replacement character where a byte was no UTF-8, and no scores."""
    tokens = [
        (b"\xef\xbf\xbd" if text[:1] > b"\x7f" and i < 259 and i else text, s)
        for i, (text, s) in enumerate(vocabulary())
    ]
    with open_ggml(replace(sound("ggml", 0), tokens=tokens).write(tmp_path / "m.bin"), CONTEXT) as model:
        assert texts(model, "tokenizer.ggml.tokens")[130:133] == ("<0x7F>", "<0x80>", "<0x81>")
        scores = model.metadata["tokenizer.ggml.scores"].value
        assert isinstance(scores, np.ndarray)
        assert scores.tolist() == [0.0] * 259 + [0, -1, -2, -3, -4, -5, -6, -7, -8]
        assert any("no token scores" in note for note in model.notes)


def test_a_vocabulary_that_lacks_its_last_entry(tmp_path: Path) -> None:
    """GPT4All's files announce one token more than they hold."""
    for lacking in (1, 2):
        craft = replace(sound("ggmf", 1), tokens=vocabulary()[:-lacking])
        with open_ggml(craft.write(tmp_path / "m.bin"), CONTEXT) as model:
            check_weights(model, crafted.weights())
            assert texts(model, "tokenizer.ggml.tokens")[-lacking:] == ("<pad>", "<pad1>")[:lacking]
            assert any(f"has {268 - lacking} of 268 tokens" in note for note in model.notes)


def test_rotary_tables_are_left_out(tmp_path: Path) -> None:
    table = Record("rope.freqs", (8,), 0, bytes(32))
    craft = sound()
    with open_ggml(replace(craft, records=[*craft.records, table]).write(tmp_path / "m.bin"), CONTEXT) as model:
        check_weights(model, crafted.weights())
        assert any("1 tables of rotary frequencies" in note for note in model.notes)


def test_vocabulary_only_reads_no_tensors(tmp_path: Path) -> None:
    craft = replace(sound(), records=[], tail=b"no tensors")
    with open_ggml(craft.write(tmp_path / "m.bin"), replace(CONTEXT, vocabulary_only=True)) as model:
        assert not model.tensors
        assert len(texts(model, "tokenizer.ggml.tokens")) == 268


def test_models_that_are_no_llama(tmp_path: Path) -> None:
    craft, path = sound(), tmp_path / "m.bin"
    bloom = Record("layers.0.attention.query_key_value.weight", (64, 192), 0, bytes(64 * 192 * 4))
    replace(craft, records=[*craft.records, bloom]).write(path)
    with pytest.raises(UnmappedTensorError, match="looks like BLOOM"):
        open_ggml(path, CONTEXT)
    replace(craft, records=craft.records[:-1]).write(path)
    with pytest.raises(MissingTensorError, match=r"layers\.0\.ffn_norm\.weight"):
        open_ggml(path, CONTEXT)
    changed = [
        r if r.name != "output.weight" else Record("output.weight", (64, 4), 0, bytes(1024)) for r in craft.records
    ]
    replace(craft, records=changed).write(path)
    with pytest.raises(ShapeError, match=r"output\.weight: its shape is \(4, 64\), but .* \(268, 64\)"):
        open_ggml(path, CONTEXT)


def test_inspect_shows_the_container(tmp_path: Path) -> None:
    path = sound("ggjt", 2).write(tmp_path / "m.bin")
    with open_ggml(path, CONTEXT) as model:
        summary = summarize(model)
    assert summary.format == "ggml"
    assert dict(summary.container) == {"container": "ggjt", "version": 2, "parts": 1, "stored_types": "F32"}
    assert summary.file_type == "F32"
