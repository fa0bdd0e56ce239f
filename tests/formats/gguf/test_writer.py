"""What the writer lays out, gguf's reader finds: the same metadata and tensor bytes, at any alignment, in one file or in parts."""

from __future__ import annotations

import string as letters
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import gguf
import gguf_files as crafted
import numpy as np
import pytest
from gguf_files import CONTEXT, Craft, array, scalar, texts, write_layout
from hypothesis import given, settings
from hypothesis import strategies as st
from qconv_encodings import ENCODINGS

from qconv.errors import OutputError, UsageError
from qconv.formats.base import OutputTensor, WriteOptions
from qconv.formats.gguf import lay_out_gguf, open_gguf
from qconv.formats.metadata import Field, ValueType, boolean, float32, int32, numbers, string, strings, uint32
from qconv.quantizers.base import Encoding

METADATA: dict[str, Field] = {
    "general.architecture": string("llama"),
    "general.name": string("Grüße 世界"),
    "empty": string(""),
    "llama.block_count": uint32(1),
    "x.i32": int32(-7),
    "x.f32": float32(0.1),
    "x.yes": boolean(True),
    "x.no": boolean(False),
    "x.u8": Field(ValueType.UINT8, 255),
    "x.i8": Field(ValueType.INT8, -128),
    "x.u16": Field(ValueType.UINT16, 65535),
    "x.i16": Field(ValueType.INT16, -32768),
    "x.u64": Field(ValueType.UINT64, 2**64 - 1),
    "x.i64": Field(ValueType.INT64, -(2**63)),
    "x.f64": Field(ValueType.FLOAT64, 0.1),
    "tokenizer.ggml.tokens": strings(["", "a", "Ġworld", "日本"]),
    "tokenizer.ggml.scores": numbers([0.0, -1.0, -2.0, -3.5], ValueType.FLOAT32),
    "tokenizer.ggml.token_type": numbers([1, 1, 1, 3], ValueType.INT32),
    **{
        f"y.{kind.name}": numbers([0, 1, 1], kind)
        for kind in ValueType
        if kind not in (ValueType.STRING, ValueType.ARRAY)
    },
}
SHAPES: dict[str, tuple[tuple[int, ...], str]] = {
    "token_embd.weight": ((4, 32), "F32"),
    "blk.0.attn_norm.weight": ((7,), "F32"),
    "blk.0.ffn_gate_exps.weight": ((2, 3, 32), "Q8_0"),
    "blk.0.attn_q.weight": ((3, 256), "Q4_K"),
    "output.weight": ((4, 33), "BF16"),
}


def outputs() -> tuple[list[OutputTensor], dict[str, bytes]]:
    """The tensors of SHAPES and random bytes for each."""
    tensors = [OutputTensor(name, shape, ENCODINGS[kind]) for name, (shape, kind) in SHAPES.items()]
    generator = np.random.default_rng(3)
    return tensors, {tensor.name: generator.bytes(tensor.nbytes) for tensor in tensors}


def check_with_gguf(path: Path, metadata: dict[str, Field], data: dict[str, bytes]) -> gguf.GGUFReader:
    """Compare what gguf reads with what was written; returns its reader."""
    reader = gguf.GGUFReader(path)
    for key, field in metadata.items():
        found = reader.fields[key]
        kinds = [int(field.type)] + ([] if field.element is None else [int(field.element)])
        value = field.value
        if isinstance(value, str | bool | int | float):
            assert [int(kind) for kind in found.types] == kinds, key
            assert found.contents() == (np.float32(value) if field.type is ValueType.FLOAT32 else value), key
        else:
            # gguf tells an array's element type only where there are elements.
            assert [int(kind) for kind in found.types] == (kinds if len(value) else kinds[:1]), key
            assert list(found.contents()) == list(value), key
    assert [tensor.name for tensor in reader.tensors] == list(data)
    for tensor in reader.tensors:
        shape, kind = SHAPES[tensor.name]
        assert tuple(reversed(tensor.shape.tolist())) == shape
        assert tensor.tensor_type.name == kind
        assert tensor.data.tobytes() == data[tensor.name]
        assert (tensor.data_offset - reader.data_offset) % reader.alignment == 0
    return reader


