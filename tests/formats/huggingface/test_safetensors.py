from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_folder import raw_safetensors, safetensors_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from qconv_encodings import ENCODINGS
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save_file

from qconv.errors import EncodingError, FormatError, TruncatedError
from qconv.formats.huggingface.safetensors import StoredTensor, lazy_tensor, read_header
from qconv.formats.positional import PositionalFile


def header_of(path: Path) -> dict[str, StoredTensor]:
    file = PositionalFile(path)
    try:
        return read_header(file)[0]
    finally:
        file.close()


def refused(tmp_path: Path, content: bytes) -> FormatError:
    """Return the error for a file of this content; the reference reader must refuse it too."""
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        header_of(path)
    assert caught.value.path == path
    assert caught.value.remedy
    return caught.value


def entry(shape: Any = (2, 2), offsets: Any = (0, 16), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def content(header: Any, body: bytes = bytes(16)) -> bytes:
    return raw_safetensors(json.dumps(header).encode(), body)


def test_reads_what_the_reference_writer_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {
        "matrix": rng.standard_normal((5, 7)).astype(np.float32),
        "half": rng.standard_normal((3, 2, 4)).astype(np.float16),
        "double": rng.standard_normal(6),
        "scalar": np.array(3.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "counts": np.arange(-4, 4, dtype=np.int64),
    }
    path = tmp_path / "m.safetensors"
    save_file(arrays, path, metadata={"format": "pt"})
    file = PositionalFile(path)
    tensors, metadata = read_header(file)
    assert metadata == {"format": "pt"}
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        tensor = lazy_tensor(tensors[name], ENCODINGS)
        assert tensor.shape == array.shape
        assert tensor.read(0, tensor.row_count).tobytes() == array.tobytes()
    matrix = lazy_tensor(tensors["matrix"], ENCODINGS)
    with ThreadPoolExecutor(4) as pool:
        for row, found in enumerate(pool.map(lambda row: matrix.rows(row, row + 1), range(5))):
            assert np.array_equal(found[0], arrays["matrix"][row])
    file.close()


def test_brain_floats_stay_as_they_are(tmp_path: Path) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes({"w": ("BF16", (256, 256), bits.tobytes())}))
    file = PositionalFile(path)
    tensor = lazy_tensor(read_header(file)[0]["w"], ENCODINGS)
    assert tensor.encoding.name == "BF16"
    assert np.array_equal(tensor.read(0, 256).view(np.uint16), bits)
    file.close()


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "U8", "BOOL", "F8_E8M0"])
def test_dtypes_that_are_no_weights_are_listed_but_not_read(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes({"w": (dtype, (4, 4), bytes(16))}))
    file = PositionalFile(path)
    tensors, _ = read_header(file)
    with pytest.raises(EncodingError, match=dtype) as caught:
        lazy_tensor(tensors["w"], ENCODINGS)
    assert caught.value.tensor == "w"
    file.close()


def test_a_file_that_shrinks_is_truncated_not_wrong(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content({"w": entry()}))
    file = PositionalFile(path)
    tensor = lazy_tensor(read_header(file)[0]["w"], ENCODINGS)
    with path.open("r+b") as shrinking:
        shrinking.truncate(file.size - 4)
    assert tensor.read(0, 1).shape == (1, 8)
    with pytest.raises(TruncatedError) as caught:
        tensor.read(1, 2)
    assert caught.value.tensor == "w"
    file.close()


