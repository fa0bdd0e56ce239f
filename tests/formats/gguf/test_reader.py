"""What gguf's own writer stores, the reader returns: values of every type, tensors, alignments, parts."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import gguf_files as crafted
import numpy as np
import pytest
from gguf_files import CONTEXT, Craft, Record, Style, array, scalar, texts

from qconv.errors import FormatError, MissingFileError, TruncatedError
from qconv.formats.base import Model, OpenContext
from qconv.formats.gguf import FORMAT, constants, open_gguf
from qconv.formats.gguf.file_types import FILE_TYPES
from qconv.formats.metadata import ValueType

ARRAYS: dict[str, tuple[ValueType, list[float]]] = {
    "a.u8": (ValueType.UINT8, [0, 255]),
    "a.i8": (ValueType.INT8, [-128, 127]),
    "a.u16": (ValueType.UINT16, [0, 65535]),
    "a.i16": (ValueType.INT16, [-32768, 32767]),
    "a.u32": (ValueType.UINT32, [0, 2**32 - 1]),
    "a.i32": (ValueType.INT32, [-(2**31), 2**31 - 1]),
    "a.f32": (ValueType.FLOAT32, [0.5, -1.25]),
    "a.bool": (ValueType.BOOL, [True, False, True]),
    "a.u64": (ValueType.UINT64, [0, 2**64 - 1]),
    "a.i64": (ValueType.INT64, [-(2**63), 2**63 - 1]),
    "a.f64": (ValueType.FLOAT64, [0.1, -1e300]),
}
SCALARS: dict[str, tuple[ValueType, float | str]] = {
    "s.u8": (ValueType.UINT8, 200),
    "s.i8": (ValueType.INT8, -100),
    "s.u16": (ValueType.UINT16, 60000),
    "s.i16": (ValueType.INT16, -30000),
    "s.u32": (ValueType.UINT32, 4_000_000_000),
    "s.i32": (ValueType.INT32, -2_000_000_000),
    "s.f32": (ValueType.FLOAT32, 1.5),
    "s.bool": (ValueType.BOOL, True),
    "s.u64": (ValueType.UINT64, 2**64 - 1),
    "s.i64": (ValueType.INT64, -(2**63)),
    "s.f64": (ValueType.FLOAT64, 0.1),
    "s.text": (ValueType.STRING, "Grüße, 世界"),
}


def write_with_gguf(path: Path, alignment: int | None = None, **options: int) -> dict[str, np.ndarray]:
    """Write a model with gguf's writer; returns its tensors."""
    writer = gguf.GGUFWriter(path, "llama", **options)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for key, (kind, value) in SCALARS.items():
        writer.add_key_value(key, value, gguf.GGUFValueType(int(kind)))
    for key, (kind, values) in ARRAYS.items():
        writer.add_key_value(key, values, gguf.GGUFValueType.ARRAY, sub_type=gguf.GGUFValueType(int(kind)))
    writer.add_array("a.text", ["", "a", "Ġworld", "日本"])
    generator = np.random.default_rng(1)
    tensors: dict[str, np.ndarray] = {
        "token_embd.weight": generator.normal(size=(5, 32)).astype(np.float32),
        "blk.0.attn_norm.weight": generator.normal(size=7).astype(np.float32),
        "blk.0.ffn_gate_exps.weight": generator.normal(size=(2, 3, 8)).astype(np.float16),
    }
    for name, weights in tensors.items():
        writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def check_tensors(model: Model, expected: dict[str, np.ndarray]) -> None:
    assert list(model.tensors) == list(expected)
    for name, values in expected.items():
        tensor = model.tensors[name]
        assert tensor.shape == values.shape
        assert tensor.read(0, tensor.row_count).tobytes() == values.tobytes()


def test_every_value_type(tmp_path: Path) -> None:
    expected = write_with_gguf(tmp_path / "m.gguf")
    with open_gguf(tmp_path / "m.gguf", CONTEXT) as model:
        assert model.architecture == "llama"
        for key, (kind, value) in SCALARS.items():
            assert (model.metadata[key].type, model.metadata[key].value) == (kind, value), key
        for key, (kind, values) in ARRAYS.items():
            field = model.metadata[key]
            assert (field.type, field.element) == (ValueType.ARRAY, kind), key
            assert isinstance(field.value, np.ndarray)
            assert field.value.tolist() == values, key
            assert field.value.dtype.isnative
        found = texts(model, "a.text")
        assert list(found) == ["", "a", "Ġworld", "日本"]
        check_tensors(model, expected)
        assert model.container["version"] == 3
        assert model.files == (tmp_path / "m.gguf",)


