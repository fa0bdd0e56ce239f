"""The contract of an encoding, as tests: see :mod:`qconv.quantizers.base` for the contract in words."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ...errors import EncodingError
from ...quantizers.base import Encoding, ImportanceUse

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatRows = NDArray[np.float32]

__all__ = ["EncodingContract"]

_ROWS = 7
_BLOCKS = 3  # an odd number, so that kernels which take several blocks at once meet a remainder


class EncodingContract:
    """Tests that every encoding with kernels passes.

    Fixtures to override:
        encoding: the :class:`~qconv.quantizers.base.Encoding`.
        largest_error: root mean square error of Gaussian rows over that of writing zeros; 0.9 if not overridden.
    """

    @pytest.fixture
    def encoding(self) -> Encoding:
        """The encoding to be tested; override it."""
        raise NotImplementedError("override the fixture `encoding`")

    @pytest.fixture
    def largest_error(self) -> float:
        """Relative error that Gaussian rows may have."""
        return 0.9

    @pytest.fixture
    def rows(self, encoding: Encoding) -> FloatRows:
        """Gaussian rows of an odd number of blocks."""
        random = np.random.default_rng(0)
        return random.standard_normal((_ROWS, _BLOCKS * encoding.block_size), np.float32)

    @pytest.fixture
    def importance(self, encoding: Encoding, rows: FloatRows) -> NDArray[np.float32] | None:
        """An importance vector where the encoder needs one."""
        if encoding.importance is not ImportanceUse.REQUIRED:
            return None
        random = np.random.default_rng(1)
        values: NDArray[np.float32] = np.exp(random.standard_normal(rows.shape[1], np.float32))
        return values

    def test_sizes(self, encoding: Encoding, rows: FloatRows, importance: NDArray[np.float32] | None) -> None:
        assert encoding.name == encoding.name.upper()
        assert encoding.block_size > 0 and encoding.block_bytes > 0
        data = encoding.encode(rows, importance)
        assert data.dtype == np.uint8
        assert data.shape == (_ROWS, _BLOCKS * encoding.block_bytes)
        assert data.nbytes == encoding.nbytes(rows.shape)
        decoded = encoding.decode(data)
        assert decoded.dtype == np.float32
        assert decoded.shape == rows.shape

    def test_the_error_is_less_than_that_of_zeros(
        self, encoding: Encoding, rows: FloatRows, importance: NDArray[np.float32] | None, largest_error: float
    ) -> None:
        weights = np.ones(rows.shape[1], np.float32) if importance is None else importance
        decoded = encoding.decode(encoding.encode(rows, importance))
        error = np.sqrt(np.sum(weights * (decoded - rows) ** 2) / np.sum(weights * rows**2))
        assert error < largest_error

    def test_rows_do_not_depend_on_their_neighbours(
        self, encoding: Encoding, rows: FloatRows, importance: NDArray[np.float32] | None
    ) -> None:
        together = encoding.encode(rows, importance)
        alone = np.concatenate([encoding.encode(rows[row : row + 1], importance) for row in range(_ROWS)])
        assert np.array_equal(together, alone)
        apart = np.concatenate([encoding.decode(together[row : row + 1]) for row in range(_ROWS)])
        assert np.array_equal(encoding.decode(together), apart)

    def test_threads_give_the_same_bytes(
        self, encoding: Encoding, rows: FloatRows, importance: NDArray[np.float32] | None
    ) -> None:
        expected = encoding.encode(rows, importance)
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _: encoding.encode(rows, importance), range(8)):
                assert np.array_equal(found, expected)

    def test_the_input_stays_as_it_is(
        self, encoding: Encoding, rows: FloatRows, importance: NDArray[np.float32] | None
    ) -> None:
        before = rows.copy(), None if importance is None else importance.copy()
        data = encoding.encode(rows, importance)
        kept = data.copy()
        encoding.decode(data)
        assert np.array_equal(rows, before[0])
        assert np.array_equal(data, kept)
        assert importance is None or before[1] is None or np.array_equal(importance, before[1])

    def test_zeros_stay_zeros(
        self, encoding: Encoding, rows: FloatRows, importance: NDArray[np.float32] | None
    ) -> None:
        decoded = encoding.decode(encoding.encode(np.zeros_like(rows), importance))
        assert np.isfinite(decoded).all()
        assert np.abs(decoded).max() <= 1e-6

    @pytest.mark.parametrize("kind", ["tiny", "huge", "constant", "outlier"])
    def test_odd_rows_decode_to_numbers(
        self, encoding: Encoding, rows: FloatRows, importance: NDArray[np.float32] | None, kind: str
    ) -> None:
        odd = {
            "tiny": rows * np.float32(1e-30),
            "huge": rows * np.float32(1e3),
            "constant": np.full_like(rows, -0.3),
            "outlier": np.where(np.arange(rows.shape[1]) == 5 % rows.shape[1], np.float32(1e4), rows),
        }[kind].astype(np.float32)
        assert np.isfinite(encoding.decode(encoding.encode(odd, importance))).all()

    def test_no_rows(self, encoding: Encoding, rows: FloatRows, importance: NDArray[np.float32] | None) -> None:
        data = encoding.encode(rows[:0], importance)
        assert data.shape == (0, _BLOCKS * encoding.block_bytes)
        assert encoding.decode(data).shape == (0, rows.shape[1])

    def test_what_does_not_fit_is_refused(
        self, encoding: Encoding, rows: FloatRows, importance: NDArray[np.float32] | None
    ) -> None:
        if encoding.block_size > 1:
            with pytest.raises(EncodingError, match="columns"):
                encoding.encode(rows[:, 1:], None if importance is None else importance[1:])
        if encoding.block_bytes > 1:
            with pytest.raises(EncodingError, match="whole blocks"):
                encoding.decode(np.zeros((1, encoding.block_bytes + 1), np.uint8))

    def test_importance(self, encoding: Encoding, rows: FloatRows) -> None:
        if encoding.importance is ImportanceUse.REQUIRED:
            with pytest.raises(EncodingError, match="importance"):
                encoding.encode(rows)
        if encoding.importance is not ImportanceUse.UNUSED:
            with pytest.raises(EncodingError, match="importance"):
                encoding.encode(rows, np.ones(rows.shape[1] + 1, np.float32))
            some = np.exp(np.random.default_rng(2).standard_normal(rows.shape[1])).astype(np.float32)
            assert np.isfinite(encoding.decode(encoding.encode(rows, some))).all()