TWICE = b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
TWICE_INSIDE = b'{"w":{"dtype":"F32","dtype":"F16","shape":[4],"data_offsets":[0,16]}}'


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "too few"),
        (b"\x01\0\0", "too few"),
        (raw_safetensors(b"{}", b"", 100_000_001), "100000001 bytes, more than the format's limit"),
        (raw_safetensors(b"{}", b"", (1 << 64) - 1), "more than the format's limit"),
        (raw_safetensors(b"{}", b"", 50), "the file has 2 after its length"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (raw_safetensors(b" {}", b""), "does not start with '{'"),
        (raw_safetensors(b"[]", b""), "does not start with '{'"),
        (raw_safetensors(b"{", b""), "is no JSON"),
        (raw_safetensors(b'{"\xff":1}', b""), "is no JSON"),
        (raw_safetensors(b'{"a":' * 50_000, b""), "is no JSON"),
        (raw_safetensors(TWICE, bytes(16)), "'w' twice"),
        (raw_safetensors(TWICE_INSIDE, bytes(16)), "'dtype' twice"),
        (content({"w": entry([2.0, 2])}), "the number 2.0"),
        (raw_safetensors(b'{"w":{"dtype":"F32","shape":[1e1],"data_offsets":[0,40]}}', bytes(40)), "the number 1e1"),
        (raw_safetensors(b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}', bytes(16)), "the number NaN"),
        (raw_safetensors(b'{"w":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,16]}}', b""), "JSON"),
        (content({"w": entry() | {"more": 1}}), "and nothing else"),
        (content({"w": {"dtype": "F32", "shape": [4]}}), "and nothing else"),
        (content({"w": [1]}), "and nothing else"),
        (content({"": entry()}), "1 to 1024"),
        (content({"w" * 1025: entry()}), "1025 characters"),
        (content({"w": entry(dtype="F33")}), "dtype 'F33' is unknown"),
        (content({"w": entry(dtype=7)}), "dtype 7 is unknown"),
        (content({"w": entry(dtype=["F32"])}), "is unknown"),
        (content({"w": entry([True, 4])}), "non-negative integers"),
        (content({"w": entry([-2, -2])}), "non-negative integers"),
        (content({"w": entry(["2", 2])}), "non-negative integers"),
        (content({"w": entry([1] * 9)}), "at most 8"),
        (content({"w": entry(4)}), "at most 8"),
        (content({"w": entry([1 << 63])}), "non-negative integers"),
        (content({"w": entry([1 << 32, 1 << 32])}), "more elements than any file holds"),
        (content({"w": entry([0, 1 << 62, 1 << 62], [0, 0])}, b""), "more elements than any file holds"),
        (content({"w": entry(offsets=[16, 0])}), "take 16 bytes, the offsets give -16"),
        (content({"w": entry(offsets=[-16, 0])}), "two non-negative integers"),
        (content({"w": entry(offsets=[0])}), "two non-negative integers"),
        (content({"w": entry(offsets=[0, 8])}), "take 16 bytes, the offsets give 8"),
        (content({"w": entry([3], [0, 1], "F4")}), "12 bits"),
        (content({"a": entry(), "b": entry()}), "an overlap"),
        (content({"a": entry(), "b": entry(offsets=[8, 24])}, bytes(24)), "an overlap"),
        (content({"a": entry(offsets=[4, 20])}, bytes(20)), "a hole"),
        (content({"a": entry(), "b": entry(offsets=[20, 36])}, bytes(36)), "a hole"),
        (content({"w": entry()}, bytes(15)), "the tensors end at byte"),
        (content({"w": entry()}, bytes(17)), "1 bytes follow the last tensor"),
        (content({}, bytes(1)), "1 bytes follow the last tensor"),
        (content({"__metadata__": {"a": 1}, "w": entry()}), "strings to strings"),
        (content({"__metadata__": [], "w": entry()}), "strings to strings"),
    ],
)
def test_lying_headers_are_refused(tmp_path: Path, raw: bytes, sentence: str) -> None:
    assert sentence in str(refused(tmp_path, raw))


def test_a_short_download_is_truncated(tmp_path: Path) -> None:
    assert isinstance(refused(tmp_path, content({"w": entry()}, bytes(8))), TruncatedError)
    assert isinstance(refused(tmp_path, content({"w": entry()})[:40]), TruncatedError)


def test_many_equal_keys_are_refused_at_once(tmp_path: Path) -> None:
    keys = ",".join(f'"{number}":1' for number in range(200_000))
    refused(tmp_path, raw_safetensors(f'{{{keys},"199999":1}}'.encode(), b""))


SOUND = {
    "a": ("F32", (2, 3), bytes(range(24))),
    "b": ("BF16", (4,), bytes(8)),
    "c": ("I64", (), bytes(8)),
    "d": ("F16", (0, 2), b""),
}
VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [0, 1, -1, 2, 8, 24, 40, 1 << 31, 1 << 63, (1 << 64) - 1, True, None, 1.5, "F32", "F16", [], {}]
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A sound file with bytes flipped, cut or added, or with values of its header exchanged."""
    raw = safetensors_bytes(SOUND, {"format": "pt"})
    if draw(st.booleans()):
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        for _ in range(draw(st.integers(1, 3))):
            name = draw(st.sampled_from(["a", "b", "c", "d"]))
            key = draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
            found = header[name].get(key)
            if isinstance(found, list) and found and draw(st.booleans()):
                found[draw(st.integers(0, len(found) - 1))] = draw(VALUES)
            else:
                header[name][key] = draw(VALUES)
        return raw_safetensors(json.dumps(header).encode(), raw[8 + length :])
    data = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data)


REFERENCE: Any = deserialize  # it has no annotations


@settings(max_examples=400, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=mutated())
def test_mutations_are_refused_or_read_as_the_reference_reads_them(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "mutated.safetensors"
    path.write_bytes(raw)
    file = PositionalFile(path)
    try:
        tensors, _ = read_header(file)
    except FormatError:
        return
    finally:
        file.close()
    try:
        reference = dict(REFERENCE(raw))
    except SafetensorError as error:  # names may be odd, never the layout
        raise AssertionError(f"accepted what the reference refuses: {error}") from error
    assert tensors.keys() == reference.keys()
    for name, tensor in tensors.items():
        assert list(tensor.shape) == reference[name]["shape"]
        assert raw[tensor.offset : tensor.offset + tensor.nbytes] == bytes(reference[name]["data"])
