"""Which encoding each tensor of an output gets: a recipe's mixture or one encoding for all, within what the format holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..errors import EncodingError
from ..formats.base import Format, Model
from ..quantizers.base import Encoding
from ..quantizers.recipes.choose import check_importance, choose_types
from ..quantizers.recipes.facts import TensorInfo, model_facts
from ..quantizers.recipes.request import Choice, Overrides, RecipeRequest
from ..quantizers.recipes.tables import nearest

__all__ = ["COPY", "OWN", "choose_encodings", "stand_in_notes", "type_for"]

COPY = "COPY"
"""The recipe that keeps the source's encodings."""


OWN = "as in the original"
"""Why a tensor gets the encoding that the target's format has for it."""


def type_for(target: Format, type_name: str) -> str:
    """Return what ``--type`` asks for: ``COPY``, the name of an encoding, or where the format has mixtures whatever the user says.

    Raises UnknownTypeError, with what the format holds, for anything else.
    """
    upper = type_name.strip().upper()
    if target.mixtures:
        return upper
    if upper in ("AUTO", COPY):
        return COPY
    held = {name.upper(): name for name in target.encodings}
    if upper not in held:
        raise nearest(type_name, list(held), "type", f"{target.name} holds {', '.join(target.encodings)}.")
    return held[upper]


def choose_encodings(
    model: Model,
    infos: Sequence[TensorInfo],
    target: Format,
    request: RecipeRequest,
    encodings: Mapping[str, Encoding],
) -> list[Choice]:
    """Return a choice per tensor, in the order of ``infos``, each of an encoding that the format holds.

    A source's encoding that the format lacks becomes the format's first, which changes no value.

    Raises what :func:`choose_types` raises, and EncodingError where the user asks for what the format lacks.
    """
    own = {} if target.own_types is None or request.type != COPY else target.own_types(model)
    if target.mixtures:
        facts = model_facts({key: field.value for key, field in model.metadata.items() if field.value is not None})
        choices = choose_types(infos, facts, request, encodings)
        check_importance(choices, request)
    else:
        choices = _one_for_all(infos, target, request, encodings)
    return [_held(_own(choice, own), target) for choice in choices]


def _one_for_all(
    infos: Sequence[TensorInfo], target: Format, request: RecipeRequest, encodings: Mapping[str, Encoding]
) -> list[Choice]:
    rules = Overrides.read(request, encodings)
    choices = []
    for info in infos:
        rule = rules.rule_for(info.name)
        if rule is not None:
            choices.append(Choice(info.name, info.source, rule.encoding, rule.encoding, f"--tensor-type {rule.text}"))
            continue
        wanted = info.source if request.type == COPY else request.type
        choices.append(Choice(info.name, info.source, wanted, wanted, request.type))
    return choices


def _own(choice: Choice, own: Mapping[str, str]) -> Choice:
    wanted = own.get(choice.name)
    if wanted is None or not choice.is_copy:
        return choice
    return replace(choice, encoding=wanted, wanted=wanted, why=OWN)


def _held(choice: Choice, target: Format) -> Choice:
    """Return the choice, or for a kept encoding that the format lacks the exact one; raises EncodingError where it was asked for."""
    if not target.encodings or choice.encoding in target.encodings:
        return choice
    listed = ", ".join(target.encodings)
    if choice.is_copy:
        why = f"{target.name} does not hold {choice.encoding}"
        return replace(choice, encoding=target.encodings[0], wanted=target.encodings[0], why=why)
    raise EncodingError(
        f"{target.name} does not hold {choice.encoding}",
        tensor=choice.name,
        remedy=f"Choose a --type made of {listed}.",
    )


def stand_in_notes(choices: Sequence[Choice], target: Format) -> tuple[str, ...]:
    """Say which of the source's encodings the format could not hold."""
    lost = sorted({it.source for it in choices if it.why == f"{target.name} does not hold {it.source}"})
    if not lost:
        return ()
    stand_in = target.encodings[0]
    return (
        f"{target.name} does not hold {', '.join(lost)}: these tensors become {stand_in}, which keeps their values; --type chooses a smaller one",
    )
