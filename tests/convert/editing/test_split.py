"""Parts and wholes: llama.cpp's names and keys, every byte accounted for, and damage that is found before anything is written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import llamacpp_models
import memory_model
import numpy as np
import pytest
from gguf import GGUFReader
from gguf_files import CONTEXT, Craft, Record, Style, scalar
from qconv_encodings import ENCODINGS

from qconv.convert.editing.split import check_bytes, plan_merge, plan_split
from qconv.convert.editing.transfer import Transferred, run_transfer
from qconv.convert.jobs import run_plan
from qconv.convert.plan import make_plan
from qconv.convert.settings import Settings
from qconv.errors import (
    FormatError,
    MissingFileError,
    OutputExistsError,
    QconvError,
    TruncatedError,
    UsageError,
    VerificationError,
)
from qconv.formats.base import WriteOptions
from qconv.formats.gguf import FORMAT, open_gguf, verify_gguf
from qconv.formats.positional import PositionalFile

FIVE = WriteOptions(split_max_tensors=5)


DEFAULT = WriteOptions()


def whole_file(path: Path, write: WriteOptions = DEFAULT) -> Path:
    """A GGUF file of 18 tensors."""
    with memory_model.llama(path.with_suffix(".made")) as model:
        plan = make_plan(model, path, FORMAT, Settings(write=write), ENCODINGS)
        run_plan(plan, force=False, progress=lambda count: None)
    path.with_suffix(".made").unlink()
    return path


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return whole_file(tmp_path / "whole.gguf")


def split(source: Path, prefix: Path, options: WriteOptions = FIVE) -> Transferred:
    with plan_split(source, prefix, CONTEXT, options) as transfer:
        return run_transfer(transfer, force=False, threads=2, progress=lambda count: None)


def merge(first: Path, result: Path, digests: bool = True) -> Transferred:
    with plan_merge(first, result, CONTEXT, digests) as (transfer, parts):
        check_bytes(parts, threads=2)
        return run_transfer(transfer, force=False, threads=2, progress=lambda count: None)


def contents(path: Path) -> dict[str, bytes]:
    """The bytes of every tensor, as the gguf package reads them."""
    return {it.name: it.data.tobytes() for it in GGUFReader(path).tensors}


def keys(path: Path) -> dict[str, tuple[list[str], object]]:
    """Types and value of every key, as the gguf package reads them."""
    fields = GGUFReader(path).fields.values()
    return {it.name: ([kind.name for kind in it.types], it.contents()) for it in fields if it.name[:5] != "GGUF."}


def test_parts_are_named_and_marked_as_llama_cpp_does(whole: Path, tmp_path: Path) -> None:
    done = split(whole, tmp_path / "p")
    assert [path.name for path in done.paths] == [f"p-0000{number}-of-00004.gguf" for number in (1, 2, 3, 4)]
    seen: dict[str, bytes] = {}
    for number, path in enumerate(done.paths):
        found = keys(path)
        assert found["split.no"] == (["UINT16"], number)
        assert found["split.count"] == (["UINT16"], 4)
        assert found["split.tensors.count"] == (["INT32"], 18)
        assert ("general.architecture" in found) == (number == 0)
        seen |= contents(path)
    assert list(seen) == list(contents(whole))
    assert seen == contents(whole)
    assert verify_gguf(done.paths[0]).ok
    assert done.copied_by_system == sum(map(len, seen.values()))


def test_there_and_back_is_the_same_file(whole: Path, tmp_path: Path) -> None:
    first = split(whole, tmp_path / "p.gguf").paths[0]
    assert first.name == "p-00001-of-00004.gguf"
    merge(first, tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == whole.read_bytes()


def test_limits(whole: Path, tmp_path: Path) -> None:
    sizes = split(whole, tmp_path / "s", WriteOptions(split_max_size=200_000, metadata_only_first=True)).paths
    assert contents(sizes[0]) == {}
    assert all(sum(map(len, contents(path).values())) <= 200_000 for path in sizes)
    assert merge(sizes[0], tmp_path / "back.gguf").bytes == whole.stat().st_size
    single = split(whole, tmp_path / "one", WriteOptions(split_max_size=10**9)).paths
    assert [path.name for path in single] == ["one-00001-of-00001.gguf"]
    assert keys(single[0])["split.count"] == (["UINT16"], 1)
    merge(single[0], tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == whole.read_bytes()
    anew = split(sizes[0], tmp_path / "anew").paths
    assert [contents(path) for path in anew] == [contents(path) for path in split(whole, tmp_path / "p").paths]
    with pytest.raises(UsageError, match="say how large a part may be"):
        split(whole, tmp_path / "x", WriteOptions())
    with pytest.raises(OutputExistsError, match="Name the parts' prefix in it"):
        split(whole, tmp_path)


def test_a_wider_alignment_is_kept(tmp_path: Path) -> None:
    """gguf-split pads with 32 whatever the file says."""
    whole = whole_file(tmp_path / "whole.gguf", WriteOptions(alignment=4096))
    paths = split(whole, tmp_path / "p").paths
    assert all(int(it.data_offset) % 4096 == 0 for path in paths for it in GGUFReader(path).tensors)
    merge(paths[0], tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == whole.read_bytes()


def test_digests_are_made_where_there_are_none_and_left_out_on_request(whole: Path, tmp_path: Path) -> None:
    bare = whole_file(tmp_path / "bare.gguf", WriteOptions(digests=False))
    parts = split(bare, tmp_path / "p").paths
    assert verify_gguf(parts[0]).ok
    undigested = split(whole, tmp_path / "u", WriteOptions(split_max_tensors=5, digests=False)).paths
    with pytest.raises(VerificationError, match="carries no digests"):
        verify_gguf(undigested[0])
    merge(undigested[0], tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == whole.read_bytes()
    merge(parts[0], tmp_path / "b.gguf", digests=False)
    assert (tmp_path / "b.gguf").read_bytes() == bare.read_bytes()


@pytest.mark.parametrize("problem", [errno.EXDEV, errno.EOPNOTSUPP, None])
def test_bytes_are_read_and_written_where_the_system_does_not_copy(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: int | None
) -> None:
    def refuse(*arguments: object) -> int:
        if problem is None:
            return 0
        raise OSError(problem, os.strerror(problem))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    done = split(whole, tmp_path / "p")
    assert done.copied_by_system == 0
    merge(done.paths[0], tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == whole.read_bytes()


def test_big_endian_parts_become_little_endian(tmp_path: Path) -> None:
    numbers = np.arange(32, dtype=">f4")
    craft = Craft(
        [("general.architecture", scalar(8, "llama", Style(">")))],
        [Record("a", (32,), data=numbers.tobytes()), Record("b", (4, 8), data=numbers.tobytes())],
        style=Style(">"),
    )
    done = split(craft.write(tmp_path / "big.gguf"), tmp_path / "p", WriteOptions(split_max_tensors=1))
    merge(done.paths[0], tmp_path / "little.gguf")
    expected = np.arange(32, dtype="<f4").tobytes()
    assert contents(tmp_path / "little.gguf") == {"a": expected, "b": expected}
    assert verify_gguf(tmp_path / "little.gguf").ok


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 16
    path.write_bytes(data)


def refuse_merge(first: Path, message: str, kind: type[QconvError]) -> None:
    """Expect the error, and nothing new in the folder."""
    before = sorted(first.parent.iterdir())
    with pytest.raises(kind, match=message):
        merge(first, first.with_name("merged.gguf"))
    assert sorted(first.parent.iterdir()) == before


def test_one_flipped_bit_anywhere_in_any_part_stops_a_merge(whole: Path, tmp_path: Path) -> None:
    paths = split(whole, tmp_path / "p").paths
    random = np.random.default_rng(3)
    for path in paths:
        size = path.stat().st_size
        for at in (size - 40, *random.integers(24, size, 5)):
            flip(path, int(at))
            with pytest.raises((VerificationError, FormatError)) as caught:
                merge(paths[0], tmp_path / "merged.gguf")
            assert path.name in str(caught.value)
            assert not (tmp_path / "merged.gguf").exists()
            flip(path, int(at))
    merge(paths[0], tmp_path / "merged.gguf")


def test_a_flipped_bit_is_told_by_tensor(whole: Path, tmp_path: Path) -> None:
    paths = split(whole, tmp_path / "p").paths
    tensor = GGUFReader(paths[2]).tensors[1]
    flip(paths[2], int(tensor.data_offset) + 7)
    message = rf"p-00003-of-00004.gguf: tensor {tensor.name} differs from its digest; nothing was written"
    refuse_merge(paths[0], message, VerificationError)


def test_parts_in_the_wrong_order(whole: Path, tmp_path: Path) -> None:
    paths = split(whole, tmp_path / "p").paths
    paths[1].rename(tmp_path / "aside")
    paths[2].rename(paths[1])
    (tmp_path / "aside").rename(paths[2])
    refuse_merge(paths[0], r"p-00002-of-00004.gguf: split.no is 2, not 1", FormatError)


def test_parts_of_another_model(whole: Path, tmp_path: Path) -> None:
    paths = split(whole, tmp_path / "p").paths
    other = split(paths[0], tmp_path / "q", WriteOptions(split_max_tensors=6, metadata_only_first=True)).paths
    assert len(other) == len(paths)
    other[1].replace(paths[1])
    refuse_merge(paths[0], "another part has a tensor of this name|announces 18 tensors", FormatError)


def test_missing_parts_are_named(whole: Path, tmp_path: Path) -> None:
    paths = split(whole, tmp_path / "p").paths
    paths[2].unlink()
    refuse_merge(paths[0], r"p-00003-of-00004.gguf: part 3 of 4 is missing", MissingFileError)
    refuse_merge(paths[1], r"Open p-00001-of-00004.gguf instead", FormatError)
    paths[0].unlink()
    alone = r"p-00002-of-00004.gguf: it is part 2 of 4 and no model by itself; parts 1, 3 of 4 are missing\. "
    refuse_merge(paths[1], alone + r"Put p-00001-of-00004.gguf, p-00003-of-00004.gguf beside", MissingFileError)
    with pytest.raises(MissingFileError, match="parts 1, 3 of 4 are missing"):
        open_gguf(paths[1], CONTEXT)


def test_sizes(whole: Path, tmp_path: Path) -> None:
    """A truncated part: gguf-split merges it without a word."""
    paths = split(whole, tmp_path / "p", WriteOptions(split_max_tensors=5, digests=False)).paths
    size = paths[1].stat().st_size
    os.truncate(paths[1], size - 64)
    refuse_merge(paths[0], r"p-00002-of-00004.gguf: tensor .* reach beyond the end of the file", TruncatedError)
    os.truncate(paths[1], size + 1)
    refuse_merge(paths[0], r"p-00002-of-00004.gguf: .* 1 more than its tensors take", FormatError)


def test_what_is_no_part(whole: Path, tmp_path: Path) -> None:
    refuse_merge(whole, "is a whole model, no part of one", UsageError)
    (tmp_path / "text").write_text("hello")
    refuse_merge(tmp_path / "text", "no GGUF file", FormatError)
    refuse_merge(tmp_path / "absent.gguf", "no such file", MissingFileError)
    parts = split(whole, tmp_path / "p").paths
    with pytest.raises(OutputExistsError, match="the output is the input itself"):
        merge(parts[0], parts[1])


def test_a_damaged_header_is_not_given_a_new_digest(whole: Path, tmp_path: Path) -> None:
    at = whole.read_bytes().index(b"llama.attention.head_count_kv") + 29 + 4
    flip(whole, at)
    with pytest.raises(VerificationError, match="the header differs from its digest"):
        split(whole, tmp_path / "p")
    assert [path.name for path in tmp_path.iterdir()] == ["whole.gguf"]


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import qconv.convert.{module} as module

    real, calls = module.{owner}{name}, 0

    def killing(*arguments):
        global calls
        calls += 1
        if calls == {at}:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    module.{owner}{name} = killing
    sys.argv = ["qconv", "split", *sys.argv[1:], "--max-tensors", "5", "--threads", "1"]
    from qconv.convert.cli import main
    main()
"""


