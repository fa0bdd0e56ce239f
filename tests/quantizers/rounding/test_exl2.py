"""EXL2's quantizer against a restatement of its definition in float64, input after input, and its packing against known words."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from qconv.errors import EncodingError
from qconv.quantizers.rounding.exl2_options import (
    Exl2Group,
    Exl2Option,
    attention_options,
    feed_forward_options,
    head_options,
    option_groups,
    parse_option,
    storage_bits,
)
from qconv.quantizers.rounding.exl2_packing import pack_columns, pack_exl2
from qconv.quantizers.rounding.exl2_rounding import exl2_factor, quantize_exl2

Doubles = NDArray[np.float64]

VECTORS = {  # the code of row i is (7 i + 3) mod 2^b
    2: "1b1b1b1b 1b1b1b1b",
    3: "53977053 70539770 97705397",
    4: "4d6f81a3 c5e7092b 4d6f81a3 c5e7092b",
    5: "4dfc4543 78245ba3 0753617d 4b276cf4 e55c7066",
    6: "9f611283 90bbd2d9 b2579740 8f201eb3 9cab91d5 71538703",
    8: "18110a03 342d261f 5049423b 6c655e57 88817a73 a49d968f c0b9b2ab dcd5cec7",
}
ATTENTION_RATES = (
    "2.138 2.199 2.283 2.677 3.169 3.171 4.044 4.047 4.082 4.138 4.171 4.190 4.274 4.330 5.256 5.330 6.044 6.338 8.044"
)
FEED_FORWARD_RATES = (
    "2.245 2.323 2.596 2.912 3.283 3.366 3.619 4.137 4.198 4.266 4.348 5.249 5.331 6.071 6.303 6.869 8.035"
)


def layer(inputs: int, outputs: int, seed: int, samples: int = 400) -> tuple[NDArray[np.float32], Doubles]:
    """Return weights, and the second moment of inputs that are correlated and of different sizes."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(samples, inputs)) @ (
        np.eye(inputs) + 0.4 * rng.normal(size=(inputs, inputs)) / np.sqrt(inputs)
    )
    mixed *= np.exp(rng.normal(size=inputs))
    weights = (rng.standard_t(5, size=(outputs, inputs)) * 0.02).astype(np.float32)
    return weights, mixed.T @ mixed / 8


def restated(
    weights: NDArray[np.float32], moment: Doubles, option: Exl2Option, *, feedback: bool = True
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float16], Doubles]:
    """Return codes (inputs, outputs) in packed order, roots less one, largest scales and weights (outputs, inputs), by the definition."""
    order = np.argsort(-np.diag(moment), kind="stable")
    damped = moment[order][:, order] + max(0.12 * np.diag(moment).mean(), 1e-5) * np.eye(len(moment))
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    w = weights.T[order].astype(np.float64)
    inputs = len(w)
    codes, result = np.zeros(w.shape, np.int64), np.zeros(w.shape)
    roots, largest = [], []
    start = 0
    for bits, size, share in zip(option.bits, option.group_sizes, option.shares, strict=True):
        for _ in range(max(0, int(np.ceil(min(inputs * share, inputs - start) / size)))):
            stop = min(start + size, inputs)
            x = w[start:stop].copy()
            base = (np.abs(x).max(axis=0) + 1e-12) / ((2**bits - 1) / 2)
            t = np.clip(np.rint(16 * np.sqrt(base / base.max())), 1, 16)
            scale = (t / 16) ** 2 * base.max()
            low = -(2 ** (bits - 1))
            best, chosen = np.inf, 0.0
            for i in range(97):
                p = 0.70 * (1 - i / 96) + 1.20 * (i / 96)
                level = np.clip(np.rint(x / (scale * p)), low, -low - 1)
                error = (np.abs(level * scale * p - x) ** 3.5).sum()
                if error < best:
                    best, chosen = error, p
            roots.append(t.astype(np.int64) - 1)
            largest.append(np.float16(base.max() * chosen))
            step = np.float16(largest[-1] / np.float16(256))
            real = (t.astype(np.float16) ** 2 * step).astype(np.float16)
            for c in range(start, stop):
                levels = np.clip(np.rint(w[c] / real.astype(np.float64)), low, -low - 1)
                codes[c] = levels.astype(np.int64) - low
                result[c] = (levels.astype(np.float16) * real).astype(np.float64)
                if feedback:
                    error = (w[c] - result[c]) / upper[c, c]
                    w[c + 1 :] -= np.outer(upper[c, c + 1 :], error)
            start = stop
    own = np.empty_like(result)
    own[order] = result
    return codes, np.array(roots), np.array(largest), own.T


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        "8@32:.1 4@64:.3 3@64:.6",
        "3@64:.25 2@64:.75",
        "6@32:.1 5@32:.9",
        "8@128:1",
        "8@32:.05 4@128:.1 3@128:.85",
        "5@128:1",
    ],
)
def test_codes_are_those_of_the_definition(text: str, feedback: bool) -> None:
    weights, moment = layer(288, 96, seed=3)
    option = parse_option(text)
    found = quantize_exl2(weights, exl2_factor(moment), option, feedback=feedback)
    codes, roots, largest, values = restated(weights, moment, option, feedback=feedback)
    np.testing.assert_array_equal(found.order, np.argsort(-np.diag(moment), kind="stable"))
    np.testing.assert_array_equal(found.largest.view(np.uint16), largest.view(np.uint16))
    np.testing.assert_array_equal(found.roots, roots)
    np.testing.assert_array_equal(found.codes.T, codes)
    np.testing.assert_array_equal(found.weights, values.astype(np.float32))


