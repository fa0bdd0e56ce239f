"""How a conversion will encode a tensor's rows, and what their errors cost its products: by importance, or by second moments with error feedback."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...formats.base import Tensor
from ...quantizers.base import EncodeOptions, Encoding, ImportanceUse
from ...quantizers.importance import ImportanceMatrix
from ...quantizers.rounding.feedback import Factor, error_costs
from ...quantizers.rounding.feedback_rounding import encode_with_feedback, takes_feedback

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..calibration.error_feedback import Factors

    Floats = NDArray[np.float32]

__all__ = ["Rounding"]


@dataclass(frozen=True)
class Rounding:
    """What a conversion knows of its tensors' inputs.

    Attributes:
        options: of the encoders.
        importance: the importance matrix, or None.
        factors: of the method ``gptq``, or None.
    """

    options: EncodeOptions
    importance: ImportanceMatrix | None = None
    factors: Factors | None = None

    def alone(self) -> AbstractContextManager[object]:
        """Keep BLAS, which error feedback uses, to the thread that calls it, as conversions do."""
        if self.factors is None:
            return nullcontext()
        from threadpoolctl import threadpool_limits  # slow, and most conversions do without BLAS

        limits: AbstractContextManager[object] = threadpool_limits(limits=1, user_api="blas")
        return limits

    def has_importance(self, name: str) -> bool:
        """Whether types that need importance can be had for a tensor."""
        return self.importance is not None and name in self.importance.entries

    def encode(self, tensor: Tensor, encoding: Encoding, rows: Floats, expert: int) -> NDArray[np.uint8]:
        """Return rows, float32 (n, columns) of one expert (0 where there are none), as the conversion will have them: uint8 (n, row bytes)."""
        factor = self._factor(tensor, expert) if takes_feedback(encoding) else None
        if factor is not None:
            return encode_with_feedback(encoding, rows, factor, self.options)
        vector = None if encoding.importance is ImportanceUse.UNUSED else self._vector(tensor, expert)
        return encoding.encode(rows, vector, self.options)

    def cost(self, tensor: Tensor, errors: Floats, expert: int) -> float:
        """Return what errors, float32 (n, columns), of rows of one expert add to the squared error of products, in units that encodings share."""
        factor = self._factor(tensor, expert)
        if factor is not None:
            return float(error_costs(errors, factor).sum())
        vector = self._vector(tensor, expert)
        weights = np.ones(tensor.columns, np.float32) if vector is None else vector
        return float(np.square(errors, dtype=np.float64).sum(axis=0) @ weights)

    def _factor(self, tensor: Tensor, expert: int) -> Factor | None:
        if self.factors is None or tensor.name not in self.factors.entries:
            return None
        return self.factors.get(tensor.name, expert)

    def _vector(self, tensor: Tensor, expert: int) -> Floats | None:
        if self.importance is None or tensor.name not in self.importance.entries:
            return None
        experts = tensor.shape[0] if len(tensor.shape) > 2 else 1
        return self.importance.vector(tensor.name, tensor.columns, expert, experts)
