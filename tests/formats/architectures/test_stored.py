"""Numbers that GGUF has otherwise than configurations, and rows that it does without."""

from __future__ import annotations

import numpy as np
import pytest
from memory_model import tensor

from qconv.errors import ModelError, PluginError
from qconv.formats.architectures import TRANSFORMS, Stored, load_architecture, parse_expression
from qconv.formats.architectures.rows import under


@pytest.mark.parametrize(
    ("rule", "value", "other", "stored"),
    [("over_root_of", 1.4, 40, 1.4 / 40**0.5), ("quotient_of", 256, 2304, 9.0), ("quotient_of", 0, 64, 0.0)],
)
def test_the_configurations_number_comes_back(rule: str, value: float, other: int, stored: float) -> None:
    how = Stored(rule, parse_expression("size"))  # type: ignore[arg-type] # one of the two
    found = how.forward(value, {"size": other})
    assert found == pytest.approx(stored)
    assert how.inverse(float(np.float32(found)), {"size": other}) == value


def test_an_unknown_rule_is_refused() -> None:
    text = """{"name": "odd", "description": "odd", "gguf": "odd", "hyper_parameters": {
        "layers": {"config": "layers", "type": "uint32", "keys": "block_count", "stored": {"half_of": "layers"}}}}"""
    with pytest.raises(PluginError, match="stored"):
        load_architecture(text)


@pytest.mark.parametrize("encoding", ["F32", "BF16"])
def test_rows_that_are_left_out_come_back_or_are_zeros(encoding: str) -> None:
    values = (np.arange(40, dtype=np.float32) - 9).reshape(10, 4)
    source = tensor("positions", values, encoding)
    skip, arguments = TRANSFORMS["skip_rows"], {"first": 2}
    (found,) = skip.forward([source], arguments)
    assert found.shape == (8, 4)
    assert np.array_equal(found.rows(1, 5), values[3:7])
    (same,) = skip.inverse([found], arguments)
    assert np.array_equal(same.read(0, 10), source.read(0, 10))
    (zeros,) = skip.inverse([tensor("positions", values[2:], encoding)], arguments)
    assert np.array_equal(zeros.rows(0, 10), np.concatenate([np.zeros((2, 4), np.float32), values[2:]]))
    for start, stop in ((0, 1), (1, 3), (2, 10), (5, 6)):
        assert np.array_equal(under(values[:2], found).rows(start, stop), values[start:stop])


def test_too_many_rows_cannot_be_left_out() -> None:
    with pytest.raises(ModelError, match="no 3 rows to leave out"):
        TRANSFORMS["skip_rows"].forward([tensor("small", np.zeros((3, 4), np.float32))], {"first": 3})