def test_feedback_lowers_the_error_of_products() -> None:
    weights, moment = layer(256, 64, seed=5)
    factor, option = exl2_factor(moment), parse_option("3@64:1")

    def cost(feedback: bool) -> float:
        lost = weights.astype(np.float64) - quantize_exl2(weights, factor, option, feedback=feedback).weights
        return float(((lost @ moment) * lost).sum())

    assert cost(True) < 0.8 * cost(False)


def test_outputs_are_filled_up_with_exact_zeros() -> None:
    weights, moment = layer(128, 40, seed=7)
    found = quantize_exl2(weights, exl2_factor(moment), parse_option("4@32:1"))
    assert found.weights.shape == (64, 128)
    assert not found.weights[40:].any()
    assert (found.codes[40:] == 8).all()
    assert (found.roots[:, 40:] == 0).all()


def test_weights_of_zero_and_unknown_inputs() -> None:
    found = quantize_exl2(np.zeros((32, 64), np.float32), exl2_factor(np.zeros((64, 64))), parse_option("4@32:1"))
    assert not found.weights.any()
    weights, _ = layer(64, 32, seed=9)
    factor = exl2_factor(np.zeros((64, 64)))
    blind = quantize_exl2(weights, factor, parse_option("4@32:1"))
    nearest = quantize_exl2(weights, factor, parse_option("4@32:1"), feedback=False)
    np.testing.assert_array_equal(blind.codes, nearest.codes)


@pytest.mark.parametrize("bits", VECTORS)
def test_words_are_known(bits: int) -> None:
    codes = ((7 * np.arange(32) + 3) % (1 << bits)).astype(np.uint8)[:, None].repeat(2, axis=1)
    words = pack_columns(codes, bits)
    expected = [int(word, 16) for word in VECTORS[bits].split()]
    assert words[:, 0].tolist() == expected
    assert words[:, 1].tolist() == expected


def test_fields_must_fill_words() -> None:
    with pytest.raises(ValueError, match="whole words"):
        pack_columns(np.zeros((16, 1), np.uint8), 3)


