"""Headers that lie: every length, count and extent of the old formats, none of which their own loaders checked.

Only qconv's errors may come out, soon, and without allocating what a header merely claims.
"""

from __future__ import annotations

import struct
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import ggml_files as crafted
import numpy as np
import pytest
from ggml_files import Craft, Record, sound, vocabulary
from gguf_files import CONTEXT
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qconv.errors import FormatError, QconvError, TruncatedError, UnknownArchitectureError
from qconv.formats.ggml import detect_ggml, open_ggml
from qconv.formats.summary import summarize

HUGE = (2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
NUMBERS = ("vocabulary", "embedding", "multiple", "heads", "layers", "rotary", "file type")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.bin"


def q8_0(rows: NDArray[np.float32]) -> bytes:
    return crafted.q8_0_rows(rows)[0]


def q4_0(rows: NDArray[np.float32]) -> bytes:
    return crafted.q4_0_rows(rows)[0]


def small(container: str = "ggjt", version: int = 3) -> Craft:
    """A sound file of some 70 kB."""
    if (container, version) == ("ggjt", 3):
        return sound(container, version, 6, lambda rows: bytes(rows.size // 32 * 22), 8)
    if (container, version) == ("ggjt", 1):
        return sound(container, version, 6, q8_0, 7)  # type 6 is Q5_0 on any other day
    return sound(container, version, 2, q4_0, 2)


def refuse(path: Path, content: bytes, message: str, kind: type[QconvError] = FormatError) -> QconvError:
    """Write the file, and expect an error that names it, in no time and without much memory."""
    path.write_bytes(content)
    begin = time.process_time()
    with pytest.raises(kind, match=message) as caught:
        open_ggml(path, CONTEXT)
    assert time.process_time() - begin < 2
    tracemalloc.start()
    try:
        with pytest.raises(kind):
            open_ggml(path, CONTEXT)
        assert tracemalloc.get_traced_memory()[1] < 2**20 + 10 * len(content)
    finally:
        tracemalloc.stop()
    assert caught.value.path == path
    return caught.value


def test_magic_numbers(path: Path) -> None:
    for magic, said in ((b"algg", "a LoRA adapter"), (b"nsgg", "the state of a session"), (b"ccgg", "a Falcon model")):
        refuse(path, magic + bytes(64), f"this is {said}")
        assert detect_ggml(path)
    refuse(path, b"GGUF" + bytes(64), "no file of the ggml family starts with b'GGUF'")
    assert not detect_ggml(path)
    refuse(path, b"tj", "ends inside the magic number", TruncatedError)
    assert not detect_ggml(path)
    assert not detect_ggml(path.parent)
    assert not detect_ggml(path.parent / "absent")


@pytest.mark.parametrize(
    ("container", "version"), [("ggjt", 0), ("ggjt", 4), ("ggmf", 2), ("ggmf", 101), ("ggjt", 2**32 - 1)]
)
def test_versions(path: Path, container: str, version: int) -> None:
    refuse(
        path,
        replace(small(), container=container, version=version).build(),
        f"this is version {version} of {container}",
    )


@pytest.mark.parametrize("index", [0, 1, 3, 4, 6])
@pytest.mark.parametrize("value", [0, *HUGE])
def test_numbers_that_no_model_has(path: Path, index: int, value: int) -> None:
    numbers = [*small().numbers]
    numbers[index] = value
    content = replace(small(), numbers=tuple(numbers)).build()
    if (index, value) in ((0, 2**16), (1, 2**16), (6, 0)):
        path.write_bytes(content)  # within the caps, but not what the file holds; or a number that only describes
        assert survive(path) == (index == 6)
        return
    refuse(path, content, "hyper-parameters are no Llama's", UnknownArchitectureError)


def test_other_families_start_alike(path: Path) -> None:
    """GPT-J repeats the number of tokens before the vocabulary; GPT-2's context is no multiple of its heads."""
    gpt_j = struct.pack("<4s8I", b"lmgg", 50400, 2048, 4096, 16, 28, 64, 1, 50400) + bytes(2**18)
    refuse(path, gpt_j, "length of a token is 50400.*GPT-J")
    gpt_2 = struct.pack("<4s6I", b"lmgg", 50257, 1024, 768, 12, 12, 1) + bytes(2**18)
    refuse(path, gpt_2, "no Llama's: 1024 columns for 12 heads.*GPT-2", UnknownArchitectureError)


def test_heads_that_do_not_divide(path: Path) -> None:
    numbers = (268, 64, 192, 7, 1, 9, 0)
    refuse(path, replace(small(), numbers=numbers).build(), "64 columns for 7 heads", UnknownArchitectureError)


@pytest.mark.parametrize("length", HUGE)
@pytest.mark.parametrize("container", ["ggml", "ggjt"])
def test_lengths_of_texts(path: Path, container: str, length: int) -> None:
    content = bytearray(small(container).build())
    start = 32 if container == "ggml" else 36
    content[start : start + 4] = struct.pack("<I", length)
    refuse(path, bytes(content), "the length of a token is", FormatError)


def test_more_tokens_than_bytes(path: Path) -> None:
    craft = Craft(numbers=(2**18, 0, 0, 1, 0, 0, 0), tokens=[])
    refuse(path, craft.build() + bytes(2**20), "ends inside the vocabulary of 262144 tokens", TruncatedError)


@pytest.mark.parametrize("container", ["ggml", "ggjt"])
def test_vocabularies_of_nothing_take_little_memory(path: Path, container: str) -> None:
    """A vocabulary without a byte of text costs no object per token."""
    tokens = [(b"", 0.0)] * 2**16
    path.write_bytes(Craft(container, numbers=(2**16, 0, 0, 1, 0, 0, 0), tokens=tokens).build())
    begin = time.process_time()
    open_ggml(path, CONTEXT).close()
    assert time.process_time() - begin < 2
    tracemalloc.start()
    try:
        with open_ggml(path, CONTEXT) as model:
            summarize(model)
            assert tracemalloc.get_traced_memory()[1] < 2**20 + 10 * path.stat().st_size
    finally:
        tracemalloc.stop()


def test_vocabularies_that_end_early(path: Path) -> None:
    refuse(path, replace(small(), tokens=vocabulary()[:200]).build(), "the vocabulary ends after 200 of 268 tokens")


def with_record(record: Record) -> bytes:
    craft = small()
    return replace(craft, records=[record, *craft.records[1:]]).build()


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (Record("a", (64, 4), 0, bytes(1024), dimensions=0), "has 0 dimensions"),
        (Record("a", (64, 4), 0, bytes(1024), dimensions=3), "has 3 dimensions"),
        (Record("a", (64, 4), 0, bytes(1024), dimensions=2**32 - 1), "has 4294967295 dimensions"),
        (Record("a", (64, 4), 0, bytes(1024), name_length=0), "name has 0 bytes"),
        (Record("a", (64, 4), 0, bytes(1024), name_length=2**31), "name has 2147483648 bytes"),
        (Record(b"\xff\xfe", (64, 4), 0, bytes(1024)), "name reads b'"),
        (Record("tok embeddings", (64, 4), 0, bytes(1024)), "name reads b'tok embeddings'"),
        (Record("a", (64, 4), 4, bytes(1024)), r"tensor a: .*ggjt version 3 has no tensors of type 4 \(Q4_2\)"),
        (Record("a", (64, 4), 9, bytes(1024)), r"type 9 \(Q8_1\)"),
        (Record("a", (64, 4), 77, bytes(1024)), "no tensors of type 77"),
        (Record("a", (0, 4), 0, b""), "its shape is"),
        (Record("a", (64, 0), 0, b""), "its shape is"),
        (Record("a", (33, 4), 2, bytes(100)), "whole blocks of 32"),
        (Record("a", (64,), 1, bytes(128)), "a vector is stored as F16"),
        (Record("a", (2**31, 2**31), 0, bytes(64)), "reach beyond"),
        (Record("a", (2**32 - 32, 2**32 - 1), 2, bytes(64)), "reach beyond"),
        (Record("a", (2**30,), 0, bytes(64)), "reach beyond"),
    ],
)
def test_records_that_lie(path: Path, record: Record, said: str) -> None:
    error = refuse(path, with_record(record), said)
    assert error.offset is not None


def test_duplicates_and_too_many(path: Path) -> None:
    craft = small()
    refuse(path, replace(craft, records=[*craft.records, craft.records[0]]).build(), "the file holds it twice")
    more = [Record(f"t{i}", (1,), 0, bytes(4)) for i in range(20)]
    refuse(path, replace(craft, records=[*craft.records, *more]).build(), "1 layers have no more than 14 tensors")


@pytest.mark.parametrize("extra", [1, 11])
def test_what_follows_the_last_tensor(path: Path, extra: int) -> None:
    refuse(path, replace(small(), tail=b"\0" * extra).build(), f"{extra} bytes follow the last tensor", TruncatedError)


@pytest.mark.parametrize(
    ("version", "number", "kind"), [(2, 4, "Q4_2"), (1, 12, "Q4_K"), (2, 14, "Q6_K"), (3, 5, "Q4_3")]
)
def test_types_of_another_generation(path: Path, version: int, number: int, kind: str) -> None:
    record = Record("output.weight", (256, 4), number, bytes(4096))
    craft = replace(small("ggjt", version), records=[record])
    refuse(path, craft.build(), rf"output\.weight: .*version {version} has no tensors of type {number} \({kind}\)")


def test_parts_beyond_reason(path: Path) -> None:
    """An embedding table of one column would make 64 parts of 64 columns, and of 65,536 columns as many."""
    table = Record("tok_embeddings.weight", (1, 268), 0, bytes(1072))
    refuse(
        path, replace(small(), records=[table]).build(), r"one of 64 parts of a model; missing: m\.bin\.1, m\.bin\.2"
    )
    craft = replace(small(), records=[table], numbers=(268, 2**16, 192, 4, 1, 16, 0))
    refuse(path, craft.build(), "tensors are missing", QconvError)


def survive(path: Path) -> bool:
    """Open the file and look at everything in it; returns whether it was accepted."""
    try:
        model = open_ggml(path, CONTEXT)
    except QconvError as error:
        assert str(error)
        return False
    with model:
        for field in model.metadata.values():
            if not isinstance(field.value, str | int | float | np.ndarray):
                assert all(isinstance(text, str) for text in field.value)
        for tensor in model.tensors.values():
            assert tensor.read(0, tensor.row_count).nbytes == tensor.nbytes
        summarize(model).to_dict()
    return True


SAMPLES = [("ggml", 0), ("ggmf", 1), ("ggjt", 1), ("ggjt", 2), ("ggjt", 3)]


@pytest.mark.parametrize(("container", "version"), SAMPLES)
def test_truncations(path: Path, container: str, version: int) -> None:
    """Every length around the header and records, and many between: nothing but the whole file is accepted."""
    data = small(container, version).build()
    generator = np.random.default_rng(version)
    lengths = {*range(60), *range(len(data) - 300, len(data)), *generator.integers(0, len(data), 200).tolist()}
    path.write_bytes(data)
    assert survive(path)
    for length in sorted(lengths):
        path.write_bytes(data[:length])
        assert not survive(path), length


def places(craft: Craft) -> list[int]:
    """Where the header, the vocabulary's first entries and the records lie: what a mutation should hit."""
    found = list(range(120))
    position = len(replace(craft, records=()).build())
    for record in craft.records:
        built = record.build(position, craft.container == "ggjt")
        found += range(position, position + len(built) - len(record.data))
        position += len(built)
    return found


def mutate(data: bytes, targets: list[int], generator: np.random.Generator) -> bytes:
    """Return ``data`` with one to three numbers overwritten, bits flipped, stretches removed or repeated."""
    values = (0, 1, 2, 3, 4, 6, 8, 12, 14, 15, 21, 31, 32, 64, 255, 256, 2**16, 2**20, 2**24, 2**31, 2**32 - 1)
    mutant = bytearray(data)
    for _ in range(generator.integers(1, 4)):
        at = (
            int(targets[generator.integers(len(targets))])
            if generator.random() < 0.9
            else int(generator.integers(len(data)))
        )
        match int(generator.integers(4)):
            case 0:
                if at < len(mutant):
                    mutant[at] ^= 1 << int(generator.integers(8))
            case 1:
                width = int(generator.choice([1, 4]))
                value = int(values[generator.integers(len(values))]) % 2 ** (8 * width)
                mutant[at : at + width] = value.to_bytes(width, "little")
            case 2:
                del mutant[at : at + int(generator.integers(1, 40))]
            case _:
                mutant[at:at] = mutant[at : at + int(generator.integers(1, 40))]
    return bytes(mutant)


@pytest.mark.parametrize(("container", "version"), SAMPLES)
def test_thousands_of_mutations(path: Path, container: str, version: int) -> None:
    craft = small(container, version)
    data, targets = craft.build(), places(craft)
    generator = np.random.default_rng(20230310 + version)
    accepted = 0
    for _ in range(1000):
        mutant = mutate(data, targets, generator)
        path.write_bytes(mutant)
        begin = time.process_time()
        accepted += survive(path)
        assert time.process_time() - begin < 2
    assert 20 < accepted < 800


@settings(max_examples=200, deadline=2000, derandomize=True)
@given(
    st.binary(max_size=300),
    st.sampled_from(SAMPLES),
    st.tuples(*[st.sampled_from([0, 1, 2, 4, 64, 268, 2**32 - 1])] * 7),
)
def test_any_bytes_behind_a_sound_start(
    tmp_path_factory: pytest.TempPathFactory, rest: bytes, kind: tuple[str, int], numbers: tuple[int, ...]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.bin"
    path.write_bytes(Craft(*kind, numbers=numbers, tokens=[]).build() + rest)
    survive(path)
