"""Headers that lie: each published advisory against GGUF readers, and thousands of mutations.

Only errors of the FormatError family may come out, soon, and without allocating what a header merely claims.
"""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import gguf_files as crafted
import numpy as np
import pytest
from gguf_files import CONTEXT, Craft, Record, Style, array, scalar
from hypothesis import given, settings
from hypothesis import strategies as st

from qconv.errors import FormatError, TruncatedError
from qconv.formats.gguf import open_gguf
from qconv.formats.summary import summarize

TOKENS = ("tokenizer.ggml.tokens", array(crafted.STRING, ["<unk>", "a", "<0x0A>"]))
HUGE = (2**31, 2**32 - 1, 2**32, 2**61, 2**63 - 1, 2**63, 2**64 - 1)


def refuse(path: Path, craft: Craft, message: str, kind: type[FormatError] = FormatError) -> FormatError:
    """Write the file, and expect an error that names it, in no time and without much memory."""
    craft.write(path)
    return refuse_file(path, message, kind)


def refuse_file(path: Path, message: str, kind: type[FormatError] = FormatError) -> FormatError:
    tracemalloc.start()
    begin = time.process_time()
    with pytest.raises(kind, match=message) as caught:
        open_gguf(path, CONTEXT)
    elapsed = time.process_time() - begin
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.path == path
    assert elapsed < 2
    assert peak < 2**20 + 10 * path.stat().st_size
    return caught.value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


@pytest.mark.parametrize("count", HUGE)
@pytest.mark.parametrize("kind", [crafted.UINT8, crafted.STRING, crafted.FLOAT64, crafted.BOOL])
def test_array_counts(path: Path, kind: int, count: int) -> None:
    """TALOS-2024-1912, CVE-2024-21825: counts of arrays."""
    entry = ("k", array(kind, [], count))
    refuse(path, Craft([entry]), f"length of the array k is {count}, but only \\d+ bytes follow", TruncatedError)


@pytest.mark.parametrize("length", HUGE)
def test_string_lengths(path: Path, length: int) -> None:
    """TALOS-2024-1913, CVE-2024-23496: a string length whose successor wraps, in keys, values, arrays and names."""
    bad = crafted.PLAIN.text("", length)
    value = struct.pack("<I", crafted.STRING) + bad
    refuse(path, Craft([("k", value)]), "length of the value of k is", TruncatedError)
    element = struct.pack("<IIQ", crafted.ARRAY, crafted.STRING, 2) + crafted.PLAIN.text("ok") + bad
    refuse(path, Craft([("k", element), ("pad", scalar(crafted.STRING, "x" * 99))]), "element 1 of the array k")
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + bad + bytes(64))
    refuse_file(path, "length of a metadata key", TruncatedError)
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 1, 0) + bad + bytes(64))
    refuse_file(path, "length of a tensor name", TruncatedError)


@pytest.mark.parametrize("dimensions", [5, 2**31, 2**32 - 1])
def test_dimension_counts(path: Path, dimensions: int) -> None:
    """TALOS-2024-1914, CVE-2024-21802, and a huge number of dimensions."""
    refuse(path, Craft(records=[Record("a", dimensions=dimensions)]), f"tensor a: .*it has {dimensions} dimensions")


@pytest.mark.parametrize("count", [2**17 + 1, 2**32, 2**56, 2**63, 2**64 - 1])
def test_tensor_and_key_counts(path: Path, count: int) -> None:
    """TALOS-2024-1915 and -1916, CVE-2024-21836 and -23605: counts whose product with a record's size wraps."""
    refuse(path, Craft(tensor_count=count), f"number of tensors is {count}, but only", TruncatedError)
    refuse(path, Craft(key_count=count), f"number of metadata keys is {count}, but only", TruncatedError)


def test_counts_above_the_caps(path: Path) -> None:
    """Enough bytes follow, but no model has so many."""
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 2**17 + 1, 0) + bytes(2**22))
    refuse_file(path, "number of tensors is 131073, more than the 131072")
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**16 + 1) + bytes(2**20))
    refuse_file(path, "number of metadata keys is 65537, more than the 65536")


def test_sums_of_sizes(path: Path) -> None:
    """CVE-2025-53630, CVE-2026-27940: the running sum of padded sizes wraps."""
    records = [Record("a", (2**61,), kind=24, offset=0), Record("b", (2**63 - 1,), kind=24, offset=2**61)]
    refuse(path, Craft(records=records), "tensor a: .*2305843009213693952 bytes reach beyond", TruncatedError)
    records = [Record("a"), Record("b", offset=2**64 - 32)]
    refuse(path, Craft(records=records), "tensor b: .*reach beyond", TruncatedError)