@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.parametrize("alignment", [None, 8, 32, 64, 4096, 65536])
def test_gguf_reads_the_same(tmp_path: Path, alignment: int | None, digests: bool) -> None:
    tensors, data = outputs()
    path = tmp_path / "m.gguf"
    layout = lay_out_gguf(path, METADATA, tensors, WriteOptions(alignment=alignment, digests=digests))
    assert write_layout(layout, data) == [path]
    reader = check_with_gguf(path, METADATA, data)
    assert reader.alignment == (alignment or 32)
    assert ("general.alignment" in reader.fields) == (alignment not in (None, 32))
    assert path.stat().st_size % reader.alignment == 0
    assert layout.size == path.stat().st_size
    assert ("qconv.digest.header" in reader.fields) == digests


def test_the_digests_are_those_of_the_bytes(tmp_path: Path) -> None:
    tensors, data = outputs()
    path = tmp_path / "m.gguf"
    write_layout(lay_out_gguf(path, METADATA, tensors, WriteOptions()), data)
    reader = gguf.GGUFReader(path)
    assert reader.fields["qconv.digest.algorithm"].contents() == "sha256"
    assert reader.fields["qconv.digest.tensors"].contents() == [sha256(raw).hexdigest() for raw in data.values()]
    own = reader.fields["qconv.digest.header"].contents()
    header = path.read_bytes()[: reader.data_offset]
    assert header.count(own.encode()) == 1
    assert sha256(header.replace(own.encode(), b"0" * 64)).hexdigest() == own


def test_own_reader_reads_the_same(tmp_path: Path) -> None:
    tensors, data = outputs()
    path = tmp_path / "m.gguf"
    write_layout(lay_out_gguf(path, METADATA, tensors, WriteOptions(alignment=128)), data)
    with open_gguf(path, CONTEXT) as model:
        again = lay_out_gguf(path, model.metadata, tensors, WriteOptions())
        digests = {name: sha256(raw).hexdigest() for name, raw in data.items()}
        assert again.parts[0].header(digests) == path.read_bytes()[: len(again.parts[0].header(digests))]
        assert [name for name in model.metadata if name in METADATA] == list(METADATA)


def test_splits_by_number(tmp_path: Path) -> None:
    tensors, data = outputs()
    path = tmp_path / "m.gguf"
    metadata = {**METADATA, "split.no": uint32(7), "split.count": uint32(9), "qconv.digest.header": string("old")}
    layout = lay_out_gguf(path, metadata, tensors, WriteOptions(split_max_tensors=2))
    paths = write_layout(layout, data)
    assert [part.name for part in paths] == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    names = list(data)
    for number, part in enumerate(paths):
        mine = {name: data[name] for name in names[2 * number : 2 * number + 2]}
        reader = check_with_gguf(part, METADATA if number == 0 else {}, mine)
        for key, kind, value in (
            ("split.no", gguf.GGUFValueType.UINT16, number),
            ("split.count", gguf.GGUFValueType.UINT16, 3),
            ("split.tensors.count", gguf.GGUFValueType.INT32, 5),
        ):
            assert reader.fields[key].types == [kind]
            assert reader.fields[key].contents() == value
        if number:
            keys = {key for key in reader.fields if not key.startswith(("GGUF.", "qconv.digest."))}
            assert keys == {"split.no", "split.count", "split.tensors.count"}
    with open_gguf(paths[0], CONTEXT) as model:
        assert list(model.tensors) == names
        assert {name: model.tensors[name].read(0, model.tensors[name].row_count).tobytes() for name in names} == data


