"""Changed metadata: exact values, tensors and digests untouched, and the old header or the new one whatever kills the program."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import gguf_files as crafted
import llamacpp_models
import numpy as np
import pytest
from gguf import GGUFReader
from gguf_files import CONTEXT, Craft, Record, Style, array, scalar, write_layout
from hypothesis import given, settings
from hypothesis import strategies as st
from qconv_encodings import ENCODINGS

from qconv.convert.editing.edit_metadata import Edited, edit_metadata, same_value
from qconv.errors import BusyError, DiskFullError, FormatError, QconvError, UsageError, VerificationError
from qconv.formats.base import OutputTensor, WriteOptions
from qconv.formats.gguf import detect_gguf, lay_out_gguf, open_gguf, verify_gguf
from qconv.formats.gguf.edit import edit_journal, finish_edit
from qconv.formats.metadata import Field, ValueType, boolean, float32, numbers, string, strings, uint32

METADATA = {
    "general.architecture": string("llama"),
    "general.name": string("a name that is neither short nor long"),
    "llama.block_count": uint32(1),
    "llama.rope.freq_base": float32(1e4),
    "tokenizer.ggml.tokens": strings(["<unk>", "a", "é"]),
    "tokenizer.ggml.scores": numbers([0, -1, -2.5], ValueType.FLOAT32),
}
TENSORS = [
    OutputTensor("token_embd.weight", (3, 32), ENCODINGS["F32"]),
    OutputTensor("blk.0.attn_q.weight", (2, 32), ENCODINGS["Q8_0"]),
]
DATA = {tensor.name: np.random.default_rng(7).bytes(tensor.nbytes) for tensor in TENSORS}
DEFAULT = WriteOptions()


def write(path: Path, metadata: Mapping[str, Field] = METADATA, options: WriteOptions = DEFAULT) -> Path:
    return write_layout(lay_out_gguf(path, metadata, TENSORS, options), DATA)[0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "m.gguf")


def change(path: Path, fields: Mapping[str, Field], *remove: str, force: bool = False, dry: bool = False) -> Edited:
    return edit_metadata(path, lambda old: fields, remove, ENCODINGS, force=force, dry_run=dry)


def check(path: Path, expected: Mapping[str, Field], digests: bool = True) -> None:
    """Both readers find the metadata and the tensors; every byte has its digest."""
    with open_gguf(path, CONTEXT) as model:
        found = {key: field for key, field in model.metadata.items() if not key.startswith("qconv.")}
        assert found.keys() == expected.keys()
        assert all(same_value(found[key], field) for key, field in expected.items())
    reader = GGUFReader(path)
    for key, field in expected.items():
        value = reader.fields[key].contents()
        plain = field.value.tolist() if isinstance(field.value, np.ndarray) else field.value
        assert value == (list(plain) if isinstance(plain, tuple) else plain), key
    assert {it.name: it.data.tobytes() for it in reader.tensors} == DATA
    if digests:
        assert verify_gguf(path).ok


EVERY_TYPE = {
    "x.u8": Field(ValueType.UINT8, 255),
    "x.i8": Field(ValueType.INT8, -128),
    "x.u16": Field(ValueType.UINT16, 65535),
    "x.i16": Field(ValueType.INT16, -32768),
    "x.u32": uint32(2**32 - 1),
    "x.i32": Field(ValueType.INT32, -(2**31)),
    "x.f32": float32(0.5),
    "x.bool": boolean(True),
    "x.str": string("line\nline\té" * 30),
    "x.u64": Field(ValueType.UINT64, 2**64 - 1),
    "x.i64": Field(ValueType.INT64, -(2**63)),
    "x.f64": Field(ValueType.FLOAT64, 1e300),
    "x.strings": strings(["", "b", "c" * 99]),
    "x.numbers": numbers([1, 2, 3], ValueType.INT16),
    "x.flags": numbers([True, False], ValueType.BOOL),
}


def test_every_type_added_and_removed(path: Path) -> None:
    before = path.read_bytes()
    done = change(path, EVERY_TYPE)
    assert not done.in_place
    assert done.bytes_written == path.stat().st_size
    check(path, METADATA | EVERY_TYPE)
    assert [it.key for it in done.changes] == list(EVERY_TYPE)
    size = path.stat().st_size
    done = change(path, {}, *EVERY_TYPE)
    assert done.in_place  # filled up
    assert done.bytes_written < 4096
    check(path, METADATA)
    assert path.stat().st_size == size
    assert "qconv.pad" in GGUFReader(path).fields
    change(path, EVERY_TYPE)
    assert path.stat().st_size == size  # the room is used again
    check(path, METADATA | EVERY_TYPE)
    assert write(path).read_bytes() == before


def test_conversions_do_not_take_the_padding_over(path: Path) -> None:
    change(path, {}, "general.name")
    with open_gguf(path, CONTEXT) as model:
        assert "qconv.pad" in model.metadata
        copied = write(path.with_name("copy.gguf"), model.metadata)
    assert "qconv.pad" not in GGUFReader(copied).fields


def test_a_value_of_the_same_size_is_written_in_place(path: Path) -> None:
    inode, before = path.stat().st_ino, path.read_bytes()
    done = change(path, {"llama.rope.freq_base": float32(5e5)})
    assert done.in_place
    assert path.stat().st_ino == inode
    after = path.read_bytes()
    assert len(after) == len(before)
    assert sum(one != other for one, other in zip(before, after, strict=True)) <= 4 + 64  # the value, and the digest
    check(path, METADATA | {"llama.rope.freq_base": float32(5e5)})
    assert [it.name for it in path.parent.iterdir()] == ["m.gguf"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    name=st.text(max_size=200),
    alignment=st.sampled_from([8, 16, 32, 64, 4096]),
    digests=st.booleans(),
    more=st.lists(st.text(max_size=9), max_size=5),
)
def test_any_length(
    tmp_path_factory: pytest.TempPathFactory, name: str, alignment: int, digests: bool, more: list[str]
) -> None:
    """In place exactly where the data need not move, and whatever the length, nothing else changes."""
    path = write(
        tmp_path_factory.getbasetemp() / "any.gguf", METADATA, WriteOptions(alignment=alignment, digests=digests)
    )
    fields = {"general.name": string(name), "general.tags": strings(more)}
    offsets = [int(it.data_offset) for it in GGUFReader(path).tensors]
    inode = path.stat().st_ino
    done = change(path, fields)
    kept = {"general.alignment": uint32(alignment)} if alignment != 32 else {}
    check(path, METADATA | fields | kept, digests)
    after = [int(it.data_offset) for it in GGUFReader(path).tensors]
    assert done.in_place == (after == offsets) == (path.stat().st_ino == inode)


def test_nothing_is_written_where_nothing_changes(path: Path) -> None:
    before = _written(path)
    done = change(path, {"general.name": METADATA["general.name"]})
    assert done.changes == ()
    assert done.bytes_written == 0
    dry = change(path, {"general.name": string("x" * 500)}, dry=True)
    assert dry.changes
    assert _written(path) == before


def _written(path: Path) -> tuple[int, int, int]:
    """What changes where a file is written; reading it changes other times."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def test_links_and_permissions_are_kept(path: Path, tmp_path: Path) -> None:
    path.chmod(0o640)
    link = tmp_path / "link.gguf"
    link.symlink_to(path)
    change(link, {"general.name": string("x" * 500)})
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    check(link, METADATA | {"general.name": string("x" * 500)})