@pytest.mark.parametrize("alignment", [8, 64, 4096, 65536])
def test_alignments(tmp_path: Path, alignment: int) -> None:
    expected = write_with_gguf(tmp_path / "m.gguf", alignment)
    with open_gguf(tmp_path / "m.gguf", CONTEXT) as model:
        assert model.container["alignment"] == alignment
        check_tensors(model, expected)


def test_parts_written_by_gguf(tmp_path: Path) -> None:
    expected = write_with_gguf(tmp_path / "m.gguf", split_max_tensors=1)
    first = tmp_path / "m-00001-of-00003.gguf"
    with open_gguf(first, CONTEXT) as model:
        check_tensors(model, expected)
        assert [file.name for file in model.files] == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
        assert not [key for key in model.metadata if key.startswith("split.")]
        assert model.container["parts"] == 3
    with pytest.raises(FormatError, match=r"part 2 of 3.*Open m-00001-of-00003\.gguf instead"):
        open_gguf(tmp_path / "m-00002-of-00003.gguf", CONTEXT)
    (tmp_path / "m-00003-of-00003.gguf").unlink()
    with pytest.raises(MissingFileError, match=r"m-00003-of-00003\.gguf: part 3 of 3 is missing"):
        open_gguf(first, CONTEXT)
    with open_gguf(first, OpenContext(CONTEXT.encodings, {}, vocabulary_only=True)) as model:
        assert not model.tensors
        assert "a.text" in model.metadata
    first.rename(tmp_path / "model.gguf")
    with pytest.raises(FormatError, match=r"Rename it to model-00001-of-00003\.gguf"):
        open_gguf(tmp_path / "model.gguf", CONTEXT)


def test_parts_that_disagree(tmp_path: Path) -> None:
    def part(number: int, names: list[str], total: int, count: int = 2) -> Craft:
        return Craft(
            [
                ("split.no", scalar(crafted.UINT16, number)),
                ("split.count", scalar(crafted.UINT16, count)),
                ("split.tensors.count", scalar(crafted.INT32, total)),
            ],
            [Record(name) for name in names],
        )

    first, second = tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf"
    part(0, ["a"], 2).write(first)
    part(1, ["b"], 2).write(second)
    with open_gguf(first, CONTEXT) as model:
        assert list(model.tensors) == ["a", "b"]
    part(1, ["a"], 2).write(second)
    with pytest.raises(FormatError, match="another part has a tensor of this name"):
        open_gguf(first, CONTEXT)
    part(1, ["b", "c"], 2).write(second)
    with pytest.raises(FormatError, match="announces 2 tensors, but 2 parts hold 3"):
        open_gguf(first, CONTEXT)
    part(0, ["b"], 2).write(second)
    with pytest.raises(FormatError, match=r"split\.no is 0, not 1"):
        open_gguf(first, CONTEXT)
    part(1, ["b"], 2, count=3).write(second)
    with pytest.raises(FormatError, match=r"split\.count is 3, not 2"):
        open_gguf(first, CONTEXT)
    part(2, ["a"], 2).write(first)
    with pytest.raises(FormatError, match=r"split\.no is 2, but the model has 2 parts"):
        open_gguf(first, CONTEXT)
    part(0, ["a"], 2, count=1001).write(first)
    with pytest.raises(FormatError, match=r"split\.count is 1001"):
        open_gguf(first, CONTEXT)


def test_rows_from_many_threads(tmp_path: Path) -> None:
    values = np.arange(400 * 64, dtype=np.float32).reshape(400, 64)
    Craft(records=[Record("a", (64, 400), data=values.tobytes())]).write(tmp_path / "m.gguf")
    with open_gguf(tmp_path / "m.gguf", CONTEXT) as model, ThreadPoolExecutor(8) as pool:
        tensor = model.tensors["a"]
        for row, got in enumerate(pool.map(lambda row: tensor.read(row, row + 1), range(400))):
            assert got.tobytes() == values[row].tobytes()
        with pytest.raises(IndexError):
            tensor.read(399, 401)
        assert tensor.read(3, 3).shape == (0, 256)
    with pytest.raises(ValueError, match="closed"):
        tensor.read(0, 1)


def test_a_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    path = Craft(records=[Record("a", (1024,), data=bytes(4096))]).write(tmp_path / "m.gguf")
    with open_gguf(path, CONTEXT) as model:
        os.truncate(path, 512)
        with pytest.raises(TruncatedError, match="tensor a"):
            model.tensors["a"].read(0, 1)


def test_data_are_not_read_with_the_header(tmp_path: Path) -> None:
    """A file of 1 TB (sparse) opens at once."""
    craft = Craft(records=[Record("a", (2**18, 2**20), data=b"")])
    path = tmp_path / "m.gguf"
    path.write_bytes(craft.build())
    os.truncate(path, path.stat().st_size + 2**40)
    with open_gguf(path, CONTEXT) as model:
        assert model.tensors["a"].nbytes == 2**40
        assert not model.tensors["a"].read(2**20 - 1, 2**20).any()