def test_packed_tensors() -> None:
    weights, moment = layer(96, 32, seed=11)
    matrix = quantize_exl2(weights, exl2_factor(moment), parse_option("8@32:.1 3@32:.9"))
    tensors = pack_exl2(matrix)
    assert {name: (str(array.dtype), array.shape) for name, array in tensors.items()} == {
        "q_weight": ("int32", (8 + 6, 32)),
        "q_scale": ("int32", (3, 4)),
        "q_scale_max": ("float16", (3,)),
        "q_groups": ("int16", (6,)),
        "q_invperm": ("int32", (96,)),
    }
    assert tensors["q_groups"].tolist() == [8, 0, 3, 8, 3, 11]
    assert storage_bits(matrix.groups, 32) == 8 * sum(array.nbytes for array in tensors.values())
    np.testing.assert_array_equal(tensors["q_invperm"][matrix.order], np.arange(96))


def test_groups_round_up_from_the_first_on() -> None:
    found = option_groups(parse_option("4@128:.1 3@128:.9"), 320)
    assert found == (Exl2Group(4, 0, 128), Exl2Group(3, 128, 256), Exl2Group(3, 256, 320))
    assert option_groups(parse_option("8@32:.05 4@128:.1 3@128:.85"), 64) == (Exl2Group(8, 0, 32), Exl2Group(4, 32, 64))


@pytest.mark.parametrize("inputs", [0, 16, 100])
def test_inputs_must_fill_words(inputs: int) -> None:
    with pytest.raises(EncodingError, match="multiple of 32"):
        option_groups(parse_option("4@128:1"), inputs)


def rates(table: tuple[tuple[Exl2Option, ...], ...], shapes: list[tuple[int, int]]) -> list[float]:
    """Return the bits per weight of each option for matrices of these (inputs, outputs)."""
    weights = sum(inputs * outputs for inputs, outputs in shapes)
    return [
        sum(storage_bits(option_groups(it, shape[0]), shape[1]) for it, shape in zip(row, shapes, strict=True))
        / weights
        for row in table
    ]


def test_the_tables_have_known_rates() -> None:
    shapes = [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096)]
    np.testing.assert_allclose(rates(attention_options(), shapes), list(map(float, ATTENTION_RATES.split())), atol=6e-4)
    shapes = [(4096, 14336), (4096, 14336), (14336, 4096)]
    expected = list(map(float, FEED_FORWARD_RATES.split()))
    np.testing.assert_allclose(rates(feed_forward_options(), shapes), expected, atol=6e-4)
    assert sorted(head_options()) == [2, 3, 4, 5, 6, 8]


def test_options_in_json() -> None:
    option = parse_option("6@32:.05 3@64:.2 2@64:.75")
    found = option.to_dict()
    assert found == {
        "group_size": {"6": 32, "3": 64, "2": 64},
        "bits": [6, 3, 2],
        "bits_prop": [0.05, 0.2, 0.75],
        "scale_bits": 4,
    }
    assert Exl2Option.from_dict(found) == option
    assert Exl2Option.from_dict({**found, "group_size": [32, 64, 64]}) == option
    assert Exl2Option.from_dict({**found, "group_size": 64}).group_sizes == (64, 64, 64)
    assert parse_option(str(option)) == option


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"bits": [7], "bits_prop": [1.0], "group_size": 32},
        {"bits": [3, 4], "bits_prop": [0.5, 0.5], "group_size": 32},
        {"bits": [4], "bits_prop": [1.0], "group_size": 48},
        {"bits": [4], "bits_prop": [0.7], "group_size": 32},
        {"bits": [4], "bits_prop": [1.0], "group_size": 32, "scale_bits": 8},
        {"bits": ["x"], "bits_prop": [1.0], "group_size": 32},
    ],
)
def test_options_that_are_none(found: dict[str, object]) -> None:
    with pytest.raises(EncodingError):
        Exl2Option.from_dict(found)


def test_weights_beyond_float16() -> None:
    weights = np.full((32, 32), 1e9, np.float32)
    with pytest.raises(EncodingError, match="float16"):
        quantize_exl2(weights, exl2_factor(np.eye(32)), parse_option("4@32:1"))
    with pytest.raises(EncodingError, match="not finite"):
        quantize_exl2(weights * np.inf, exl2_factor(np.eye(32)), parse_option("4@32:1"))