@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("general.architecture", string("gemma2")),
        ("general.alignment", uint32(64)),
        ("llama.block_count", uint32(2)),
        ("split.count", Field(ValueType.UINT16, 1)),
    ],
)
def test_keys_that_break_the_file_need_force(path: Path, key: str, field: Field) -> None:
    before = path.read_bytes()
    with pytest.raises(UsageError, match=rf"{key} should not be changed: .* --force changes it"):
        change(path, {key: field})
    assert path.read_bytes() == before
    change(path, {key: field}, force=True)
    assert verify_gguf(path).ok
    assert GGUFReader(path).fields[key].contents() == field.value


@pytest.mark.parametrize("key", ["qconv.digest.header", "qconv.digest.tensors", "qconv.digest.new", "qconv.pad"])
def test_computed_keys_are_never_set(path: Path, key: str) -> None:
    with pytest.raises(UsageError, match="is computed when the file is written"):
        change(path, {key: string("0" * 64)}, force=True)


def test_refusals(path: Path) -> None:
    before = path.read_bytes()
    for fields, remove, message in (
        ({}, ["general.nam"], "there is no key general.nam. Nearest: general.name"),
        ({"general.alignment": uint32(48)}, [], "power of two"),
        (
            {"general.alignment": uint32(4096)},
            [],
            "is not aligned to 4096 bytes. Have the tensors moved: qconv quantize",
        ),
        ({"tokenizer.ggml.scores": numbers([0], ValueType.FLOAT32)}, [], "has 1 elements, but"),
        ({"llama.block_count": uint32(2**20)}, [], "llama.block_count is 1048576"),
        ({"x" * 70000: uint32(1)}, [], "more than the 65535"),
        ({"": uint32(1)}, [], "empty"),
    ):
        with pytest.raises(QconvError, match=message):
            change(path, fields, *remove, force=True)
        assert path.read_bytes() == before
    more = strings(["<unk>", "a", "b", "c"])
    scores = numbers([0, 0, 0, 0], ValueType.FLOAT32)
    with pytest.raises(UsageError, match=r"the vocabulary has 4 tokens, but token_embd.weight 3 rows"):
        change(path, {"tokenizer.ggml.tokens": more, "tokenizer.ggml.scores": scores})
    with pytest.raises(FormatError, match="no GGUF file"):
        path.write_bytes(b"hello")
        change(path, {})


