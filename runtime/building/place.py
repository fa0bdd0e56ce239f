"""Looking tensors up by name, with their shapes, and refusing those that nobody asked for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ...errors import MissingTensorError, ShapeError, UnmappedTensorError
from ...formats.base import Model, Tensor
from ..weights import Linear, Matrix, Vector
from .configuration import Configuration
from .layers import HeadNorm, Norm

__all__ = ["Place"]


@dataclass
class Place:
    """Looks tensors up by name and remembers which were used. Raises MissingTensorError or ShapeError with the name."""

    model: Model
    configuration: Configuration
    used: set[str] = field(default_factory=set)

    def tensor(self, name: str, shape: tuple[int | None, ...]) -> Tensor:
        """Return a tensor whose shape is ``shape``, None standing for any size from 1."""
        tensor = self.model.tensors.get(name)
        if tensor is None:
            raise MissingTensorError(
                f"the architecture {self.configuration.architecture} needs this tensor, which the file lacks",
                path=self.model.path,
                tensor=name,
                remedy=""
                if self.model.tensors
                else "The file holds a vocabulary and no weights: name the model that it belongs to.",
            )
        if len(tensor.shape) == len(shape) + 1 and tensor.shape[0] == 1:
            tensor = replace(tensor, shape=tensor.shape[1:])  # the same to llama.cpp, whose converter does not squeeze
        found = tensor.shape
        if len(found) != len(shape) or any(
            size < 1 or wanted not in (None, size) for size, wanted in zip(found, shape, strict=True)
        ):
            wanted_text = ", ".join("any" if size is None else str(size) for size in shape)
            raise ShapeError(f"its shape is {found}, but ({wanted_text}) is needed", path=self.model.path, tensor=name)
        self.used.add(name)
        return tensor

    def vector(self, name: str, size: int) -> Vector | None:
        """Return a vector, or None where there is none."""
        return Vector(self.tensor(name, (size,)), 0, size) if name in self.model.tensors else None

    def linear(self, name: str, rows: int, columns: int | None) -> Linear:
        """Return a projection, its bias included where there is one; None: any number of columns."""
        matrix = Matrix(self.tensor(f"{name}.weight", (rows, columns)), 0, rows)
        return Linear(matrix, self.vector(f"{name}.bias", rows))

    def parts(self, name: str, sizes: tuple[int, ...], columns: int) -> list[Linear]:
        """Return a fused projection as one per part, each of so many rows."""
        whole = self.linear(name, sum(sizes), columns)
        found, first = [], 0
        for size in sizes:
            bias = None if whole.bias is None else Vector(whole.bias.tensor, first, size)
            found.append(Linear(whole.matrix.window(first, first + size), bias))
            first += size
        return found

    def norm(self, name: str, size: int) -> Norm:
        """Return the norm ``{name}.weight``, or one without weights in families whose norms have none."""
        if self.configuration.facts.plain_norms:
            return Norm(None)
        weight = Vector(self.tensor(f"{name}.weight", (size,)), 0, size)
        return Norm(weight, self.vector(f"{name}.bias", size))

    def norm_if_there(self, name: str, size: int) -> Norm | None:
        """Return a norm, or None where there is none."""
        return self.norm(name, size) if f"{name}.weight" in self.model.tensors else None

    def first_norm(self, names: tuple[str, ...], prefix: str, size: int) -> Norm | None:
        """Return the first norm that is there, None where ``names`` is empty."""
        if not names:
            return None
        there = [name for name in names if f"{prefix}{name}.weight" in self.model.tensors]
        return self.norm(prefix + (there or names)[0], size)

    def head_norm(self, name: str, heads: int, size: int) -> HeadNorm | None:
        """Return a norm of ``heads`` heads, of the kind that its shape tells, or None where there is none."""
        tensor = self.model.tensors.get(f"{name}.weight")
        if tensor is None:
            return None
        if len(tensor.shape) == 2:
            weights = self.tensor(f"{name}.weight", (heads, size))
            return HeadNorm(tuple(Norm(Vector(weights, 0, size, head)) for head in range(heads)))
        if tensor.shape == (heads * size,) and heads > 1:
            return HeadNorm((self.norm(name, heads * size),), together=True)
        return HeadNorm((self.norm(name, size),))

    def stack(self, name: str, shape: tuple[int, int | None, int | None]) -> tuple[Linear, ...]:
        """Return a stack of projections, one per matrix, their biases included where there are some."""
        tensor = self.tensor(f"{name}.weight", shape)
        count, rows, _ = tensor.shape
        biases = f"{name}.bias" in self.model.tensors
        bias = self.tensor(f"{name}.bias", (count, rows)) if biases else None
        return tuple(
            Linear(Matrix(tensor, number * rows, rows), None if bias is None else Vector(bias, 0, rows, number))
            for number in range(count)
        )

    def table(self, name: str, size: int) -> NDArray[np.float32] | None:
        """Return a vector's values, or None where there is none."""
        if name not in self.model.tensors or not size:
            return None
        values: NDArray[np.float32] = self.tensor(name, (size,)).rows(0, 1)[0]
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise ShapeError("rotary factors must be positive numbers", path=self.model.path, tensor=name)
        return values

    def ignore(self, *names: str) -> None:
        """Take it that tensors of these names, where they are there, are of no use."""
        self.used.update(names)

    def refuse_rest(self) -> None:
        """Raise UnmappedTensorError for tensors that nobody looked up."""
        rest = [name for name in self.model.tensors if name not in self.used]
        if rest:
            listed = ", ".join(rest[:8]) + (f" and {len(rest) - 8} more" if len(rest) > 8 else "")
            raise UnmappedTensorError(
                f"a forward pass of the architecture {self.configuration.architecture} has no use for {listed}",
                path=self.model.path,
                remedy="Its results would not be the model's; perhaps this is a variant of the architecture.",
            )
