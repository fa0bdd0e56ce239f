"""Where a tensor stands in its model, and the conditions that mixtures may ask about it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ...errors import EncodingError
from .facts import ModelFacts, TensorInfo

__all__ = [
    "CONDITIONS",
    "Position",
    "Situation",
    "block_of",
    "compat_positions",
    "positions",
    "tensor_class",
    "visiting_order",
]

# the first entry that fits decides; expert and shared-expert tensors share the class of the dense ones
_CLASSES_BY_PART = (
    ("attn_qkv.weight", "attn_v", "attn_qkv"),
    ("attn_kv_b.weight", "attn_v", "attn_kv_b"),
    ("attn_v.weight", "attn_v", "attn_v"),
    ("attn_k.weight", "attn_k", "attn_k"),
    ("attn_q.weight", "attn_q", "attn_q"),
    ("attn_output.weight", "attn_output", "attn_output"),
    ("ffn_up", "ffn_gate_up", "ffn_up"),
    ("ffn_gate", "ffn_gate_up", "ffn_gate"),
    ("ffn_down", "ffn_down", "ffn_down"),
)
_CLASSES_BY_NAME = {
    "output.weight": ("output", "output"),
    "token_embd.weight": ("embedding", "token_embd"),
    "per_layer_token_embd.weight": ("embedding", "per_layer_token_embd"),
}
_BLOCK = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Position:
    """``index`` of ``count``: the block's number among blocks, or the tensor's among those of its class."""

    index: int
    count: int

    @property
    def takes_more(self) -> bool:
        """Whether it is in the first or last eighth, or is every third of those between: about half of all."""
        first, last = self.count // 8, 7 * self.count // 8
        return self.index < first or self.index >= last or (self.index - first) % 3 == 2


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a condition may look at.

    Attributes:
        architecture: ``general.architecture``.
        sharing: query heads per key-value head.
        expert_count: experts per block, 0 for dense models.
        many_experts: whether attention is so small a part of the model that it may have more bits.
        importance: whether there is an importance vector.
        compat: whether llama.cpp's choice is wanted, right or wrong.
        position: where the tensor stands; None outside the blocks that count, so that no rule about position applies.
    """

    architecture: str
    sharing: int
    expert_count: int
    many_experts: bool
    importance: bool
    compat: bool
    position: Position | None


def _where(test: Callable[[Position], bool]) -> Callable[[Situation], bool]:
    """Lift a test of the position; without one it fails."""
    return lambda s: s.position is not None and test(s.position)


CONDITIONS: Mapping[str, Callable[[Situation], bool]] = MappingProxyType(
    {
        "gqa>=4": lambda s: s.sharing >= 4,
        "experts>=4": lambda s: s.expert_count >= 4,
        "many experts": lambda s: s.many_experts,
        "few experts": lambda s: not s.many_experts,
        "falcon": lambda s: s.architecture == "falcon",
        "not falcon": lambda s: s.architecture != "falcon",
        "importance": lambda s: s.importance,
        "no importance": lambda s: not s.importance,
        "not compat": lambda s: not s.compat,
        "first 2": _where(lambda p: p.index < 2),
        "first 4": _where(lambda p: p.index < 4),
        "first 1/8": _where(lambda p: p.index < p.count // 8),
        "first 1/16": _where(lambda p: p.index < p.count // 16),
        "middle 3/4": _where(lambda p: p.count // 8 <= p.index < 7 * p.count // 8),
        "more": _where(lambda p: p.takes_more),
    }
)


def tensor_class(name: str) -> tuple[str, str]:
    """Return the class whose rules a tensor follows, and the kind of tensor by which it is counted.

    >>> tensor_class("blk.3.attn_qkv.weight")
    ('attn_v', 'attn_qkv')
    >>> tensor_class("blk.3.ssm_in.weight")
    ('other', 'other')
    """
    if name in _CLASSES_BY_NAME:
        return _CLASSES_BY_NAME[name]
    return next(((group, kind) for part, group, kind in _CLASSES_BY_PART if part in name), ("other", "other"))


def block_of(name: str) -> int:
    """Return the number of the block that a tensor belongs to, -1 for the others."""
    found = _BLOCK.match(name)
    return int(found[1]) if found else -1


def visiting_order(names: Iterable[str]) -> list[str]:
    """Return the names in the order in which llama.cpp visits and writes them: by block, then by bytes of the name."""
    return sorted(names, key=lambda name: (block_of(name), name.encode()))


def positions(tensors: Iterable[TensorInfo], model: ModelFacts) -> dict[str, Position | None]:
    """Return where each tensor with a class stands.

    Values (and fused or compressed ones) are counted among themselves, since a hybrid has attention in some blocks only; feed-forward
    matrices go by the number of their block. Blocks for multi-token prediction do not count, and have no position.
    """
    inside = [t for t in tensors if 0 <= block_of(t.name) < model.main_blocks]
    values = [t.name for t in inside if tensor_class(t.name)[0] == "attn_v"]
    ranks = {name: Position(i, len(values)) for i, name in enumerate(sorted(values, key=block_of))}
    return {t.name: ranks.get(t.name, Position(block_of(t.name), model.main_blocks)) for t in inside}


def compat_positions(
    decided: Iterable[TensorInfo], everything: Iterable[TensorInfo], model: ModelFacts, *, by_counter: bool
) -> dict[str, Position | None]:
    """Return where llama.cpp sees each tensor of ``decided``, which are in visiting order.

    It counts only tensors that the mixture decides; ``by_counter`` counts feed-forward matrices of experts too, where otherwise the
    number of their block stands. Raises EncodingError where that number is out of range, as llama.cpp does.
    """
    values = sum(tensor_class(t.name)[0] == "attn_v" for t in everything)
    found: dict[str, Position | None] = {}
    seen: Counter[str] = Counter()
    for tensor in decided:
        group, kind = tensor_class(tensor.name)
        counted = "attn_v" if group == "attn_v" else kind
        index = seen[counted]
        seen[counted] += 1
        if group == "attn_v":
            found[tensor.name] = Position(index, values)
        elif group in ("ffn_down", "ffn_gate_up"):
            if model.expert_count > 1 and not by_counter:
                index = block_of(tensor.name)
                if not 0 <= index < model.block_count:
                    raise EncodingError(
                        f"llama.cpp refuses block {index} of {model.block_count}",
                        tensor=tensor.name,
                        remedy="Leave --compat out.",
                    )
            found[tensor.name] = Position(index, model.block_count)
    return found
