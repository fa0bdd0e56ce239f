"""Mean KL divergence of models from their source on one text, whose predictions by the source are worked out once; for other scripts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import qconv
from qconv.convert.measure import Cut, cut_text, subject_of
from qconv.plugins import load_plugins
from qconv.runtime.measuring.divergence import compare, log_probabilities
from qconv.runtime.measuring.identity import read_text
from qconv.runtime.measuring.perplexity import scored_rows

CONTEXT, CHUNKS = 256, 100
"""Windows of llama.cpp's figures in ``specs/fidelity-baseline.md``."""


class HeldOut:
    """A text that nothing was measured on.

    Args:
        source: model that others are compared with.
        text: file.
        chunks: windows of it, of ``context`` tokens each; the second half of each is scored.
        context: tokens per window.

    The source's log-probabilities stay in memory: 4 bytes × half the tokens × vocabulary.
    """

    def __init__(self, source: Path, text: Path, chunks: int = CHUNKS, context: int = CONTEXT) -> None:
        self._registries = load_plugins().registries()
        with qconv.open(source) as model:
            subject = subject_of(model, self._registries)
            self._windows = cut_text(subject, read_text(text), Cut(context, None, chunks))
            self._base = [
                (log_probabilities(rows.logits), rows.targets) for rows in scored_rows(subject.network, self._windows)
            ]

    def divergence(self, result: Path) -> float:
        """Return the mean divergence of a model from the source, in nats."""
        with qconv.open(result) as model:
            found = scored_rows(subject_of(model, self._registries).network, self._windows)
            parts = [
                compare(base, rows.logits, targets) for (base, targets), rows in zip(self._base, found, strict=True)
            ]
        return float(np.concatenate([it.divergence for it in parts]).mean())
