"""The compact base: what it keeps, what its file says, and what is refused."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qconv.errors import FormatError, TruncatedError, VerificationError
from qconv.runtime.measuring.compact_base import CompactWriter, encode_top, open_compact_base
from qconv.runtime.measuring.divergence import log_probabilities
from qconv.runtime.measuring.identity import ModelIdentity, same_lineage
from qconv.runtime.measuring.windows import Windows, cut_standard, cut_strided

VOCABULARY, KEPT = 50, 6
MODEL = ModelIdentity("a model", "llama", "ab" * 32, (1.0, 0.5))
TEXTS = [{"name": "t.txt", "sha256": "cd" * 32}]


def sample(windows: Windows) -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.normal(0, 3, (len(windows.tokens), windows.scored_per_window, VOCABULARY)).astype(np.float32)


def cut(stride: int | None = None, bos: int | None = 1) -> Windows:
    tokens = np.random.default_rng(4).integers(0, VOCABULARY, 41).tolist()
    return cut_standard(tokens, 12, bos) if stride is None else cut_strided(tokens, 12, stride, bos)


def save(path: Path, windows: Windows, logits: np.ndarray, kept: int = KEPT) -> Path:
    with path.open("wb") as file:
        writer = CompactWriter(file, windows, VOCABULARY, MODEL, "ef" * 32, TEXTS, kept)
        for rows, targets in zip(logits, windows.targets, strict=True):
            writer.add(rows, targets)
        writer.finish()
    return path


@pytest.mark.parametrize(("stride", "bos"), [(None, 1), (5, None)])
def test_round_trip(tmp_path: Path, stride: int | None, bos: int | None) -> None:
    windows = cut(stride, bos)
    logits = sample(windows)
    base = open_compact_base(save(tmp_path / "base", windows, logits))
    assert (base.vocabulary, base.kept, base.tokenizer, base.model) == (VOCABULARY, KEPT, "ef" * 32, MODEL)
    assert list(base.texts) == TEXTS
    for name in ("first_scored", "bos", "stride"):
        assert getattr(base.windows, name) == getattr(windows, name)
    assert (base.windows.tokens == windows.tokens).all()
    for rows, values, targets in zip(base.chunks(), logits, windows.targets, strict=True):
        exact = log_probabilities(values)
        for i in range(len(values)):
            order = np.lexsort((range(VOCABULARY), -values[i])).tolist()
            assert rows.tokens[i].tolist() == order[:KEPT]
            np.testing.assert_allclose(rows.log_probabilities[i], exact[i, order[:KEPT]], atol=1e-6)
            rest = np.exp(exact[i, order[KEPT:]].astype(np.float64)).sum()
            assert rows.tail[i] == pytest.approx(np.log(rest), abs=1e-5)
            assert rows.target[i] == pytest.approx(exact[i, targets[i]], abs=1e-6)


def test_the_whole_vocabulary_leaves_no_tail() -> None:
    found = encode_top(sample(cut())[0], cut().targets[0], VOCABULARY)
    assert np.isneginf(found.tail).all()
    assert (np.sort(found.tokens, axis=1) == np.arange(VOCABULARY)).all()


@given(st.lists(st.integers(0, 2), min_size=8, max_size=8), st.integers(1, 8))
def test_ties_go_to_the_lower_token(values: list[int], kept: int) -> None:
    row = np.array([values], np.float32)
    found = encode_top(row, np.array([0]), kept)
    assert found.tokens[0, 0] == row[0].argmax()
    assert len(set(found.tokens[0].tolist())) == kept
    assert sorted(row[0, found.tokens[0]].tolist()) == sorted(values)[-kept:]


def test_layout_of_the_file(tmp_path: Path) -> None:
    windows = cut()
    raw = save(tmp_path / "base", windows, sample(windows)).read_bytes()
    assert raw[:8] == b"qconvkl1"
    (length,) = struct.unpack("<I", raw[8:12])
    header = json.loads(raw[12 : 12 + length])
    assert header["kept"] == KEPT
    tokens_at = 12 + length
    assert tokens_at % 4 == 0
    assert raw[tokens_at : tokens_at + windows.tokens.nbytes] == windows.tokens.tobytes()
    records = windows.targets.size * (8 + 8 * KEPT)
    assert len(raw) == tokens_at + windows.tokens.nbytes + records + 32
    assert hashlib.sha256(raw[:-32]).digest() == raw[-32:]


def with_header(raw: bytes, **changes: object) -> bytes:
    """Return the file with other values in its header."""
    length = struct.unpack_from("<I", raw, 8)[0]
    header = json.dumps(json.loads(raw[12 : 12 + length]) | changes).encode()
    return raw[:8] + struct.pack("<I", len(header)) + header + raw[12 + length :]


def test_damage_is_found(tmp_path: Path) -> None:
    windows = cut()
    path = save(tmp_path / "base", windows, sample(windows))
    raw = path.read_bytes()
    for data, error, words in (
        (raw[:-40], TruncatedError, "should have"),
        (raw[:6], TruncatedError, "too short"),
        (raw + b"\0", FormatError, "should have"),
        (b"qconvkl2" + raw[8:], FormatError, "no compact base"),
        (raw[:8] + struct.pack("<I", 1 << 30) + raw[12:], FormatError, "impossible"),
        (raw[:12] + b"[" + raw[13:], FormatError, "header is not one"),
        (raw.replace(b'"kept": 6', b'"kept": 0'), FormatError, "header is not one"),
        (raw.replace(b'"version": 1', b'"version": 2'), FormatError, "header is not one"),
        (with_header(raw, kept=1 << 30, vocabulary=1 << 30), TruncatedError, "should have"),  # beyond NumPy's records
        (raw[:-100] + bytes([raw[-100] ^ 1]) + raw[-99:], VerificationError, "differ from their digest"),
    ):
        path.write_bytes(data)
        with pytest.raises(error, match=words):
            open_compact_base(path)


@given(st.binary(max_size=60))
def test_any_header_is_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "base"
    path.write_bytes(b"qconvkl1" + struct.pack("<I", len(data)) + data)
    with pytest.raises(FormatError):
        open_compact_base(path)


def test_lineage() -> None:
    assert same_lineage(MODEL, ModelIdentity("", "llama", "", (1.001, 0.5)))
    assert not same_lineage(MODEL, ModelIdentity("", "llama", "", (1.1, 0.5)))
    assert not same_lineage(MODEL, ModelIdentity("", "qwen2", "", (1.0, 0.5)))
    assert not same_lineage(MODEL, ModelIdentity("", "llama", "", (1.0,)))
