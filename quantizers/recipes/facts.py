"""What the rules look at: a tensor's name, shape and source encoding, and a few facts about the whole model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import ModelError

__all__ = ["ModelFacts", "TensorInfo", "model_facts"]

# architectures in which llama.cpp names a size class "70B", with the number of blocks that it goes by
_SIZE_CLASS_70B = {"llama": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}
# other names of architectures in published files, and the names that the rules go by
_USUAL_NAMES = {"glm5next": "glm5-next"}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor before its weights are read.

    Attributes:
        name: canonical (GGUF) name.
        shape: NumPy order, the last axis being the row.
        source: name of the encoding that the source holds it in.
    """

    name: str
    shape: tuple[int, ...]
    source: str

    @property
    def columns(self) -> int:
        """Weights per row."""
        return self.shape[-1] if self.shape else 1

    @property
    def dimensions(self) -> int:
        """Number of axes as ggml counts them: leading axes of length 1 are none."""
        leading_ones = next((i for i, length in enumerate(self.shape) if length != 1), len(self.shape))
        return max(1, len(self.shape) - leading_ones)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the rules know about a model.

    Attributes:
        architecture: ``general.architecture``, by the name that the rules have for it.
        block_count: number of blocks, those for multi-token prediction included.
        prediction_blocks: how many of the last blocks serve multi-token prediction only.
        heads: query heads of each block, or of all if there is one entry.
        key_value_heads: the same for keys and values; 0 in a block without attention.
        expert_count: experts per block; 0 for dense models.
        shared_blocks: how many of the last main blocks read the keys and values of others, so that nothing reads what a file may have of their own.
    """

    architecture: str = ""
    block_count: int = 0
    prediction_blocks: int = 0
    heads: tuple[int, ...] = ()
    key_value_heads: tuple[int, ...] = ()
    expert_count: int = 0
    shared_blocks: int = 0

    @property
    def main_blocks(self) -> int:
        """Blocks that every token passes through."""
        return self.block_count - self.prediction_blocks

    @property
    def first_sharing(self) -> int:
        """Query heads per key-value head in block 0; 0 where block 0 has no attention."""
        heads, shared = self.heads[:1] or (0,), self.key_value_heads[:1] or (0,)
        return heads[0] // shared[0] if shared[0] else 0

    @property
    def usual_sharing(self) -> int:
        """Query heads per key-value head in most main blocks that have attention; 0 where none has."""
        span = max(1, self.main_blocks)
        pairs = zip(_per_block(self.heads, span), _per_block(self.key_value_heads, span), strict=True)
        found = Counter(heads // shared for heads, shared in pairs if heads and shared)
        return found.most_common(1)[0][0] if found else 0

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp counts the model among its size class "70B", which it tells by the number of blocks."""
        if _SIZE_CLASS_70B.get(self.architecture) != self.block_count:
            return False
        return self.architecture != "llama" or (self.heads[:1] != self.key_value_heads[:1] and self.expert_count != 8)


def _per_block(values: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return one value per block: a single value stands for all, missing ones count as 0."""
    if len(values) == 1:
        return values * count
    return (*values[:count], *(0,) * (count - len(values)))


def model_facts(metadata: Mapping[str, object]) -> ModelFacts:
    """Return the facts from GGUF metadata as plain values: ``{"llama.block_count": 32, …}``, arrays being sequences.

    Absent keys count as 0 (key-value heads: as many as query heads). Raises ModelError for values that cannot be right.
    """
    architecture = metadata.get("general.architecture")
    prefix = architecture if isinstance(architecture, str) else ""
    heads = _integers(metadata, f"{prefix}.attention.head_count")
    facts = ModelFacts(
        architecture=_USUAL_NAMES.get(prefix, prefix),
        block_count=_integer(metadata, f"{prefix}.block_count"),
        prediction_blocks=_integer(metadata, f"{prefix}.nextn_predict_layers"),
        heads=heads,
        key_value_heads=_integers(metadata, f"{prefix}.attention.head_count_kv") or heads,
        expert_count=_integer(metadata, f"{prefix}.expert_count"),
        shared_blocks=_integer(metadata, f"{prefix}.attention.shared_kv_layers"),
    )
    if facts.prediction_blocks > facts.block_count:
        raise ModelError(
            f"{prefix}.nextn_predict_layers is {facts.prediction_blocks}, but there are {facts.block_count} blocks"
        )
    return facts


def _integers(metadata: Mapping[str, object], key: str) -> tuple[int, ...]:
    """Return a number or an array of numbers as a tuple; empty where the key is absent."""
    value = metadata.get(key)
    if value is None:
        return ()
    tolist = getattr(value, "tolist", None)
    plain = tolist() if callable(tolist) else value
    values = plain if isinstance(plain, Sequence) and not isinstance(plain, str) else [plain]
    found = tuple(item for item in values if isinstance(item, int) and item >= 0)
    if len(found) != len(values):
        raise ModelError(f"{key} must be a whole number or an array of them, not {plain!r}")
    return found


def _integer(metadata: Mapping[str, object], key: str) -> int:
    """Return one number; the largest of an array, 0 where the key is absent."""
    return max(_integers(metadata, key), default=0)