@pytest.mark.parametrize(
    ("module", "name", "at"),
    [
        ("output", "os.copy_file_range", 1),
        ("output", "os.copy_file_range", 12),
        ("output", "os.fsync", 3),
        ("output", "finish_renames", 1),
        ("output", "Path.replace", 2),
    ],
)
def test_killed_anywhere_and_run_again(whole: Path, tmp_path: Path, module: str, name: str, at: int) -> None:
    owner, _, name = name.rpartition(".")
    script = textwrap.dedent(KILLED).format(module=module, owner=f"{owner}." if owner else "", name=name, at=at)
    killed = subprocess.run([sys.executable, "-c", script, str(whole), str(tmp_path / "p")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "p-00001-of-00004.gguf").exists()  # the first part comes last
    first = split(whole, tmp_path / "p").paths[0]
    assert verify_gguf(first).ok
    assert {path.name for path in tmp_path.iterdir()} == {
        "whole.gguf",
        *(f"p-0000{number}-of-00004.gguf" for number in (1, 2, 3, 4)),
    }


def test_interrupted_work_leaves_nothing(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PositionalFile, "copy_into", full)
    with pytest.raises(QconvError, match="no room for the output"):
        split(whole, tmp_path / "p")
    assert [path.name for path in tmp_path.iterdir()] == ["whole.gguf"]


@pytest.mark.shared
def test_parts_that_gguf_split_wrote(shared: Path, tmp_path: Path) -> None:
    """Joined, and cut again as they were, they have the same keys and the same tensors in each part."""
    theirs = sorted((shared / "fixtures" / "gguf-split").glob("m-*.gguf"))
    merge(theirs[0], tmp_path / "whole.gguf", digests=False)
    merged = keys(tmp_path / "whole.gguf")
    assert not [key for key in merged if key.startswith("split.")]
    most = max(len(GGUFReader(path).tensors) for path in theirs)
    ours = split(tmp_path / "whole.gguf", tmp_path / "m", WriteOptions(split_max_tensors=most, digests=False)).paths
    assert [path.name for path in ours] == [path.name for path in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert keys(mine) == keys(other)
        assert contents(mine) == contents(other)
        assert mine.stat().st_size == other.stat().st_size


@pytest.mark.oracles
def test_llama_cpp_loads_parts_and_whole(example_model: Path, tmp_path: Path) -> None:
    from qconv.convert.api import quantize

    quantize(example_model, tmp_path / "whole.gguf", "q8_0")
    parts = split(tmp_path / "whole.gguf", tmp_path / "p", WriteOptions(split_max_size=2_000_000)).paths
    assert len(parts) > 2
    bare = split(tmp_path / "whole.gguf", tmp_path / "b", WriteOptions(split_max_tensors=9, metadata_only_first=True))
    merge(bare.paths[0], tmp_path / "merged.gguf")
    tokens = [1, 290, 310, 263, 293]
    expected = llamacpp_models.logits(tmp_path / "whole.gguf", tokens)
    for path in (parts[0], bare.paths[0], tmp_path / "merged.gguf"):
        assert np.array_equal(llamacpp_models.logits(path, tokens), expected)