def test_a_damaged_header_is_not_given_a_new_digest(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"neither")] ^= 1
    path.write_bytes(data)
    with pytest.raises(VerificationError, match="differs from its digest, and a change would hide that"):
        change(path, {"general.url": string("x")})
    change(path, {"general.url": string("x")}, force=True)
    assert verify_gguf(path).ok


def test_later_parts_and_foreign_files(tmp_path: Path) -> None:
    parts = write_layout(lay_out_gguf(tmp_path / "p.gguf", METADATA, TENSORS, WriteOptions(split_max_tensors=1)), DATA)
    with pytest.raises(FormatError, match="the metadata are in the first"):
        change(parts[1], {"general.name": string("x")})
    change(parts[0], {"general.name": string("x" * 200)})
    check_keys = GGUFReader(parts[0]).fields
    assert check_keys["split.count"].contents() == 2
    assert verify_gguf(parts[0]).ok
    big = Craft([("general.name", scalar(crafted.STRING, "x", Style(">")))], [Record("a")], style=Style(">"))
    with pytest.raises(FormatError, match="big-endian files are only read"):
        change(big.write(tmp_path / "big.gguf"), {"general.name": string("y")})


@pytest.mark.parametrize("version", [1, 2])
def test_older_versions_become_version_3(tmp_path: Path, version: int) -> None:
    style = Style(wide=version > 1, nul=True)
    entries: list[tuple[str | bytes, bytes]] = [
        ("general.architecture", scalar(crafted.STRING, "llama", style)),
        ("tokenizer.ggml.tokens", array(crafted.STRING, ["a", "b"], style=style)),
    ]
    data = np.arange(64, dtype="<f4").tobytes()
    path = Craft(entries, [Record("a", (64,), data=data)], version, style).write(tmp_path / "old.gguf")
    change(path, {"general.name": string("new")})
    reader = GGUFReader(path)
    assert reader.fields["GGUF.version"].contents() == 3
    assert reader.fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]
    assert reader.tensors[0].data.tobytes() == data


def test_a_file_of_metadata_alone(tmp_path: Path) -> None:
    path = tmp_path / "v.gguf"
    path.write_bytes(Craft([("general.name", scalar(crafted.STRING, "x"))]).header())  # no padding behind it
    change(path, {"general.name": string("y")})
    assert GGUFReader(path).fields["general.name"].contents() == "y"
    change(path, {"general.name": string("z" * 1000)})
    assert GGUFReader(path).fields["general.name"].contents() == "z" * 1000


