"""ggjt version 3: what is written is read back the same, the bytes are those of hand-made files, and what cannot be held is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import ggml_files as crafted
import numpy as np
import pytest
from ggml_files import Craft, sound, vocabulary
from gguf_files import CONTEXT, write_layout
from numpy.typing import NDArray
from qconv_encodings import ENCODINGS

from qconv.errors import OutputError, UsageError
from qconv.formats.base import Model, OutputTensor, Tensor, WriteOptions
from qconv.formats.ggml import FORMAT, lay_out_ggjt, open_ggml, prepare_for_ggjt
from qconv.formats.metadata import Field, ValueType, float32, numbers, string, strings, uint32
from qconv.formats.summary import plain_value

PLAIN = WriteOptions()


def output_tensors(model: Model) -> list[OutputTensor]:
    return [OutputTensor(t.name, t.shape, t.encoding) for t in model.tensors.values()]


def rewrite(model: Model, target: Path, options: WriteOptions = PLAIN) -> Path:
    data = {t.name: t.read(0, t.row_count).tobytes() for t in model.tensors.values()}
    (path,) = write_layout(lay_out_ggjt(target, model.metadata, output_tensors(model), options), data)
    return path


def metadata_of(**changes: Field | None) -> dict[str, Field]:
    """Metadata of a small Llama; ``changes`` by the last part of a key, None removes it."""
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        "e",
        "t",
        "▁t",
        "he",
        "▁the",
        "a",
        "o",
        "▁a",
    ]
    types = [2, 3, 3, *[6] * 256, *[1] * 9]
    scores = [0.0] * 259 + [-float(i) for i in range(9)]
    found: dict[str, Field | None] = {
        "general.architecture": string("llama"),
        "llama.block_count": uint32(1),
        "llama.attention.head_count": uint32(4),
        "llama.attention.head_count_kv": uint32(4),
        "llama.rope.dimension_count": uint32(16),
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.tokens": strings(tokens),
        "tokenizer.ggml.scores": numbers(scores, ValueType.FLOAT32),
        "tokenizer.ggml.token_type": numbers(types, ValueType.INT32),
        "tokenizer.ggml.bos_token_id": uint32(1),
        "tokenizer.ggml.eos_token_id": uint32(2),
        "tokenizer.ggml.unknown_token_id": uint32(0),
    }
    for ending, field in changes.items():
        (key,) = [key for key in found if key.endswith(f".{ending}")] or [f"llama.{ending.replace('__', '.')}"]
        found[key] = field
    return {key: field for key, field in found.items() if field is not None}


def tensors_of(
    types: Mapping[str, str] | None = None, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> list[OutputTensor]:
    chosen = dict(crafted.SHAPES) | dict(shapes or {})
    return [
        OutputTensor(crafted.GGUF_NAMES[name], shape, ENCODINGS[(types or {}).get(name, "F32")])
        for name, shape in chosen.items()
    ]


lay_out = partial(lay_out_ggjt, Path("m.bin"))


@pytest.mark.parametrize(("number", "pack"), [(0, crafted.floats), (1, crafted.halves)])
def test_float_files_come_back_byte_for_byte(tmp_path: Path, number: int, pack: crafted.Packer) -> None:
    """The hand-made file has the order, padding and numbers of the old converters."""
    tokens = [*vocabulary()[:-2], (b"", 0.0), (b"<|x y|>", -1000.0)]
    source = replace(sound(number=number, pack=pack, file_type=number), tokens=tokens).write(tmp_path / "a.bin")
    with open_ggml(source, CONTEXT) as model:
        again = rewrite(model, tmp_path / "b.bin")
    assert again.read_bytes() == source.read_bytes()


@pytest.mark.parametrize(("kind", "number"), [("Q4_0", 2), ("Q4_1", 3), ("Q5_0", 6), ("Q5_1", 7), ("Q8_0", 8)])
def test_quantized_tensors_come_back(tmp_path: Path, kind: str, number: int) -> None:
    """Vectors are F32; matrices keep their blocks, at offsets that are multiples of 32."""
    random = np.random.default_rng(number)
    names = {name for name, shape in crafted.SHAPES.items() if len(shape) > 1}
    tensors = tensors_of(dict.fromkeys(names, kind))
    data = {tensor.name: random.integers(0, 50, tensor.nbytes, np.uint8).tobytes() for tensor in tensors}
    layout = lay_out_ggjt(tmp_path / "m.bin", metadata_of(), tensors, PLAIN)
    write_layout(layout, data)
    assert all(placement.offset % 32 == 0 for placement in layout.parts[0].placements)
    assert FORMAT.detect(tmp_path / "m.bin")
    with open_ggml(tmp_path / "m.bin", CONTEXT) as model:
        assert {t.name: t.read(0, t.row_count).tobytes() for t in model.tensors.values()} == data
        assert {t.name: (t.shape, t.encoding) for t in model.tensors.values()} == {
            t.name: (t.shape, t.encoding) for t in tensors
        }
        assert model.metadata["general.file_type"].value == {2: 2, 3: 3, 6: 8, 7: 9, 8: 7}[number]


def test_the_vocabulary_comes_back(tmp_path: Path) -> None:
    wanted = metadata_of()
    layout = lay_out_ggjt(tmp_path / "m.bin", wanted, tensors_of(), PLAIN)
    write_layout(layout, {tensor.name: bytes(tensor.nbytes) for tensor in tensors_of()})
    with open_ggml(tmp_path / "m.bin", CONTEXT) as model:
        for key in ("tokens", "scores", "token_type"):
            assert plain_value(model.metadata[f"tokenizer.ggml.{key}"]) == plain_value(wanted[f"tokenizer.ggml.{key}"])


def test_a_vocabulary_alone(tmp_path: Path) -> None:
    write_layout(lay_out_ggjt(tmp_path / "v.bin", metadata_of(), [], PLAIN), {})
    assert (tmp_path / "v.bin").read_bytes() == Craft(numbers=(268, 0, 0, 1, 0, 0, 0)).build()


def feed_forward_shapes(length: int) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(length if extent == crafted.FEED_FORWARD else extent for extent in shape)
        for name, shape in crafted.SHAPES.items()
        if "feed_forward" in name
    }


@pytest.mark.parametrize(
    ("feed_forward", "multiple"), [(256, 256), (512, 512), (192, 192), (172, 172), (170, 170), (1000, 1000)]
)
def test_readers_compute_the_feed_forward_length(feed_forward: int, multiple: int) -> None:
    """They round two thirds of four times the columns up to a multiple of what the header says."""
    tensors = tensors_of(shapes=feed_forward_shapes(feed_forward))
    header = lay_out(metadata_of(), tensors, PLAIN).parts[0].header({})
    stored = int.from_bytes(header[16:20], "little")
    assert stored == multiple
    assert (2 * (4 * 64) // 3 + stored - 1) // stored * stored == feed_forward


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": string("qwen2")}, "architecture llama, not qwen2"),
        ({"model": string("gpt2")}, "the model's tokenizer is gpt2"),
        ({"scores": None}, "vocabularies with scores"),
        ({"bos_token_id": uint32(7)}, "take token 1 for bos; in this model it is token 7"),
        ({"rope__freq_base": float32(500000.0)}, "rotary base is 500000; ggjt has no room"),
        ({"rope__scaling__type": string("linear")}, "stretches its rotary positions"),
        ({"rope__scale_linear": float32(2.0)}, "stretches its rotary positions"),
        ({"expert_count": uint32(8)}, "llama.expert_count, which ggjt cannot say"),
        ({"attention__sliding_window": uint32(4096)}, "sliding_window, which ggjt cannot say"),
        ({"head_count": uint32(7)}, "7 heads .* do not share 64 columns evenly"),
        ({"dimension_count": uint32(8)}, "4 heads with 8 rotary columns"),
        ({"tokens": strings(["a"] * 267)}, "267 tokens have 268 scores"),
        (
            {
                "tokens": strings(["<unk>", "<s>", "</s>", "a", "<0x00>"]),
                "scores": numbers([0.0] * 5, ValueType.FLOAT32),
                "token_type": numbers([2, 3, 3, 1, 6], ValueType.INT32),
            },
            "token 4 is the byte <0x00>; ggjt keeps bytes in order from token 3",
        ),
    ],
)
def test_metadata_that_readers_would_get_wrong(changes: dict[str, Field | None], said: str) -> None:
    with pytest.raises(OutputError, match=said):
        lay_out(metadata_of(**changes), tensors_of(), PLAIN)


def test_tensors_without_a_place() -> None:
    tensors = tensors_of()
    cases: list[tuple[list[OutputTensor], str]] = [
        ([*tensors, OutputTensor("blk.0.attn_q.bias", (64,), ENCODINGS["F32"])], r"attn_q\.bias: ggjt has no place"),
        ([*tensors, OutputTensor("rope_freqs.weight", (8,), ENCODINGS["F32"])], "rope_freqs.*no place"),
        ([*tensors, OutputTensor("blk.00.attn_q.weight", (64, 64), ENCODINGS["F32"])], "no place"),
        ([*tensors, tensors[0]], "two tensors would have this name"),
        ([t for t in tensors if t.name != "output.weight"], r"output\.weight: ggjt needs this tensor"),
        (tensors_of({"output.weight": "BF16"}), r"output\.weight: ggjt cannot hold it as BF16.*Choose a type"),
        (tensors_of({"output.weight": "IQ4_NL"}), "cannot hold it as IQ4_NL"),
        (tensors_of({"norm.weight": "F16"}), "cannot hold a vector as F16"),
        (tensors_of(shapes={"output.weight": (8, 64)}), r"its shape is \(8, 64\), not \(268, 64\)"),
        (tensors_of(shapes=feed_forward_shapes(128)), "feed-forward length 128 is below 170"),
        (
            tensors_of(shapes={f"layers.0.attention.w{x}.weight": (32, 64) for x in "kv"}),
            "2 query heads share a key and value head.*Repeat the heads",
        ),
    ]
    for wrong, said in cases:
        with pytest.raises(OutputError, match=said):
            lay_out(metadata_of(), wrong, PLAIN)


@pytest.mark.parametrize(
    "options",
    [
        WriteOptions(split_max_size=1 << 20),
        WriteOptions(split_max_tensors=3),
        WriteOptions(metadata_only_first=True),
        WriteOptions(part_of={"output.weight": 1}),
        WriteOptions(alignment=64),
    ],
)
def test_options_that_ggjt_does_not_have(options: WriteOptions) -> None:
    with pytest.raises(UsageError, match="ggjt"):
        lay_out(metadata_of(), tensors_of(), options)
    lay_out(metadata_of(), tensors_of(), WriteOptions(alignment=32, part_of={"output.weight": 0}))


def test_llama_2_70b_has_its_place() -> None:
    """The one model with shared heads whose readers know: 80 layers, 8 of 64 heads, and a feed-forward length 1.3 times as wide."""
    shapes = {"wq": (8192, 8192), "wk": (1024, 8192), "wv": (1024, 8192), "wo": (8192, 8192)}
    widths = {"w1": (28672, 8192), "w2": (8192, 28672), "w3": (28672, 8192)}
    found = []
    for name, shape in crafted.SHAPES.items():
        short = name.split(".")[-2]
        shape = (shapes | widths).get(short, (268, 8192) if len(shape) > 1 else (8192,))
        kind = ENCODINGS["F16" if len(shape) > 1 else "F32"]
        layers = range(80) if name.startswith("layers") else range(1)
        found += [OutputTensor(crafted.GGUF_NAMES[name].replace("blk.0", f"blk.{i}"), shape, kind) for i in layers]
    metadata = metadata_of(
        head_count=uint32(64), head_count_kv=uint32(8), block_count=uint32(80), dimension_count=uint32(128)
    )
    header = lay_out(metadata, found, PLAIN).parts[0].header({})
    numbers = np.frombuffer(header, "<u4", 7, 8).tolist()
    assert numbers == [268, 8192, 28672, 64, 80, 128, 1]


def rows_of(values: NDArray[np.uint8], start: int, stop: int) -> NDArray[np.uint8]:
    return values[start:stop]


def model_with_shared_heads() -> Model:
    random = np.random.default_rng(2)
    tensors: dict[str, Tensor] = {}
    for output in tensors_of(shapes={f"layers.0.attention.w{x}.weight": (32, 64) for x in "kv"}):
        if output.name != "output.weight":
            width = 4 * output.shape[-1]
            values = random.integers(0, 99, (output.nbytes // width, width), np.uint8)
            tensors[output.name] = Tensor(output.name, output.shape, output.encoding, partial(rows_of, values))
    return Model(Path("m"), "test", metadata_of(head_count_kv=uint32(2)), tensors)


def test_shared_heads_and_outputs_are_repeated(tmp_path: Path) -> None:
    model = model_with_shared_heads()
    with pytest.raises(OutputError):
        rewrite(model, tmp_path / "m.bin")
    prepared = prepare_for_ggjt(model)
    path = rewrite(prepared, tmp_path / "m.bin")
    assert len(prepared.notes) == 2
    with open_ggml(path, CONTEXT) as again:
        assert again.metadata["llama.attention.head_count_kv"].value == 4
        for name, tensor in again.tensors.items():
            source = model.tensors["token_embd.weight" if name == "output.weight" else name]
            rows = source.read(0, source.row_count)
            if "attn_k" in name or "attn_v" in name:
                rows = np.repeat(rows.reshape(2, 16, -1), 2, axis=0).reshape(64, -1)
                middle = prepared.tensors[name].read(10, 37)
                assert np.array_equal(middle, rows[10:37])
                assert prepared.tensors[name].read(5, 5).shape == (0, rows.shape[1])
            assert np.array_equal(tensor.read(0, tensor.row_count), rows), name


def test_what_fits_is_left_alone() -> None:
    model = model_with_shared_heads()
    other = replace(model, metadata={**model.metadata, "general.architecture": string("qwen2")})
    assert prepare_for_ggjt(other) is other
    prepared = prepare_for_ggjt(model)
    assert prepare_for_ggjt(prepared).notes == prepared.notes