@pytest.mark.parametrize(
    ("extents", "said"),
    [
        ((2**31, 2**31), "reach beyond"),  # 2^62 floats are 2^64 bytes
        ((2**62,), "reach beyond"),
        ((2**32, 2**32), "overflows 63 bits"),
        ((2**16, 2**16, 2**16, 2**16), "overflows 63 bits"),
        ((2**64 - 1,), "overflows 63 bits"),
    ],
)
def test_products_that_wrap(path: Path, extents: tuple[int, ...], said: str) -> None:
    """CVE-2026-33298: elements times bytes of each wraps to little."""
    refuse(path, Craft(records=[Record("a", extents)]), f"tensor a: .*{said}")


@pytest.mark.parametrize("extents", [(0,), (4, 0), (0, 0, 0, 0)])
def test_zero_dimensions(path: Path, extents: tuple[int, ...]) -> None:
    """GHSA-3p75-pq92-q28f: a dimension of zero as divisor."""
    refuse(path, Craft(records=[Record("a", extents)]), "tensor a: .*a dimension is zero")


def test_a_token_of_great_length(path: Path) -> None:
    """CVE-2025-49847: the length of a token's text does not fit where it goes."""
    long = array(crafted.STRING, [b"x" * (2**24 + 1)])
    refuse(path, Craft([("tokenizer.ggml.tokens", long)]), "element 0 of .*tokens has 16777217 bytes, more than")


def test_a_token_count_that_a_cast_shortens(path: Path) -> None:
    """CVE-2025-52566: the number of tokens looks small or negative in 32 bits."""
    for count in (2**32 + 1, 2**31 + 1):
        craft = Craft([("tokenizer.ggml.tokens", array(crafted.STRING, ["a"], count))])
        refuse(path, craft, f"tokens is {count}, but only", TruncatedError)


@pytest.mark.parametrize("offset", [64, 4096, 2**32, 2**62])
def test_data_beyond_the_file(path: Path, offset: int) -> None:
    """CVE-2026-7482: offset and size reach beyond the end of the file."""
    error = refuse(path, Craft(records=[Record("a", offset=offset)]), "tensor a: .*reach beyond", TruncatedError)
    assert error.tensor == "a"
    assert error.remedy is not None


@pytest.mark.parametrize("alignment", [0, 3, 48, 2**17, 2**31, 2**32 - 1])
def test_alignments(path: Path, alignment: int) -> None:
    """Alignment zero, no power of two, or without bound."""
    refuse(path, Craft([("general.alignment", scalar(crafted.UINT32, alignment))]), f"alignment is {alignment}")
    refuse(path, Craft([("general.alignment", scalar(crafted.UINT64, 32))]), "UINT64, not UINT32")


@pytest.mark.parametrize("kind", [crafted.UINT8, crafted.INT8, crafted.BOOL])
@pytest.mark.parametrize("key", ["scores", "token_type"])
def test_vocabulary_arrays_of_one_byte(path: Path, key: str, kind: int) -> None:
    """Arrays declared with one-byte elements where readers take four."""
    entry = (f"tokenizer.ggml.{key}", array(kind, [1, 1, 1]))
    refuse(path, Craft([TOKENS, entry]), f"tokenizer.ggml.{key} should be an array of")


@pytest.mark.parametrize("key", ["scores", "token_type"])
def test_vocabulary_arrays_of_other_lengths(path: Path, key: str) -> None:
    kind = crafted.FLOAT32 if key == "scores" else crafted.INT32
    refuse(path, Craft([TOKENS, (f"tokenizer.ggml.{key}", array(kind, [1, 1]))]), "has 2 elements, but .* has 3")


@pytest.mark.parametrize("token", ["<0x-1>", "<0x>", "<0x0A", "<0x100>", "<0xG0>", "x"])
def test_byte_tokens(path: Path, token: str) -> None:
    """A byte token that is no byte."""
    entries = [
        ("tokenizer.ggml.tokens", array(crafted.STRING, ["<0x0A>", token])),
        ("tokenizer.ggml.token_type", array(crafted.INT32, [6, 6])),
    ]
    refuse(path, Craft(list(entries)), "token 1 is a byte, but reads")


