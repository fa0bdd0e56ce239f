"""What every encoding of the catalog that has kernels must do; an encoding joins by being in the catalog."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Literal, get_args

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray
from qconv_encodings import ENCODINGS
from weight_samples import importance_samples, squared_error, weight_samples

from qconv.quantizers.base import EncodeOptions, Encoding, ImportanceUse

Effort = Literal["fast", "default", "best"]
Objective = Literal["ggml", "plain", "importance"]

QUANTIZED = {name: e for name, e in ENCODINGS.items() if e.is_quantized and e.load is not None}
ENCODABLE = {name: e for name, e in QUANTIZED.items() if e.codec().encode is not None}


def _gguf_decodes(encoding: Encoding) -> bool:
    try:
        kind = GGMLQuantizationType(encoding.type_id)
        dequantize(np.zeros((1, encoding.block_bytes), np.uint8), kind)
    except (ValueError, NotImplementedError):
        return False
    return True


KNOWN_TO_GGUF = [name for name, encoding in QUANTIZED.items() if _gguf_decodes(encoding)]


@pytest.fixture(params=ENCODABLE)
def encoding(request: pytest.FixtureRequest) -> Encoding:
    return ENCODABLE[request.param]


def _importance(encoding: Encoding, columns: int) -> NDArray[np.float32] | None:
    """An importance vector where the encoding needs one."""
    if encoding.importance is not ImportanceUse.REQUIRED:
        return None
    return importance_samples(columns)["wide"]


@pytest.mark.parametrize("name", KNOWN_TO_GGUF)
def test_decoding_is_that_of_gguf_bit_for_bit(name: str) -> None:
    encoding = QUANTIZED[name]
    rng = np.random.default_rng(0)
    random = rng.integers(0, 256, (256, 8 * encoding.block_bytes), np.uint8)
    repeated = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 8 * encoding.block_bytes, axis=1)
    data = np.concatenate([random, repeated])
    with np.errstate(all="ignore"):
        expected = dequantize(data, GGMLQuantizationType(encoding.type_id))
    decoded = encoding.decode(data)
    same = decoded.view(np.uint32) == expected.view(np.uint32)
    assert np.all(same | (np.isnan(decoded) & np.isnan(expected)))


def test_bytes_do_not_depend_on_how_rows_are_grouped(encoding: Encoding) -> None:
    columns = 3 * encoding.block_size
    rows = weight_samples(7, columns)["student-3"]
    importance = _importance(encoding, columns)
    together = encoding.encode(rows, importance)
    assert together.shape == (7, encoding.row_bytes(columns))
    parts = [encoding.encode(rows[i:j], importance) for i, j in ((0, 1), (1, 3), (3, 7))]
    np.testing.assert_array_equal(np.concatenate(parts), together)
    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(lambda part: encoding.encode(part, importance), [rows] * 4):
            np.testing.assert_array_equal(result, together)


def test_a_row_of_one_block_is_encoded_as_in_a_longer_row(encoding: Encoding) -> None:
    columns = 2 * encoding.block_size
    rows = weight_samples(3, columns)["laplace"]
    long = encoding.encode(rows, np.ones(columns, np.float32) if _importance(encoding, columns) is not None else None)
    short = encoding.encode(
        np.ascontiguousarray(rows[:, : encoding.block_size]),
        np.ones(encoding.block_size, np.float32) if _importance(encoding, columns) is not None else None,
    )
    np.testing.assert_array_equal(short, long[:, : encoding.block_bytes])


def test_an_encoder_reads_any_array_and_changes_none(encoding: Encoding) -> None:
    columns = encoding.block_size
    rows = weight_samples(6, columns)["gauss"]
    importance = _importance(encoding, columns)
    expected = encoding.encode(rows.copy(), importance)
    fixed = rows.copy()
    fixed.flags.writeable = False
    np.testing.assert_array_equal(encoding.encode(fixed, importance), expected)
    np.testing.assert_array_equal(encoding.encode(rows[::-1], importance), expected[::-1])
    np.testing.assert_array_equal(fixed, rows)
    assert rows.flags.writeable


@pytest.mark.parametrize("sample", ["outlier", "negative outlier", "constant", "zero", "tiny", "huge", "gaps"])
def test_nothing_finite_decodes_to_nan_or_infinity(encoding: Encoding, sample: str) -> None:
    columns = 2 * encoding.block_size
    samples = weight_samples(4, columns)
    samples["negative outlier"] = -samples["outlier"]
    samples["huge"] = samples["gauss"] * np.float32(1e38)
    samples["gaps"] = np.where(np.arange(columns) % 5 == 0, samples["student-6"], np.float32(0))
    rows = samples[sample]
    vectors = [np.ones(columns, np.float32), np.zeros(columns, np.float32), np.full(columns, 1e30, np.float32)]
    choices = [None, *vectors] if encoding.importance is ImportanceUse.OPTIONAL else vectors
    for importance in choices if encoding.importance is not ImportanceUse.UNUSED else [None]:
        decoded = encoding.decode(encoding.encode(rows, importance))
        assert np.isfinite(decoded).all()
        if sample == "zero":
            np.testing.assert_array_equal(decoded, 0)


@pytest.mark.parametrize("objective", get_args(Objective))
@pytest.mark.parametrize("effort", get_args(Effort))
def test_every_option_encodes(encoding: Encoding, effort: Effort, objective: Objective) -> None:
    columns = 2 * encoding.block_size
    rows = weight_samples(8, columns)["gauss"]
    importance = _importance(encoding, columns)
    usual = squared_error(rows, encoding.decode(encoding.encode(rows, importance)))
    chosen = squared_error(rows, encoding.decode(encoding.encode(rows, importance, EncodeOptions(effort, objective))))
    assert chosen <= 1.5 * usual


def test_a_harder_search_errs_less(encoding: Encoding) -> None:
    columns = 4 * encoding.block_size
    rows = weight_samples(32, columns)["student-6"]
    importance = np.ones(columns, np.float32) if encoding.importance is ImportanceUse.REQUIRED else None
    errors = [
        squared_error(rows, encoding.decode(encoding.encode(rows, importance, EncodeOptions(effort, "plain"))))
        for effort in get_args(Effort)
    ]
    assert errors[2] <= errors[1] * 1.001
    assert errors[1] <= errors[0] * 1.001


def test_importance_lowers_the_error_where_it_lies(encoding: Encoding) -> None:
    if encoding.importance is not ImportanceUse.OPTIONAL:
        return
    columns = 4 * encoding.block_size
    rows = weight_samples(16, columns)["gauss"]
    importance = importance_samples(columns)["wide"]
    informed = encoding.decode(encoding.encode(rows, importance))
    uninformed = encoding.decode(encoding.encode(rows))
    assert squared_error(rows, informed, importance) < squared_error(rows, uninformed, importance)