def test_splits_by_size(tmp_path: Path) -> None:
    tensors, data = outputs()
    sizes = {tensor.name: tensor.nbytes for tensor in tensors}
    largest = 600
    layout = lay_out_gguf(tmp_path / "m.gguf", METADATA, tensors, WriteOptions(split_max_size=largest))
    groups = [[placement.tensor.name for placement in part.placements] for part in layout.parts]
    assert [name for group in groups for name in group] == list(data)
    assert all(groups)
    for group, following in pairwise(groups):
        assert len(group) == 1 or sum(sizes[name] for name in group) <= largest
        assert sum(-(-sizes[name] // 32) * 32 for name in (*group, following[0])) > largest
    assert write_layout(layout, data)[0].is_file()


def test_one_part_keeps_the_name(tmp_path: Path) -> None:
    tensors, data = outputs()
    layout = lay_out_gguf(tmp_path / "m.gguf", METADATA, tensors, WriteOptions(split_max_size=2**40))
    assert write_layout(layout, data) == [tmp_path / "m.gguf"]
    assert "split.count" not in gguf.GGUFReader(tmp_path / "m.gguf").fields


def test_a_first_part_of_metadata_alone(tmp_path: Path) -> None:
    tensors, data = outputs()
    options = WriteOptions(split_max_tensors=3, metadata_only_first=True, alignment=64)
    paths = write_layout(lay_out_gguf(tmp_path / "m-00001-of-00009.gguf", METADATA, tensors, options), data)
    assert [part.name for part in paths] == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert not gguf.GGUFReader(paths[0]).tensors
    assert len(gguf.GGUFReader(paths[1]).tensors) == 3
    with open_gguf(paths[0], CONTEXT) as model:
        assert {name: tensor.read(0, tensor.row_count).tobytes() for name, tensor in model.tensors.items()} == data


def test_a_source_in_parts_becomes_one_file(tmp_path: Path) -> None:
    """Keys of the source's parts and digests do not travel."""
    tensors, data = outputs()
    paths = write_layout(lay_out_gguf(tmp_path / "m.gguf", METADATA, tensors, WriteOptions(split_max_tensors=1)), data)
    with open_gguf(paths[0], CONTEXT) as model:
        whole = lay_out_gguf(tmp_path / "whole.gguf", model.metadata, tensors, WriteOptions(digests=False))
    write_layout(whole, data)
    keys = set(check_with_gguf(tmp_path / "whole.gguf", METADATA, data).fields)
    assert {key for key in keys if not key.startswith("GGUF.")} == set(METADATA)


def test_strings_that_are_no_utf_8_come_back(tmp_path: Path) -> None:
    tokens = [b"a", b"\xff\xfe", b"\xed\xa0\x80", "日".encode(), b""]
    entries = [
        ("general.name", scalar(crafted.STRING, b"\xc3(")),
        ("tokenizer.ggml.tokens", array(crafted.STRING, tokens)),
    ]
    source = Craft(list(entries)).write(tmp_path / "source.gguf")
    with open_gguf(source, CONTEXT) as model:
        lazy = dict(model.metadata)
        eager = {**lazy, "tokenizer.ggml.tokens": strings(texts(model, "tokenizer.ggml.tokens"))}
        for name, metadata in (("lazy", lazy), ("eager", eager)):
            write_layout(lay_out_gguf(tmp_path / name, metadata, [], WriteOptions(digests=False)), {})
            assert (tmp_path / name).read_bytes() == source.read_bytes()


def test_empty_arrays(tmp_path: Path) -> None:
    metadata = {
        "general.architecture": string("llama"),
        "t": strings([]),
        "n": numbers([], ValueType.INT32),
        "after": uint32(5),
    }
    write_layout(lay_out_gguf(tmp_path / "m.gguf", metadata, [], WriteOptions()), {})
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["after"].contents() == 5
    with open_gguf(tmp_path / "m.gguf", CONTEXT) as model:
        assert [model.metadata[key].element for key in ("t", "n")] == [ValueType.STRING, ValueType.INT32]
        for key in ("t", "n"):
            value = model.metadata[key].value
            assert not isinstance(value, int | float)
            assert len(value) == 0


@pytest.mark.parametrize(
    ("field", "said"),
    [
        (uint32(2**32), "UINT32"),
        (uint32(-1), "UINT32"),
        (Field(ValueType.UINT32, "text"), "UINT32"),
        (Field(ValueType.STRING, 3), "STRING"),
        (Field(ValueType.BOOL, 1), "BOOL"),
        (string("\ud800"), "STRING"),
        (strings(["ok", "\ud800"]), "an array of STRING"),
        (Field(ValueType.ARRAY, np.array([1.5], np.float32), ValueType.INT32), "an array of INT32"),
        (Field(ValueType.ARRAY, np.array([300]), ValueType.UINT8), "an array of UINT8"),
        (Field(ValueType.ARRAY, np.zeros((2, 2), np.int32), ValueType.INT32), "an array of INT32"),
        (Field(ValueType.ARRAY, ("a",), None), "ARRAY"),
        (Field(ValueType.ARRAY, "text", ValueType.STRING), "an array of STRING"),
    ],
)
def test_values_that_do_not_fit_their_type(tmp_path: Path, field: Field, said: str) -> None:
    with pytest.raises(OutputError, match=f"metadata key some.key cannot be stored as {said}"):
        lay_out_gguf(tmp_path / "m.gguf", {"some.key": field}, [], WriteOptions())


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (OutputTensor("n" * 64, (4,), ENCODINGS["F32"]), "64 bytes; llama.cpp accepts 1 to 63"),
        (OutputTensor("", (4,), ENCODINGS["F32"]), "0 bytes"),
        (OutputTensor("a", (1, 1, 1, 1, 4), ENCODINGS["F32"]), r"cannot hold the shape \(1, 1, 1, 1, 4\)"),
        (OutputTensor("a", (0, 4), ENCODINGS["F32"]), r"cannot hold the shape \(0, 4\)"),
        (OutputTensor("a", (4,), Encoding("ODD", None, 1, 4, "odd")), "no type for ODD"),
    ],
)
def test_tensors_that_gguf_cannot_hold(tmp_path: Path, tensor: OutputTensor, said: str) -> None:
    with pytest.raises(OutputError, match=said):
        lay_out_gguf(tmp_path / "m.gguf", {}, [tensor], WriteOptions())