@pytest.mark.parametrize("kind", [-1, 7, 2**31 - 1])
def test_token_types_out_of_range(path: Path, kind: int) -> None:
    entries = [TOKENS, ("tokenizer.ggml.token_type", array(crafted.INT32, [1, kind, 1]))]
    refuse(path, Craft(list(entries)), f"token_type holds values from .*{kind}")


def test_special_ids_outside_the_vocabulary_are_noted(path: Path) -> None:
    """Files with such an id are common (a padding token of -1), and nothing but the id is wrong."""
    Craft([TOKENS, ("tokenizer.ggml.padding_token_id", scalar(crafted.UINT32, 2**32 - 1))]).write(path)
    with open_gguf(path, CONTEXT) as model:
        assert model.notes == ("tokenizer.ggml.padding_token_id is 4294967295, but there are only 3 tokens",)
        tokenizer = summarize(model).tokenizer
        assert tokenizer is not None
        assert tokenizer.special["padding"].text is None


@pytest.mark.parametrize(("kind", "count"), [(crafted.UINT32, 2**32 - 1), (crafted.UINT64, 2**63), (crafted.INT32, -1)])
def test_block_counts(path: Path, kind: int, count: int) -> None:
    """A number of blocks beyond any array that it may index."""
    entries = [
        ("general.architecture", scalar(crafted.STRING, "llama")),
        ("llama.block_count", scalar(kind, count)),
    ]
    refuse(path, Craft(list(entries)), f"llama.block_count is {count}")


@pytest.mark.parametrize("number", [2**14, 2**31, 2**64, 10**900])
@pytest.mark.parametrize("name", ["blk.{}.attn_q.weight", "direction.{}"])
def test_layer_numbers_in_names(path: Path, name: str, number: int) -> None:
    refuse(path, Craft(records=[Record(name.format(number))]), "the layer number .* is too large")


def test_value_types_out_of_range(path: Path) -> None:
    for kind in (13, 255, 2**32 - 1):
        refuse(path, Craft([("k", struct.pack("<IQ", kind, 0))]), f"type of k is {kind}, which is no GGUF value type")
        entry = struct.pack("<IIQ", crafted.ARRAY, kind, 0)
        refuse(path, Craft([("k", entry)]), f"element type of k is {kind}")


def test_tensor_types_that_are_unknown(path: Path) -> None:
    error = refuse(path, Craft(records=[Record("a", kind=200)]), "tensor a: .*tensor type 200 is unknown")
    assert error.remedy == "A newer qconv or a plugin may know it."
    refuse(path, Craft(records=[Record("a", kind=31)]), "tensor type 31 is Q4_0_4_4, which ggml has given up")


def test_nested_arrays(path: Path) -> None:
    """An array of arrays of arrays …: readers that recurse run out of stack."""
    nested = struct.pack("<I", crafted.ARRAY) + struct.pack("<IQ", crafted.ARRAY, 1) * 5000
    refuse(path, Craft([("k", nested)]), "k is an array of arrays")


def test_placement(path: Path) -> None:
    refuse(path, Craft(records=[Record("a"), Record("b", offset=0)]), "tensor [ab]: .*overlaps")
    refuse(path, Craft(records=[Record("a", offset=8, data=bytes(64))]), "tensor a: .*no multiple of the alignment 32")
    refuse(path, Craft(records=[Record("a", (33,), kind=8, data=bytes(68))]), "tensor a: .*blocks of 32 weights")


def test_names(path: Path) -> None:
    entry = ("k", scalar(crafted.UINT8, 1))
    refuse(path, Craft([entry, entry]), "the key k occurs twice")
    refuse(path, Craft(records=[Record("a"), Record("a")]), "tensor a: .*two tensors have this name")
    refuse(path, Craft([("", scalar(crafted.UINT8, 1))]), "a metadata key is empty")
    refuse(path, Craft([(b"\xff", scalar(crafted.UINT8, 1))]), "a metadata key is no valid UTF-8")
    refuse(path, Craft(records=[Record(b"\xc3(")]), "a tensor name is no valid UTF-8")
    refuse(path, Craft(records=[Record("n" * 1025)]), "length of a tensor name is 1025, more than the 1024")


def test_truth_values(path: Path) -> None:
    refuse(path, Craft([("k", scalar(crafted.BOOL, 2))]), "should be true or false")
    refuse(path, Craft([("k", array(crafted.BOOL, [0, 1, 255]))]), "should be true or false")


