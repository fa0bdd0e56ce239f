"""Error feedback: layouts of codes against gguf's decoders, codes against optimal brain quantization written out in float64, costs against plain encoding."""

from __future__ import annotations

from dataclasses import replace

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from qconv_encodings import ENCODINGS

from qconv.errors import EncodingError
from qconv.quantizers.base import DEFAULT_OPTIONS, EncodeOptions
from qconv.quantizers.i_quants.codebook import load_codebook
from qconv.quantizers.rounding.code_layouts import code_layout, write_codes
from qconv.quantizers.rounding.feedback import Factor, Feedback, block_order, column_order, factorize
from qconv.quantizers.rounding.feedback_rounding import encode_with_feedback, takes_feedback

NAMES = tuple(name for name, encoding in ENCODINGS.items() if takes_feedback(encoding))
LEVELS = {name: np.array(gguf.quants.IQ4_NL.kvalues, float) for name in ("IQ4_NL", "IQ4_XS")}

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]


def oracle(name: str, data: NDArray[np.uint8]) -> Floats:
    """Decode with gguf."""
    return np.asarray(gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name]), np.float32)


def moment(columns: int, seed: int, kind: str = "mixed") -> Doubles:
    """Return a second moment: of correlated inputs, of few directions, with dead columns, or diagonal."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.normal(size=columns) * 0.7)
    if kind == "diagonal":
        return np.diag(sizes**2)
    mix = rng.normal(size=(columns, columns)) * np.exp(-np.arange(columns) / (columns / 5))[:, None]
    rows = rng.normal(size=(-(-columns // 8) if kind == "few" else 3 * columns, columns)) @ mix / 4
    rows += (0 if kind == "few" else 0.3) * rng.normal(size=rows.shape)
    rows *= sizes
    if kind == "dead":
        rows[:, rng.permutation(columns)[: columns // 8]] = 0
    return rows.T @ rows / len(rows)


def layer(rows: int, columns: int, seed: int) -> Floats:
    return (np.random.default_rng(seed).standard_t(5, size=(rows, columns)) * 0.03).astype(np.float32)


def cost(rows: Floats, decoded: Floats, second: Doubles) -> Doubles:
    errors = rows.astype(np.float64) - decoded
    return np.asarray(np.einsum("ij,ij->i", errors @ second, errors))


# --- factors --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 7, 256, 600])
@pytest.mark.parametrize("kind", ["mixed", "few", "dead"])
def test_factors_multiply_to_the_moment(columns: int, kind: str) -> None:
    second = moment(columns, 1, kind)
    for order in (None, column_order(second), block_order(second, 32)):
        found = factorize(second, 0.01, order)
        unit = found.unit.astype(np.float64)
        assert (np.tril(unit, -1) == 0).all()
        assert (unit.diagonal() == 1).all()
        assert sorted(found.order) == list(range(columns))
        wanted = second + np.eye(columns) * found.damping
        dead = second.diagonal() == 0
        wanted[dead, dead] = second.diagonal().mean() or 1.0
        wanted = wanted[found.order][:, found.order]
        product = unit @ np.diag(found.weights.astype(np.float64)) @ unit.T
        np.testing.assert_allclose(product, wanted, atol=1e-6 * wanted.max())


def test_orders() -> None:
    second = np.diag([1.0, 5.0, 5.0, 0.0, 2.0, 9.0, 7.0])
    assert column_order(second).tolist() == [5, 6, 1, 2, 4, 0, 3]
    assert block_order(second, 2).tolist() == [6, 4, 5, 0, 1, 2, 3]


def test_damping_is_repeated_until_it_is_enough() -> None:
    second = np.array([[1.0, 1.05], [1.05, 1.0]])
    assert factorize(second, 0.02).damping == pytest.approx(0.06)
    assert factorize(second, 0.02, least=0.1).damping == pytest.approx(0.1)
    with pytest.raises(EncodingError, match="not positive definite"):
        factorize(np.array([[1.0, 9.0], [9.0, 1.0]]), 0.02)
    for bad in (np.nan, -1.0):
        with pytest.raises(EncodingError, match="finite"):
            factorize(np.diag([1.0, bad]))


def test_nothing_measured_is_no_feedback() -> None:
    found = factorize(np.zeros((4, 4)))
    np.testing.assert_array_equal(found.unit, np.eye(4))
    np.testing.assert_array_equal(found.weights, np.ones(4))


def test_targets_minimise_what_is_left() -> None:
    """With columns 0 … k fixed, the targets of the rest are the weights that make up for them best."""
    second, rows = moment(40, 3), layer(5, 40, 3)
    factor = factorize(second, 0.0, column_order(second))
    feedback = Feedback(rows, factor)
    feedback.settle(np.round(feedback.targets(25), 1))
    targets = feedback.targets(40)
    ordered = second[factor.order][:, factor.order]
    best = rows[:, factor.order[25:]] + feedback.errors[:, :25] @ ordered[:25, 25:] @ np.linalg.inv(ordered[25:, 25:])
    np.testing.assert_allclose(targets, best, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(feedback.targets(27), best[:, :2], rtol=1e-3, atol=1e-5)
    feedback.settle(targets)
    values = feedback.values()
    np.testing.assert_allclose(feedback.cost(), cost(rows, values, second), rtol=1e-3)


# --- layouts --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_codes_lie_where_gguf_reads_them(name: str) -> None:
    encoding, layout = ENCODINGS[name], code_layout(name)
    assert layout is not None
    columns = 2 * encoding.block_size
    data = encoding.encode(layer(3, columns, 5), np.ones(columns, np.float32))
    units = columns // layout.unit
    rng = np.random.default_rng(0)

    def filled(codes: NDArray[np.int32]) -> Floats:
        changed = data.copy()
        write_codes(codes, layout, changed)
        return oracle(name, changed)

    if layout.unit == 4:
        points = load_codebook(name).points
        codes = rng.integers(0, 8192, (3, units), np.int32)
        signs = np.where(codes[..., None] >> 9 + np.arange(4) & 1, -1, 1)
        scale = (filled(np.zeros((3, units), np.int32)).reshape(3, units, 4) / points[0])[..., :1]
        np.testing.assert_allclose(filled(codes).reshape(3, units, 4), scale * points[codes & 511] * signs, rtol=1e-6)
        return
    table = np.stack([filled(np.full((3, units), code, np.int32)) for code in range(layout.lowest, layout.highest + 1)])
    levels = LEVELS.get(name, np.arange(layout.lowest, layout.highest + 1))
    share = (levels - levels[0]) / (levels[-1] - levels[0])
    np.testing.assert_allclose(table, table[0] + share[:, None, None] * (table[-1] - table[0]), rtol=1e-5, atol=1e-6)
    codes = rng.integers(layout.lowest, layout.highest + 1, (3, units), np.int32)
    wanted = np.take_along_axis(table, (codes - layout.lowest)[None], axis=0)[0]
    np.testing.assert_array_equal(filled(codes), wanted)


def test_other_encodings_have_no_feedback() -> None:
    assert set(NAMES) >= {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"}
    assert set(NAMES) >= {"IQ4_XS", "IQ3_S"}
    for name in ("F16", "TQ1_0", "IQ2_XXS"):
        assert not takes_feedback(ENCODINGS[name])
        with pytest.raises(EncodingError, match=f"{name} cannot be rounded"):
            encode_with_feedback(ENCODINGS[name], layer(1, 256, 0), factorize(np.eye(256)), DEFAULT_OPTIONS)


# --- rounding -------------------------------------------------------------------------------------------------------------------


def restate(name: str, rows: Floats, second: Doubles, order: NDArray[np.intp], weights: Floats) -> NDArray[np.uint8]:
    """Optimal brain quantization, column by column, with the inverse of what remains of the moment, in float64."""
    encoding, layout = ENCODINGS[name], code_layout(name)
    assert layout is not None
    size = encoding.block_size
    inverse = np.linalg.inv(second[order][:, order])
    current = rows[:, order].astype(np.float64)
    out = np.empty((len(rows), encoding.row_bytes(rows.shape[1])), np.uint8)
    for start in range(0, rows.shape[1], size):
        columns = slice(start, start + size)
        data = encoding.encode(current[:, columns].astype(np.float32), weights[columns])
        values = code_values(name, data)
        codes = np.empty((len(rows), size // layout.unit), np.int32)
        for number in range(size // layout.unit):
            here = slice(start + number * layout.unit, start + (number + 1) * layout.unit)
            metric = np.linalg.inv(inverse[here, here])
            if layout.unit == 1:
                codes[:, number] = np.abs(values[:, number] - current[:, here]).argmin(axis=1) + layout.lowest
                chosen = values[np.arange(len(rows)), number, codes[:, number] - layout.lowest][:, None]
            else:
                signs = np.where(current[:, here] * values[:, number] < 0, -1, 1)
                candidates = values[:, number].reshape(len(rows), -1, 1) * load_codebook(name).points * signs[:, None]
                errors = current[:, None, here] - candidates
                best = np.einsum("rpi,ij,rpj->rp", errors, metric, errors).argmin(axis=1)
                codes[:, number] = best | (signs < 0) @ (512 << np.arange(4))
                chosen = candidates[np.arange(len(rows)), best]
            rest = slice(here.stop, None)
            current[:, rest] -= (current[:, here] - chosen) @ metric @ inverse[here, rest]
            inverse[rest, rest] -= inverse[rest, here] @ metric @ inverse[here, rest]
        write_codes(codes, layout, data)
        place = order[start] // size * encoding.block_bytes
        out[:, place : place + encoding.block_bytes] = data
    return out


def code_values(name: str, data: NDArray[np.uint8]) -> Doubles:
    """Return what each code would mean for each column of a block; for points, their scale."""
    layout = code_layout(name)
    assert layout is not None

    def filled(code: int) -> Doubles:
        changed = data.copy()
        write_codes(np.full((len(data), len(layout.pieces)), code, np.int32), layout, changed)
        return oracle(name, changed).astype(np.float64)

    if layout.unit == 4:
        first = load_codebook(name).points[0]
        return np.asarray((filled(0).reshape(len(data), -1, 4) / first)[..., :1], np.float64)
    return np.stack([filled(code) for code in range(layout.lowest, layout.highest + 1)], axis=2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ordered", [False, True])
def test_codes_are_those_of_optimal_brain_quantization(name: str, ordered: bool) -> None:
    """But for a scale or a code that hangs on the last bits of a float32: then everything behind it in the row may differ."""
    rows, second = layer(12, 512, 7), moment(512, 7)
    factor = factorize(second, 0.01, block_order(second, 256) if ordered else None)
    found = encode_with_feedback(ENCODINGS[name], rows, factor, DEFAULT_OPTIONS)
    damped = second + factor.damping * np.eye(512)
    wanted = restate(name, rows, damped, factor.order, factor.weights)
    same = (found == wanted).all(axis=1)
    assert same.mean() > 0.8
    one, other = (cost(rows, oracle(name, data), damped) for data in (found, wanted))
    np.testing.assert_allclose(one.sum(), other.sum(), rtol=0.05)  # a row may fare better or worse by it
    np.testing.assert_allclose(one[same], other[same], rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["mixed", "few", "dead", "diagonal"])
def test_never_worse_than_plain(name: str, kind: str) -> None:
    encoding = ENCODINGS[name]
    second = moment(512, len(name), kind)
    factor = factorize(second, 1e-6 if kind == "diagonal" else 0.01)
    rows = layer(48, 512, len(name))
    found = encode_with_feedback(encoding, rows, factor, DEFAULT_OPTIONS)
    plain = encoding.encode(rows, factor.weights if kind == "diagonal" else second.diagonal().astype(np.float32))
    after, before = (cost(rows, encoding.decode(data), second) for data in (found, plain))
    if (
        kind == "diagonal"
    ):  # nothing to make up for; encoders find other scales when they see one block of a row at a time
        assert after.sum() < 1.005 * before.sum()
    else:
        assert (after < before).mean() > 0.95
        assert after.sum() < 0.75 * before.sum()


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_know_of_each_other(name: str) -> None:
    encoding, rows = ENCODINGS[name], layer(9, 512, 1)
    factor = factorize(moment(512, 1))
    whole = encode_with_feedback(encoding, rows, factor, DEFAULT_OPTIONS)
    for part in (slice(0, 1), slice(1, 9)):
        again = encode_with_feedback(encoding, rows[part], factor, DEFAULT_OPTIONS)
        assert (again == whole[part]).all(axis=1).mean() > 0.8


@pytest.mark.parametrize("name", NAMES)
def test_zeros_and_extremes_stay_finite(name: str) -> None:
    rows = layer(4, 256, 2)
    rows[0] = 0
    rows[1] *= 1e6
    rows[2, 32:] = 0
    rows[3] *= 1e-12
    data = encode_with_feedback(ENCODINGS[name], rows, factorize(moment(256, 2)), DEFAULT_OPTIONS)
    decoded = oracle(name, data)
    assert np.isfinite(decoded).all()
    assert (decoded[0] == 0).all() or np.abs(decoded[0]).max() < 1e-6
    if name == "Q8_0":
        assert (data.reshape(4, 8, 34)[:, :, 2:].view(np.int8) > -128).all()


def test_what_does_not_fit() -> None:
    q4_k, second = ENCODINGS["Q4_K"], moment(512, 1)
    with pytest.raises(EncodingError, match="stay whole"):
        encode_with_feedback(q4_k, layer(1, 512, 0), factorize(second, order=column_order(second)), DEFAULT_OPTIONS)
    with pytest.raises(EncodingError, match="whole blocks of 256"):
        encode_with_feedback(q4_k, layer(1, 96, 0), factorize(moment(96, 0)), DEFAULT_OPTIONS)
    with pytest.raises(EncodingError, match="weights of 256 columns"):
        encode_with_feedback(q4_k, layer(1, 256, 0), factorize(second), DEFAULT_OPTIONS)
    # a last step that is shorter than the others
    odd = encode_with_feedback(ENCODINGS["Q4_0"], layer(2, 352, 0), factorize(moment(352, 0)), EncodeOptions("fast"))
    assert odd.shape == (2, 11 * 18)


def test_factors_are_values() -> None:
    factor = factorize(moment(32, 0))
    assert isinstance(replace(factor, damping=1.0), Factor)
    with pytest.raises(ValueError, match="read-only"):
        factor.unit[0, 0] = 2
