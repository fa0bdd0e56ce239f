"""The last runtime of ggjt as an oracle: package ctransformers, with llama.cpp of August 2023 inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def greedy_ids(path: Path, prompt: Sequence[int], count: int) -> list[int]:
    """Return the ``count`` likeliest ids that follow ``prompt``; raises where the runtime refuses the file."""
    from ctransformers import LLM
    from ctransformers.llm import Config

    model = LLM(str(path), model_type="llama", config=Config(context_length=128, threads=1))
    model.eval(list(prompt))
    found: list[int] = []
    for _ in range(count):
        found.append(int(_logits(model).argmax()))
        model.eval(found[-1:])
    return found


def last_logits(path: Path, prompt: Sequence[int]) -> NDArray[np.float32]:
    """Return float32 (vocabulary,): the logits after ``prompt``."""
    from ctransformers import LLM
    from ctransformers.llm import Config

    model = LLM(str(path), model_type="llama", config=Config(context_length=128, threads=1))
    model.eval(list(prompt))
    return _logits(model)


def _logits(model: object) -> NDArray[np.float32]:
    return np.array(list(model.logits), np.float32)  # type: ignore[attr-defined]  # the package has no types
