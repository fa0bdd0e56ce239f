"""Weights and importance vectors on which encoders are compared with llama.cpp's: usual distributions, trained weights, hard cases."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


def weight_samples(rows: int, columns: int, seed: int = 0) -> dict[str, FloatArray]:
    """Return float32 (rows, columns) by name, the same for the same arguments."""
    random = np.random.default_rng(seed)
    shape = (rows, columns)
    outlier = random.standard_normal(shape) * 0.02
    outlier[np.arange(rows), random.integers(0, columns, rows)] = 1e4
    samples = {
        "gauss": random.standard_normal(shape) * 0.02,
        "student-3": random.standard_t(3, shape) * 0.02,
        "student-6": random.standard_t(6, shape) * 0.02,
        "laplace": random.laplace(size=shape) * 0.02,
        "uniform": random.uniform(-0.05, 0.05, shape),
        "outlier": outlier,
        "constant": np.repeat(random.standard_normal((rows, 1)) * 0.1, columns, axis=1),
        "zero": np.zeros(shape),
        "tiny": random.standard_normal(shape) * 1e-30,
    }
    return {name: sample.astype(np.float32) for name, sample in samples.items()}


def importance_samples(columns: int, seed: int = 0) -> dict[str, FloatArray | None]:
    """Return importance vectors by name: none, two spreads of a log-normal, and a single column that matters."""
    random = np.random.default_rng(seed)
    one_hot = np.zeros(columns)
    one_hot[columns // 3] = 1.0
    samples = {
        "mild": np.exp(0.5 * random.standard_normal(columns)),
        "wide": np.exp(1.2 * random.standard_normal(columns)),
        "one-hot": one_hot,
    }
    return {"none": None, **{name: sample.astype(np.float32) for name, sample in samples.items()}}


def trained_weights(model: Path, tensor: str, rows: int, columns: int) -> FloatArray:
    """Return the first weights of a BF16 tensor of a Hugging Face folder with one safetensors file."""
    with (model / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entry = json.loads(file.read(length))[tensor]
        file.seek(8 + length + entry["data_offsets"][0])
        upper = np.frombuffer(file.read(2 * rows * columns), "<u2")
    return (upper.astype(np.uint32) << 16).view(np.float32).reshape(rows, columns)


def squared_error(weights: FloatArray, decoded: FloatArray, importance: FloatArray | None = None) -> float:
    """Return the sum of squared errors, weighted by ``importance`` where there is one."""
    squares = (weights.astype(np.float64) - decoded) ** 2
    return float(np.sum(squares if importance is None else squares * importance.astype(np.float64)))
