"""Choose an encoding for each tensor of a model: a pure function of names, shapes, a few facts and the user's request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from ...errors import EncodingError
from ..base import Encoding
from ..catalog import BUILT_IN
from .facts import ModelFacts, TensorInfo
from .request import Choice, Overrides, RecipeRequest
from .situation import (
    CONDITIONS,
    Position,
    Situation,
    block_of,
    compat_positions,
    positions,
    tensor_class,
    visiting_order,
)
from .tables import Recipe, fallbacks, find_recipe, never_quantized

__all__ = [
    "check_importance",
    "choose_types",
    "needs_importance",
    "never_quantized_because",
    "unmatched_rules",
    "without_importance",
]

_CATALOG: Mapping[str, Encoding] = MappingProxyType({encoding.name: encoding for encoding in BUILT_IN})
_FLOATS = frozenset({"F32", "F16", "BF16", "F64"})
_NEED_IMPORTANCE = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"})
_MANY_EXPERTS = 8
_WIDE_SHARING = 8


class _Decision(NamedTuple):
    """An encoding, the reason for it, and where its block does not fit, what comes before the usual fallbacks."""

    encoding: str
    why: str
    instead: str | None = None


def choose_types(
    tensors: Sequence[TensorInfo],
    model: ModelFacts,
    request: RecipeRequest,
    encodings: Mapping[str, Encoding] = _CATALOG,
) -> list[Choice]:
    """Return one choice per tensor, in the order given.

    ``encodings`` are all that exist, by name: they tell which block fits. An importance matrix that is needed and absent is not looked
    at here, so that a plan can be shown: see :func:`check_importance`.

    Raises UnknownTypeError for names that do not exist, UsageError for a bad pattern, and EncodingError for a tensor that is quantized
    already, for a block that does not fit with ``no_fallback``, and for what llama.cpp refuses with ``compat``.
    """
    recipe = find_recipe(request.type, encodings)
    chooser = _Chooser(recipe, model, request, encodings, Overrides.read(request, encodings), _tied(tensors))
    settled = {tensor.name: chooser.settled(tensor) for tensor in tensors}
    places = chooser.places([tensor for tensor in tensors if settled[tensor.name] is None], tensors)
    choices = []
    for tensor in tensors:
        decision = settled[tensor.name] or chooser.from_mixture(tensor, places.get(tensor.name))
        if settled[tensor.name] is None and chooser.is_unread(tensor):
            decision = chooser.without_measure(decision)
        choices.append(chooser.fitted(tensor, decision))
    _check_sources(choices, request, encodings)
    if request.no_fallback:
        _refuse_fallbacks(choices)
    return choices


def _tied(tensors: Sequence[TensorInfo]) -> bool:
    """Whether the token embedding doubles as the output matrix."""
    return all(tensor.name != "output.weight" for tensor in tensors)


def never_quantized_because(tensor: TensorInfo, architecture: str, encodings: Mapping[str, Encoding]) -> str | None:
    """Return why a tensor is no weight matrix to quantize, or None if it is one."""
    names = never_quantized()
    parts = (*names.contains, *names.architectures.get(architecture, ()))
    source = encodings.get(tensor.source)
    if source is not None and source.family == "integer":
        return "never quantized: integers"
    if tensor.dimensions < 2:
        return "never quantized: one-dimensional"
    if not tensor.name.endswith("weight"):
        return "never quantized: no weight matrix"
    if tensor.name in names.equals:
        return "never quantized: by name"
    found = next((part for part in parts if part in tensor.name), None)
    return None if found is None else f"never quantized: {found.removesuffix('.weight').strip('._')}"


@dataclass(frozen=True, slots=True)
class _Chooser:
    """Everything that decisions depend on beside the tensor."""

    recipe: Recipe
    model: ModelFacts
    request: RecipeRequest
    encodings: Mapping[str, Encoding]
    overrides: Overrides
    tied: bool

    @property
    def low_bit(self) -> bool:
        """Whether the recipe is of the 1- and 2-bit codebook group."""
        return self.recipe.group == "low bit"

    def settled(self, tensor: TensorInfo) -> _Decision | None:
        """Return what is decided without the mixture: kept tensors, the user's overrides, floats, ``--pure``."""
        why = never_quantized_because(tensor, self.model.architecture, self.encodings)
        if why is not None:
            source = self.encodings.get(tensor.source)
            widen = self.request.unquantized == "F32" and source is not None and source.family == "float"
            return _Decision("F32" if widen else tensor.source, why)
        if self.request.leave_output_tensor and tensor.name == "output.weight":
            return _Decision(tensor.source, "kept: --leave-output-tensor")
        override = self._overridden(tensor)
        if override is not None:
            return override
        if self.recipe.base is None:
            return _Decision(tensor.source, self.recipe.name)
        if not self.recipe.is_mixture:
            return _Decision(self.recipe.base, self.recipe.name)
        return _Decision(self.recipe.base, "--pure") if self.request.pure else None

    def _overridden(self, tensor: TensorInfo) -> _Decision | None:
        """Return what an option asks for a tensor: embedding and output first, then the rules."""
        group, kind = tensor_class(tensor.name)
        rule = self.overrides.rule_for(tensor.name)
        by_rule = None if rule is None else _Decision(rule.encoding, f"--tensor-type {rule.text}")
        if self.request.compat and self.recipe.base is None:
            return None
        if group == "embedding" and self.overrides.embedding is not None:
            if kind == "per_layer_token_embd" and by_rule is not None:
                return by_rule
            return _Decision(self._unchecked(tensor, self.overrides.embedding), "--token-embedding-type")
        is_output = group == "output" or (kind == "token_embd" and self.tied and not self.request.compat)
        if is_output and self.overrides.output is not None:
            return _Decision(self._unchecked(tensor, self.overrides.output), "--output-tensor-type")
        if self.request.compat and not self.recipe.is_mixture:
            return None
        return by_rule

    def _unchecked(self, tensor: TensorInfo, wanted: str) -> str:
        """Pass an encoding on; llama.cpp does not check its block and fails after the plan, so with ``compat`` this fails too."""
        if self.request.compat and not self.encodings[wanted].fits(tensor.columns):
            raise EncodingError(
                f"{tensor.columns} columns are no multiple of {wanted}'s {self.encodings[wanted].block_size}",
                tensor=tensor.name,
                remedy="Leave --compat out to have a fallback, or choose another type.",
            )
        return wanted

    def places(self, decided: list[TensorInfo], tensors: Sequence[TensorInfo]) -> dict[str, Position | None]:
        """Return where tensors stand; for llama.cpp it matters which of them the mixture decides."""
        if not self.request.compat:
            return positions(tensors, self.model)
        if not self.request.keep_order:
            by_name = {tensor.name: tensor for tensor in decided}
            decided = [by_name[name] for name in visiting_order(by_name)]
        return compat_positions(decided, tensors, self.model, by_counter=self.low_bit)

    def situation(self, tensor: TensorInfo, position: Position | None) -> Situation:
        """Return what the conditions look at, as llama.cpp sees it or as it is."""
        compat, importance = self.request.compat, self.request.importance
        experts = self.model.expert_count if self.model.expert_count > 1 else 0
        return Situation(
            architecture=self.model.architecture,
            sharing=self.model.first_sharing if compat else self.model.usual_sharing,
            expert_count=experts,
            many_experts=experts == _MANY_EXPERTS if compat else experts >= _MANY_EXPERTS,
            importance=bool(importance) if compat else tensor.name in importance,
            compat=compat,
            position=position,
        )

    def from_mixture(self, tensor: TensorInfo, position: Position | None) -> _Decision:
        """Return what the mixture gives a weight matrix that nothing else decides."""
        group, kind = tensor_class(tensor.name)
        if self.model.architecture == "glm5-next" and any(
            part in tensor.name for part in ("attn_q_a", "attn_q_b", "nextn.eh_proj")
        ):
            return _Decision("Q8_0", f"{self.recipe.name}: glm5-next")
        doubles = group == "embedding" and self.tied and (self.request.compat or kind == "token_embd")
        if group == "output" or doubles:
            return self._output(tensor)
        if self.recipe.group == "experts":
            return self._expert_or_not(tensor, group)
        if group == "embedding":
            return _Decision(self.recipe.embedding or self._base, f"{self.recipe.name}: token embedding")
        return self._by_class(group, kind, self.situation(tensor, position))

    @property
    def _base(self) -> str:
        """The base encoding, of a recipe that has one."""
        return self.recipe.base or ""

    def is_unread(self, tensor: TensorInfo) -> bool:
        """Whether a tensor makes keys or values that nothing reads, so that no importance can be measured for it."""
        block, blocks = block_of(tensor.name), self.model.main_blocks
        shared = blocks - self.model.shared_blocks <= block < blocks
        return shared and tensor_class(tensor.name)[0] in ("attn_k", "attn_v")

    def without_measure(self, decision: _Decision) -> _Decision:
        """Return a decision for an encoding that needs no importance."""
        if self.request.compat or decision.encoding not in (*_NEED_IMPORTANCE, "Q2_K"):
            return decision
        return _Decision("Q3_K", f"{self.recipe.name}: nothing reads it")

    def _output(self, tensor: TensorInfo) -> _Decision:
        """Decide about the output matrix; Q8_0 where the base encoding would not fit it."""
        if self.overrides.output is not None:
            return _Decision(self.overrides.output, "--output-tensor-type")
        instead = None if self._fits(self._base, tensor) else "Q8_0"
        if self.model.architecture == "falcon":
            return _Decision("Q8_0", f"{self.recipe.name}: output of falcon", instead)
        return _Decision(self.recipe.output or self._base, f"{self.recipe.name}: output", instead)

    def _expert_or_not(self, tensor: TensorInfo, group: str) -> _Decision:
        """Decide for the recipe that touches experts only."""
        stacked = len(tensor.shape) > 2 and tensor.shape[-3] > 1
        feed_forward = group in ("ffn_down", "ffn_gate_up")
        if stacked and (feed_forward or self.model.architecture != "bailingmoe3"):
            return _Decision(self._base, f"{self.recipe.name}: expert")
        return _Decision("Q8_0", f"{self.recipe.name}: no expert")

    def _by_class(self, group: str, kind: str, situation: Situation) -> _Decision:
        """Apply the rules of the tensor's class, then what holds for attention in every recipe but the low-bit ones."""
        rules = self.recipe.rules.get(group, ())
        rule = next((r for r in rules if all(CONDITIONS[c](situation) for c in r.conditions)), None)
        encoding = self._base if rule is None else rule.encoding
        why = self.recipe.name if rule is None else ", ".join((f"{self.recipe.name}: {kind}", *rule.conditions))
        if self.low_bit:
            return _Decision(encoding, why)
        if situation.many_experts and group in ("attn_v", "attn_k"):
            return _Decision("Q8_0", f"{self.recipe.name}: {kind}, many experts")
        if group == "attn_v" and encoding in ("Q3_K", "Q4_K") and self._few_values(kind):
            return _Decision("Q5_K", f"{self.recipe.name}: {kind}, shared by many heads")
        return _Decision(encoding, why)

    def _few_values(self, kind: str) -> bool:
        """Whether so many query heads share a value head that more bits for it cost next to nothing."""
        if self.request.compat:
            return self.model.is_70b
        return kind == "attn_v" and self.model.usual_sharing >= _WIDE_SHARING

    def fitted(self, tensor: TensorInfo, decision: _Decision) -> Choice:
        """Return the choice, with a fallback where the block does not fit the tensor's columns."""
        wanted = decision.encoding
        if wanted == tensor.source or self._fits(wanted, tensor):
            return Choice(tensor.name, tensor.source, wanted, wanted, decision.why)
        candidates = ([decision.instead] if decision.instead else []) + self._fallbacks(tensor, wanted)
        encoding = next(name for name in candidates if self._fits(name, tensor))
        reason = f"fallback: {tensor.columns} columns are no multiple of {self.encodings[wanted].block_size}"
        return Choice(tensor.name, tensor.source, encoding, wanted, reason, is_fallback=True)

    def _fits(self, name: str, tensor: TensorInfo) -> bool:
        """Whether the tensor's rows are whole blocks of an encoding."""
        return self.encodings[name].fits(tensor.columns)

    def _fallbacks(self, tensor: TensorInfo, wanted: str) -> list[str]:
        """Return what may stand in for ``wanted``, best first; the last fits always."""
        table = fallbacks()
        if self.request.compat and wanted in table.added:
            raise EncodingError(
                f"llama.cpp has no fallback for {wanted} with {tensor.columns} columns",
                tensor=tensor.name,
                remedy="Leave --compat out, or choose another type.",
            )
        chain = [wanted]
        while (name := table.llama_cpp.get(chain[-1]) or table.added.get(chain[-1])) is not None:
            chain.append(name)
        return [*chain[1:], table.last]


