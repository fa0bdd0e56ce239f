"""llama.cpp's base file: bytes unpacked by hand, the size formula, and damaged files."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qconv.errors import FormatError, MissingFileError, TruncatedError
from qconv.runtime.measuring.divergence import compare, log_probabilities
from qconv.runtime.measuring.logits_file import encode_records, file_size, open_logits_file, start_logits_file
from qconv.runtime.measuring.windows import Windows, cut_standard

CONTEXT = 10


def save(path: Path, windows: Windows, logits: np.ndarray) -> Path:
    with path.open("wb") as file:
        start_logits_file(file, windows, logits.shape[1])
        file.write(encode_records(logits))
    return path


def sample(vocabulary: int, chunks: int = 3) -> tuple[Windows, np.ndarray]:
    rng = np.random.default_rng(vocabulary)
    windows = cut_standard(rng.integers(0, vocabulary, chunks * CONTEXT).tolist(), CONTEXT, None)
    scored = chunks * windows.scored_per_window
    return windows, rng.normal(0, 6, (scored, vocabulary)).astype(np.float32)


def test_size_is_the_one_that_was_observed() -> None:
    assert file_size(512, 32000, 3) == 48_972_284


@pytest.mark.parametrize("vocabulary", [40, 41])
def test_every_byte(tmp_path: Path, vocabulary: int) -> None:
    windows, logits = sample(vocabulary)
    raw = save(tmp_path / "base", windows, logits).read_bytes()
    assert len(raw) == file_size(CONTEXT, vocabulary, 3)
    assert raw[:20] == b"_logits_" + struct.pack("<iii", CONTEXT, vocabulary, 3)
    assert struct.unpack("<30i", raw[20:140]) == tuple(windows.tokens.ravel().tolist())
    width = 2 * (4 + vocabulary + vocabulary % 2)
    for i, row in enumerate(logits.tolist()):
        record = raw[140 + i * width : 140 + (i + 1) * width]
        scale, lowest = struct.unpack("<ff", record[:8])
        top = max(row)
        low = max(min(row), top - 16)
        normaliser = math.log(math.fsum(math.exp(x - top) for x in row))
        assert scale == pytest.approx((top - low) / 65535, rel=1e-5)
        assert lowest == pytest.approx(low - top - normaliser, abs=1e-5)
        codes = struct.unpack(f"<{vocabulary}H", record[8 : 8 + 2 * vocabulary])
        for code, x in zip(codes, row, strict=True):
            assert abs(code - max(0, (x - low) / scale)) <= 0.51
        assert codes[row.index(top)] == 65535
        assert set(record[8 + 2 * vocabulary :]) <= {0}


@pytest.mark.parametrize("vocabulary", [40, 41])
def test_round_trip(tmp_path: Path, vocabulary: int) -> None:
    windows, logits = sample(vocabulary)
    found = open_logits_file(save(tmp_path / "base", windows, logits))
    assert (found.vocabulary, found.windows.first_scored) == (vocabulary, windows.first_scored)
    assert (found.windows.tokens == windows.tokens).all()
    decoded = np.concatenate(list(found.chunks()))
    exact = log_probabilities(logits)
    near = logits > logits.max(axis=1, keepdims=True) - 16
    assert np.abs(decoded - exact)[near].max() < 0.51 * 16 / 65535
    floor = np.broadcast_to((exact.max(axis=1) - 16)[:, None], exact.shape)
    np.testing.assert_allclose(decoded[~near], floor[~near], atol=1e-4)
    itself = compare(decoded, logits, windows.targets.ravel())
    assert np.abs(itself.divergence).max() < 5e-4


def test_equal_logits_have_scale_zero(tmp_path: Path) -> None:
    windows, logits = sample(40)
    logits[:] = 3
    (first, *_) = open_logits_file(save(tmp_path / "base", windows, logits)).chunks()
    np.testing.assert_allclose(first, -math.log(40), rtol=1e-6)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "base", *sample(40))
    raw = path.read_bytes()
    for data, error, words in (
        (raw[:-2], TruncatedError, "Its making was interrupted"),
        (raw + b"\0", FormatError, r"but it has [\d,]+"),
        (b"_logitz_" + raw[8:], FormatError, "no file of log-probabilities"),
        (raw[:12], TruncatedError, "too short"),
        (raw[:12] + struct.pack("<i", -5) + raw[16:], FormatError, "impossible"),
        (raw[:20] + struct.pack("<i", 40) + raw[24:], FormatError, "outside the vocabulary"),
    ):
        path.write_bytes(data)
        with pytest.raises(error, match=words):
            open_logits_file(path)
    for scale, low in ((math.nan, 0.0), (-1.0, 0.0), (3e38, 0.0), (0.0, -math.inf), (0.0, 3e38)):
        path.write_bytes(raw[:140] + struct.pack("<ff", scale, low) + raw[148:])
        with pytest.raises(FormatError, match="chunk 0 has an impossible scale"):
            list(open_logits_file(path).chunks())
    with pytest.raises(MissingFileError):
        open_logits_file(tmp_path / "absent")


@given(st.binary(max_size=80))
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "base"
    path.write_bytes(b"_logits_" + data)
    with pytest.raises(FormatError):
        open_logits_file(path)