def test_a_scalar_tensor_becomes_a_vector_of_one(tmp_path: Path) -> None:
    write_layout(
        lay_out_gguf(tmp_path / "m.gguf", {}, [OutputTensor("a", (), ENCODINGS["F32"])], WriteOptions()), {"a": b"abcd"}
    )
    (tensor,) = gguf.GGUFReader(tmp_path / "m.gguf").tensors
    assert tensor.shape.tolist() == [1]
    assert tensor.data.tobytes() == b"abcd"


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    tensors, _ = outputs()
    for alignment in (0, 3, 48, 2**17, -32):
        with pytest.raises(UsageError, match=f"alignment {alignment} "):
            lay_out_gguf(tmp_path / "m.gguf", {}, tensors, WriteOptions(alignment=alignment))
    with pytest.raises(UsageError, match="at least one"):
        lay_out_gguf(tmp_path / "m.gguf", {}, tensors, WriteOptions(split_max_tensors=0))
    many = [OutputTensor(f"t.{n}", (1,), ENCODINGS["F32"]) for n in range(1001)]
    with pytest.raises(UsageError, match="1001 parts are more than 1000"):
        lay_out_gguf(tmp_path / "m.gguf", {}, many, WriteOptions(split_max_tensors=1))
    with pytest.raises(OutputError, match="tensor t: two tensors"):
        lay_out_gguf(tmp_path / "m.gguf", {}, [OutputTensor("t", (1,), ENCODINGS["F32"])] * 2, WriteOptions())


def test_a_digest_that_is_missing_or_no_digest(tmp_path: Path) -> None:
    tensors, _ = outputs()
    (part,) = lay_out_gguf(tmp_path / "m.gguf", {}, tensors[:1], WriteOptions()).parts
    with pytest.raises(KeyError):
        part.header({})
    with pytest.raises(ValueError, match="token_embd"):
        part.header({"token_embd.weight": "abc"})


KEYS = st.text(letters.ascii_lowercase + "._", min_size=1, max_size=12).map("any.".__add__)
FIELDS = st.one_of(
    st.integers(0, 2**32 - 1).map(uint32),
    st.integers(-(2**31), 2**31 - 1).map(int32),
    st.floats(width=32, allow_nan=False).map(float32),
    st.booleans().map(boolean),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8).map(string),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=5).map(strings),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5).map(lambda values: numbers(values, ValueType.INT32)),
    st.lists(st.booleans(), max_size=5).map(lambda values: numbers(values, ValueType.BOOL)),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(metadata=st.dictionaries(KEYS, FIELDS, max_size=8), alignment=st.sampled_from([1, 2, 16, 32, 1024]))
def test_any_metadata_round_trips(
    tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, Field], alignment: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "m.gguf"
    tensors, data = outputs()
    write_layout(lay_out_gguf(path, metadata, tensors, WriteOptions(alignment=alignment)), data)
    check_with_gguf(path, metadata, data)
    with open_gguf(path, CONTEXT) as model:
        for key, field in metadata.items():
            found = model.metadata[key]
            assert (found.type, found.element) == (field.type, field.element)
            if isinstance(field.value, str | int | float):
                assert found.value == field.value
            else:
                assert not isinstance(found.value, str | int | float)
                assert list(found.value) == list(field.value)
        for name, raw in data.items():
            tensor = model.tensors[name]
            assert tensor.read(0, tensor.row_count).tobytes() == raw