def _check_sources(choices: list[Choice], request: RecipeRequest, encodings: Mapping[str, Encoding]) -> None:
    """Refuse to quantize again what is quantized already; decoding it to floats is no loss, though llama.cpp refuses that too."""
    if request.allow_requantize:
        return
    for choice in choices:
        source = encodings.get(choice.source)
        if source is None or not source.is_quantized or choice.is_copy:
            continue
        if request.compat or choice.encoding not in _FLOATS:
            raise EncodingError(
                f"it is {choice.source} already; as {choice.encoding} it would lose precision a second time",
                tensor=choice.name,
                remedy="Start from the unquantized model, or pass --allow-requantize.",
            )


def _refuse_fallbacks(choices: list[Choice]) -> None:
    """Raise for the first tensor whose block does not fit, with the number of the others."""
    found = [choice for choice in choices if choice.is_fallback]
    if found:
        first = found[0]
        raise EncodingError(
            f"{first.wanted} does not fit ({first.why}){_and_others(found)}",
            tensor=first.name,
            remedy="Leave --no-fallback out, or choose a type with a smaller block.",
        )


def _and_others(found: Sequence[object]) -> str:
    """Return how many tensors beside the first share its fate."""
    return f", and so for {len(found) - 1} more tensors" if len(found) > 1 else ""