@pytest.mark.parametrize(
    ("version", "style"),
    [
        (1, Style(wide=False)),
        (1, Style(wide=False, nul=True)),
        (2, Style()),
        (2, Style(nul=True)),
        (3, Style(order=">")),
    ],
)
def test_older_layouts(tmp_path: Path, version: int, style: Style) -> None:
    values = np.arange(8, dtype=style.order + "f4")
    path = Craft(
        [
            ("general.architecture", scalar(crafted.STRING, "llama", style)),
            ("n", scalar(crafted.INT16, -5, style)),
            ("f", array(crafted.FLOAT32, [0.5, 2], style=style)),
            ("t", array(crafted.STRING, ["", "ab"], style=style)),
        ],
        [Record("a.weight", (4, 2), data=values.tobytes())],
        version=version,
        style=style,
    ).write(tmp_path / "m.gguf")
    with open_gguf(path, CONTEXT) as model:
        assert model.architecture == "llama"
        assert model.metadata["n"].value == -5
        assert np.array_equal(np.asarray(model.metadata["f"].value), [0.5, 2])
        found = texts(model, "t")
        assert list(found) == ["", "ab"]
        assert model.tensors["a.weight"].shape == (2, 4)
        assert model.tensors["a.weight"].read(0, 2).tobytes() == values.astype("<f4").tobytes()
        assert model.container["version"] == version


def test_a_nul_is_kept_where_it_is_no_terminator(tmp_path: Path) -> None:
    entries = [("k", array(crafted.STRING, ["a\0"])), ("s", scalar(crafted.STRING, "b\0"))]
    path = Craft([*entries], version=2).write(tmp_path / "m.gguf")
    with open_gguf(path, CONTEXT) as model:
        found = texts(model, "k")
        assert found[0] == "a\0"
        assert model.metadata["s"].value == "b\0"


def test_invalid_utf_8_in_values(tmp_path: Path) -> None:
    path = Craft(
        [("s", scalar(crafted.STRING, b"\xff\xc3")), ("t", array(crafted.STRING, [b"ok", b"\x80\xed\xa0\x80"]))]
    ).write(tmp_path / "m.gguf")
    with open_gguf(path, CONTEXT) as model:
        assert model.metadata["s"].value == "\udcff\udcc3"
        found = texts(model, "t")
        assert found[0] == "ok"
        assert found[1].encode("utf-8", "surrogateescape") == b"\x80\xed\xa0\x80"
        assert found[-2:] == ("ok", found[1])
        with pytest.raises(IndexError):
            found[2]


def test_detection(tmp_path: Path) -> None:
    sound = Craft().write(tmp_path / "m.bin")
    (tmp_path / "other").write_bytes(b"GGU")
    assert FORMAT.detect(sound)
    assert not FORMAT.detect(tmp_path / "other")
    assert not FORMAT.detect(tmp_path)
    assert not FORMAT.detect(tmp_path / "absent")


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        open_gguf(tmp_path / "absent.gguf", CONTEXT)
    with pytest.raises(FormatError, match="no regular file"):
        open_gguf(tmp_path, CONTEXT)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="no regular file"):
        open_gguf(tmp_path / "pipe", CONTEXT)


def test_constants_are_ggufs() -> None:
    assert int.from_bytes(constants.MAGIC, "little") == gguf.GGUF_MAGIC
    assert constants.WRITTEN_VERSION == gguf.GGUF_VERSION
    assert constants.DEFAULT_ALIGNMENT == gguf.GGUF_DEFAULT_ALIGNMENT
    assert {kind.name: int(kind) for kind in ValueType} == {kind.name: int(kind) for kind in gguf.GGUFValueType}
    assert constants.SPLIT_NO_KEY == gguf.Keys.Split.LLM_KV_SPLIT_NO
    assert constants.SPLIT_COUNT_KEY == gguf.Keys.Split.LLM_KV_SPLIT_COUNT
    assert constants.SPLIT_TENSORS_KEY == gguf.Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT
    assert constants.ALIGNMENT_KEY == gguf.Keys.General.ALIGNMENT
    for kind in gguf.LlamaFileType:
        if kind is not gguf.LlamaFileType.GUESSED:
            assert FILE_TYPES[int(kind)] == kind.name.removeprefix("MOSTLY_").removeprefix("ALL_")
    assert not set(constants.REMOVED_TYPES) & {int(kind) for kind in gguf.GGMLQuantizationType}


def test_importing_stays_light() -> None:
    code = (
        "import sys, qconv.formats.gguf, qconv.formats.summary; print(*({'numba', 'gguf', 'torch'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == ""