def test_magic_and_version(path: Path) -> None:
    for magic in (b"", b"GG", b"ggjt", b"FUGG"):
        refuse(path, Craft(magic=magic), "no GGUF file")
    for version in (0, 4, 2**31):
        refuse(path, Craft(version=version), "GGUF version .* is unknown")
    for version in (1, 2):
        refuse(path, Craft(version=version, style=Style(order=">")), f"big-endian GGUF version {version} is unknown")
    path.write_bytes(b"")
    refuse_file(path, "no GGUF file")


def test_big_endian_blocks_of_unknown_order(path: Path) -> None:
    craft = Craft(records=[Record("a", (256,), kind=16, data=bytes(66))], style=Style(order=">"))
    refuse(path, craft, "tensor a: .*big-endian IQ2_XXS cannot be read")


def sample() -> Craft:
    """A small model with a value of every kind."""
    return Craft(
        [
            ("general.architecture", scalar(crafted.STRING, "llama")),
            ("general.alignment", scalar(crafted.UINT32, 32)),
            ("llama.block_count", scalar(crafted.UINT32, 1)),
            *((f"k{kind}", scalar(kind, 1)) for kind in crafted.CODES),
            TOKENS,
            ("tokenizer.ggml.scores", array(crafted.FLOAT32, [0, -1, -2])),
            ("tokenizer.ggml.token_type", array(crafted.INT32, [2, 1, 6])),
            ("tokenizer.ggml.bos_token_id", scalar(crafted.UINT32, 1)),
            ("flags", array(crafted.BOOL, [0, 1])),
        ],
        [
            Record("token_embd.weight", (32, 3), data=bytes(range(128)) * 3),
            Record("blk.0.attn_q.weight", (32, 2), kind=8, data=bytes(68)),
        ],
    )


def survive(path: Path) -> bool:
    """Open the file and look at everything in it; returns whether it was accepted."""
    try:
        model = open_gguf(path, CONTEXT)
    except FormatError as error:
        assert str(error)
        return False
    with model:
        for field in model.metadata.values():
            if not isinstance(field.value, str | int | float | np.ndarray):
                assert all(isinstance(text, str) for text in field.value)
        for tensor in model.tensors.values():
            assert tensor.read(0, tensor.row_count).nbytes == tensor.nbytes
        try:
            summarize(model).to_dict()
        except FormatError as error:
            assert str(error)
    return True


def test_the_sample_is_sound(path: Path) -> None:
    sample().write(path)
    assert survive(path)


def test_every_truncation(path: Path) -> None:
    data = sample().build()
    needed = len(data) - 28  # padding after the last tensor carries nothing
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert survive(path) == (length >= needed), length


def test_thousands_of_mutations(path: Path) -> None:
    """Numbers of every width written over any place of the header, and stretches removed or repeated."""
    data = sample().build()
    header = len(sample().header())
    generator = np.random.default_rng(20240129)
    values = (0, 1, 2, 4, 9, 31, 255, 2**16, 2**20, 2**24, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)
    accepted = 0
    tracemalloc.start()
    for _ in range(5000):
        mutant = bytearray(data)
        for _ in range(generator.integers(1, 4)):
            at = int(generator.integers(header))
            match int(generator.integers(4)):
                case 0:
                    mutant[at] ^= 1 << int(generator.integers(8))
                case 1:
                    width = int(generator.choice([1, 4, 8]))
                    value = int(values[generator.integers(len(values))]) % 2 ** (8 * width)
                    mutant[at : at + width] = value.to_bytes(width, "little")
                case 2:
                    del mutant[at : at + int(generator.integers(1, 40))]
                case _:
                    mutant[at:at] = mutant[at : at + int(generator.integers(1, 40))]
        path.write_bytes(mutant)
        begin = time.process_time()
        accepted += survive(path)
        assert time.process_time() - begin < 2
    assert tracemalloc.get_traced_memory()[1] < 2**21
    tracemalloc.stop()
    assert 100 < accepted < 4000


@settings(max_examples=200, deadline=2000, derandomize=True)
@given(st.binary(max_size=200), st.sampled_from([1, 2, 3]), st.integers(0, 3), st.integers(0, 3))
def test_any_bytes_behind_a_sound_start(
    tmp_path_factory: pytest.TempPathFactory, rest: bytes, version: int, tensors: int, keys: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    counts = struct.pack("<II" if version == 1 else "<QQ", tensors, keys)
    path.write_bytes(b"GGUF" + struct.pack("<I", version) + counts + rest)
    survive(path)
