"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 against gguf's decoders and llama.cpp's encoders."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from qconv_encodings import ENCODINGS
from weight_samples import importance_samples, squared_error, weight_samples

from qconv.quantizers.base import EncodeOptions, ImportanceUse

NAMES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
WITH_MINIMUM = {"Q4_1", "Q5_1"}
EFFORTS: tuple[Literal["fast", "default", "best"], ...] = ("fast", "default", "best")
ROWS, COLUMNS = 8, 32 * 21  # a number of blocks that is no multiple of sixteen, in a row and altogether


@pytest.mark.parametrize("name", NAMES)
def test_decoder_is_gguf_s_for_every_scale_and_code(name: str) -> None:
    """All 65536 float16 patterns as scale (finite ones: a NaN's bits are not specified), random codes, minima and fifth bits."""
    encoding = ENCODINGS[name]
    halves = np.arange(1 << 16, dtype=np.uint16)
    halves = halves[(halves & 0x7C00) != 0x7C00]
    random = np.random.default_rng(1)
    data = random.integers(0, 256, (halves.size, encoding.block_bytes), np.uint8)
    data[:, :2] = halves.view(np.uint8).reshape(-1, 2)
    if name in WITH_MINIMUM:
        data[:, 2:4] = random.permutation(halves).view(np.uint8).reshape(-1, 2)
    expected = quants.dequantize(data, GGMLQuantizationType[name])
    assert encoding.decode(data).tobytes() == expected.tobytes()


def _options() -> list[EncodeOptions]:
    return [EncodeOptions(effort, objective) for effort in EFFORTS for objective in ("ggml", "plain", "importance")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("blocks", [1, 7, 19])
def test_rows_that_share_a_tile_keep_their_own_importance_and_energy(name: str, blocks: int) -> None:
    """Sixteen blocks are encoded together; where they come from several rows, each must get the bytes it gets alone."""
    encoding, columns = ENCODINGS[name], 32 * blocks
    rows = weight_samples(37, columns)["student-3"] * np.logspace(-2, 2, 37, dtype=np.float32)[:, None]
    importance = importance_samples(columns)["wide"]
    for options in _options():
        whole = encoding.encode(rows, importance, options)
        alone = [encoding.encode(row[None], importance, options) for row in rows]
        assert np.array_equal(whole, np.concatenate(alone)), options


@pytest.mark.parametrize("name", NAMES)
def test_hard_input_decodes_to_finite_numbers(name: str) -> None:
    """Beyond the largest scale, at the edge of float32, subnormal, and mixed in one block."""
    largest = np.finfo(np.float32).max
    random = np.random.default_rng(2)
    rows = np.stack(
        [
            np.full(64, largest),
            np.where(np.arange(64) % 2, largest, -largest),
            random.standard_normal(64) * 1e38,
            random.standard_normal(64) * 1e7,
            random.standard_normal(64) * 1e-7,
            random.standard_normal(64) * 1e-40,
            np.where(np.arange(64) == 5, -largest, 1e-45),
            np.full(64, -0.0),
        ]
    ).astype(np.float32)
    importances = [None, np.zeros(64), np.full(64, 1e-38), np.full(64, 3e38), np.logspace(-38, 38, 64)]
    for importance in importances:
        vector = None if importance is None else importance.astype(np.float32)
        for options in _options():
            decoded = ENCODINGS[name].decode(ENCODINGS[name].encode(rows, vector, options))
            assert np.isfinite(decoded).all(), (importance, options)
            assert not decoded[7].any()


@pytest.mark.parametrize("name", NAMES)
def test_what_the_layout_holds_exactly_comes_back(name: str) -> None:
    steps = np.arange(-8, 8) if name in {"Q4_0", "Q4_1"} else np.arange(-16, 16)
    if name == "Q8_0":
        steps = np.append(np.arange(-15, 16) * 7, 127)
    rows = np.resize(0.375 * steps, (3, 96)).astype(np.float32)
    for options in _options():
        assert np.array_equal(ENCODINGS[name].decode(ENCODINGS[name].encode(rows, None, options)), rows), options


@pytest.mark.parametrize("name", sorted(WITH_MINIMUM))
def test_equal_weights_far_from_zero_keep_more_digits_than_a_float16(name: str) -> None:
    rows = np.repeat(np.array([[1000.3], [-0.12345], [0.6543]], np.float32), 64, axis=1)
    decoded = ENCODINGS[name].decode(ENCODINGS[name].encode(rows))
    assert np.abs(decoded / rows - 1).max() < 2**-20


def test_q8_0_has_no_code_that_cannot_be_negated() -> None:
    for sample in weight_samples(ROWS, COLUMNS).values():
        for effort in EFFORTS:
            blocks = ENCODINGS["Q8_0"].encode(sample, None, EncodeOptions(effort)).reshape(-1, 34)
            assert blocks[:, 2:].view(np.int8).min() >= -127


@pytest.mark.parametrize("name", NAMES)
def test_more_effort_lowers_the_error(name: str) -> None:
    rows = weight_samples(ROWS, COLUMNS)["student-6"]
    for vector in (None, importance_samples(COLUMNS)["wide"]):
        if vector is not None and ENCODINGS[name].importance is ImportanceUse.UNUSED:
            continue
        errors = []
        for effort in EFFORTS:
            decoded = ENCODINGS[name].decode(ENCODINGS[name].encode(rows, vector, EncodeOptions(effort, "importance")))
            errors.append(squared_error(rows, decoded, vector))
        assert errors[0] >= errors[1] > errors[2]


@pytest.mark.parametrize("name", NAMES[:-1])
def test_objectives_minimise_what_they_name(name: str) -> None:
    encoding, rows, vector = (
        ENCODINGS[name],
        weight_samples(ROWS, COLUMNS)["laplace"],
        importance_samples(COLUMNS)["wide"],
    )
    plain = encoding.decode(encoding.encode(rows, vector, EncodeOptions(objective="plain")))
    ggml = encoding.decode(encoding.encode(rows, vector, EncodeOptions(objective="ggml")))
    importance = encoding.decode(encoding.encode(rows, vector, EncodeOptions(objective="importance")))
    assert np.array_equal(plain, encoding.decode(encoding.encode(rows)))
    assert squared_error(rows, plain) < squared_error(rows, ggml)
    assert squared_error(rows, importance, vector) < squared_error(rows, ggml, vector)
    assert squared_error(rows, ggml, vector) < squared_error(rows, plain, vector)