def unmatched_rules(
    tensors: Sequence[TensorInfo], request: RecipeRequest, encodings: Mapping[str, Encoding] = _CATALOG
) -> list[str]:
    """Return the patterns of ``request.tensor_rules`` that no tensor's name fits: most likely misspelt."""
    rules = Overrides.read(request, encodings).rules
    return [rule.text for rule in rules if not any(rule.pattern.search(tensor.name) for tensor in tensors)]


def needs_importance(name: str, encoding: str) -> bool:
    """Whether a tensor may not become an encoding without an importance vector, whatever the recipe."""
    return encoding in _NEED_IMPORTANCE and tensor_class(name)[0] not in ("output", "embedding")


def without_importance(choices: Sequence[Choice], request: RecipeRequest) -> list[Choice]:
    """Return the choices whose encoding needs an importance vector that the request does not have.

    Encodings of fewer than about three bits do, and so does Q2_K in a Q2_K_S file; never the embeddings and the output matrix,
    for which importance is not measured.
    """
    needed = _NEED_IMPORTANCE | ({"Q2_K"} if request.type.upper() == "Q2_K_S" else set())
    return [
        choice
        for choice in choices
        if choice.encoding in needed
        and not choice.is_copy
        and choice.name not in request.importance
        and tensor_class(choice.name)[0] not in ("output", "embedding")
    ]


def check_importance(choices: Sequence[Choice], request: RecipeRequest) -> None:
    """Raise EncodingError, naming the first tensor, if any choice needs an importance vector that is not there."""
    missing = without_importance(choices, request)
    if missing:
        first = missing[0]
        lack = "the importance matrix has no entry for it" if request.importance else "there is no importance matrix"
        raise EncodingError(
            f"{first.encoding} needs importance, but {lack}{_and_others(missing)}",
            tensor=first.name,
            remedy="Pass a matrix made for this model with --imatrix, or choose a type of three bits or more.",
        )