def test_the_receipt_is_told_to_be_old(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", METADATA | {"qconv.receipt.passed": boolean(True)})
    assert change(path, {"general.name": string("x")}).notes == ()
    assert "speaks of the metadata as they were" in change(path, {"llama.rope.freq_base": float32(1)}).notes[0]


def test_two_edits_at_once(path: Path) -> None:
    def inner(old: Mapping[str, Field]) -> Mapping[str, Field]:
        with pytest.raises(BusyError, match="another process is changing this file"):
            change(path, {"general.name": string("y")})
        return {"general.name": string("x")}

    edit_metadata(path, inner, (), ENCODINGS)


def test_a_full_disk_is_told_before_a_rewrite(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.raises(DiskFullError, match="must be written anew"):
        change(path, {"general.name": string("x" * 900)})
    assert [it.name for it in path.parent.iterdir()] == ["m.gguf"]


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from qconv.convert.editing.edit_metadata import edit_metadata
    from qconv.formats.metadata import string
    from qconv.quantizers.catalog import BUILT_IN

    calls, at = 0, int(sys.argv[1])
    def killing(real, tear):
        def call(*arguments):
            global calls
            calls += 1
            if calls == at:
                if tear:
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)
        return call

    os.write = killing(os.write, True)
    for name in ("copy_file_range", "fsync"):
        setattr(os, name, killing(getattr(os, name), False))
    for name in ("replace", "unlink"):
        setattr(Path, name, killing(getattr(Path, name), False))
    encodings = {it.name: it for it in BUILT_IN}
    edit_metadata(Path(sys.argv[2]), lambda old: {"general.name": string(sys.argv[3])}, (), encodings)
"""


@pytest.mark.parametrize("new", ["a NAME that is neither short nor long", "x" * 3000], ids=["in-place", "rewritten"])
def test_kill_9_at_every_step(tmp_path: Path, new: str) -> None:
    """Writes are torn in the middle. The old metadata or the new, and in between a file that nobody can read until qconv looks at it again."""
    path = tmp_path / "m.gguf"
    renamed = METADATA | {"general.name": string(new)}
    outcomes = []
    for at in range(1, 100):
        write(path)
        command = [sys.executable, "-c", textwrap.dedent(KILLED), str(at), str(path), new]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        try:
            metadata = GGUFReader(path).fields["general.name"].contents()
        except ValueError:
            outcomes.append("unreadable")
            assert detect_gguf(path)
            with pytest.raises(
                FormatError, match=r"a change of its metadata was interrupted\. Run qconv metadata show"
            ):
                open_gguf(path, CONTEXT)
            assert edit_journal(path).exists()
            finish_edit(path)
            check(path, renamed)
        else:
            outcomes.append("new" if metadata == new else "old")
            check(path, renamed if metadata == new else METADATA)
            finish_edit(path)
            check(path, renamed if metadata == new else METADATA)
        assert not edit_journal(path).exists()
    check(path, renamed)
    assert outcomes == sorted(outcomes, key=["old", "unreadable", "new"].index)
    assert {"old", "new"} <= set(outcomes)
    assert ("unreadable" in outcomes) == (len(new) < 3000)
    assert {it.name for it in tmp_path.iterdir()} == {"m.gguf"}


def test_a_journal_of_another_file_is_not_applied(path: Path) -> None:
    before = path.read_bytes()
    edit_journal(path).write_bytes(b'{"size": 1, "sha256": ""}\n' + b"x" * 100)
    assert not finish_edit(path)  # the file is whole: the journal is old
    assert path.read_bytes() == before
    assert not edit_journal(path).exists()
    path.write_bytes(b"GGU!" + before[4:])
    for content, message in ((b'{"size": 1, "sha256": ""}\nxyz', "not the journal of m.gguf"), (b"\xff", "no journal")):
        edit_journal(path).write_bytes(content)
        with pytest.raises(FormatError, match=message):
            finish_edit(path)
        assert path.read_bytes() == b"GGU!" + before[4:]


@pytest.mark.oracles
def test_llama_cpp_loads_what_was_edited(example_model: Path, tmp_path: Path) -> None:
    from qconv.convert.api import quantize

    path = tmp_path / "m.gguf"
    quantize(example_model, path, "q8_0")
    tokens = [1, 290, 310, 263, 293]
    expected = llamacpp_models.logits(path, tokens)
    for fields in (EVERY_TYPE, {"general.name": string("short")}):
        change(path, fields)
        assert np.array_equal(llamacpp_models.logits(path, tokens), expected)
    change(path, {}, *EVERY_TYPE)
    assert np.array_equal(llamacpp_models.logits(path, tokens), expected)
    change(path, {"llama.rope.freq_base": float32(1e6)})
    assert not np.array_equal(llamacpp_models.logits(path, tokens), expected)
