"""What yarn multiplies by beside its frequencies: GGUF's keys as llama.cpp reads them, and notes where it does not read them.

With ``g(x) = 1 + 0.1 x ln(factor)``, a file's ``rope.scaling.attn_factor`` ``a`` and ``rope.scaling.yarn_log_multiplier`` ``m``, cosines and sines are
multiplied by ``a g(1)``. Where llama.cpp reads a multiplier other than 0, that is divided, and the logits of attention are multiplied on top; ``yarn.json``
has the reading by the name of the architecture:

==========  ========================  ==============================================================
reading     cosines and sines, ``t``  logits
==========  ========================  ==============================================================
``turned``  ``a g(1) / g(m)``         1
``logits``  ``a g(1) / g(10 m)``      ``(t g(10 m))²``, without a multiplier ``t²``
``equal``   ``a``                     the same
==========  ========================  ==============================================================

Without yarn ``t`` is ``a``, and in families that multiply logits these are multiplied by ``(a g(1) g(10 m))²``, whatever the scaling is.
Families whose description says that yarn multiplies logits, though llama.cpp does not read the key there, are computed as by ``equal``. The
numbers were found by running llama.cpp; ``betas`` are the architectures in which it reads ``yarn_beta_fast`` and ``yarn_beta_slow``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

from .architectures import Architecture
from .metadata import Field

__all__ = [
    "ATTENTION",
    "BETAS",
    "LOG_MULTIPLIER",
    "Magnitudes",
    "keys_of_magnitudes",
    "note_unread",
    "own_magnitude",
    "reads_betas",
    "yarn_magnitudes",
]

ATTENTION: Final = "rope.scaling.attn_factor"
LOG_MULTIPLIER: Final = "rope.scaling.yarn_log_multiplier"
BETAS: Final = (("rope.scaling.yarn_beta_fast", 32.0), ("rope.scaling.yarn_beta_slow", 1.0))
"""Keys, and yarn's own values, which are also llama.cpp's where it does not read the keys."""
_SLOPE: Final = 0.1
_CLOSE: Final = 1e-6  # relative


@dataclass(frozen=True, slots=True)
class Magnitudes:
    """What yarn multiplies by.

    Attributes:
        turned: cosines and sines.
        logits: attention's logits, on top.
    """

    turned: float
    logits: float


def own_magnitude(factor: float, share: float = 1.0) -> float:
    """Return ``1 + 0.1 share ln(factor)``, 1 for a factor that stretches nothing."""
    return 1.0 + _SLOPE * share * math.log(factor) if factor > 1 else 1.0


def yarn_magnitudes(
    architecture: Architecture, factor: float, attention: float, multiplier: float, *, yarn: bool = True
) -> Magnitudes:
    """Return what the keys of a GGUF file mean; absent ones are 1 and 0. ``yarn`` tells whether the scaling is that, or another one or none."""
    reading = _reading(architecture)
    turned, share = attention, 0.0
    if multiplier and reading in ("logits", "equal"):
        share = multiplier / _SLOPE
    if yarn:
        if multiplier and reading == "turned":
            turned *= own_magnitude(factor) / own_magnitude(factor, multiplier)
        elif not share or reading == "logits":
            turned *= own_magnitude(factor) / own_magnitude(factor, share)
    if not _multiplies_logits(architecture):
        return Magnitudes(turned, 1.0)
    return Magnitudes(turned, (turned * _in_logits(factor, yarn) * own_magnitude(factor, share)) ** 2)


def keys_of_magnitudes(
    architecture: Architecture, factor: float, wanted: Magnitudes, *, yarn: bool = True
) -> tuple[float, float]:
    """Return the attention factor and the multiplier, 1 and 0 for absent ones, with which :func:`yarn_magnitudes` gives ``wanted``.

    Of families that do not multiply logits, the multiplier is 0.
    """
    own = own_magnitude(factor)
    attention, multiplier = wanted.turned / (own if yarn else 1.0), 0.0
    if _multiplies_logits(architecture) and own != 1.0:
        excess = math.sqrt(wanted.logits) / (wanted.turned * _in_logits(factor, yarn))
        if not math.isclose(excess, 1.0, rel_tol=_CLOSE):
            multiplier = _SLOPE * (excess - 1.0) / (own - 1.0)
            attention *= own if yarn and _reading(architecture) == "equal" else excess if yarn else 1.0
    return 1.0 if math.isclose(attention, 1.0, rel_tol=_CLOSE) else attention, multiplier


def _in_logits(factor: float, yarn: bool) -> float:
    """Return yarn's own factor where cosines and sines do not have it: llama.cpp multiplies logits by it whatever the scaling."""
    return 1.0 if yarn else own_magnitude(factor)


def note_unread(architecture: Architecture, metadata: Mapping[str, Field]) -> tuple[str, ...]:
    """Return a note where a file has a key that is followed here and not by llama.cpp, or the other way round."""
    prefix = f"{architecture.gguf}."
    rope = architecture.rope
    if rope is None:
        return ()
    stated = {key.removeprefix(prefix): field.value for key, field in metadata.items() if key.startswith(prefix)}
    yarn = stated.get("rope.scaling.type") == "yarn"
    unread = (
        []
        if reads_betas(architecture) or not yarn
        else [key for key, usual in BETAS if stated.get(key, usual) != usual]
    )
    if (
        yarn
        and rope.log_multiplier
        and architecture.gguf not in _table()["log_multiplier"]
        and stated.get(LOG_MULTIPLIER)
    ):
        unread.append(LOG_MULTIPLIER)
    parts = [f"does not read {' and '.join(prefix + key for key in unread)}"] if unread else []
    if rope.local_theta is not None and stated.get(ATTENTION, 1.0) != 1.0:
        parts.append(f"applies {prefix}{ATTENTION} to layers with a sliding window too")
    if not parts:
        return ()
    what = f"llama.cpp {' and '.join(parts)}, other than transformers and qconv"
    return (f"{what}: the results differ from llama.cpp's",)


def reads_betas(architecture: Architecture) -> bool:
    """Whether llama.cpp reads yarn's betas in this architecture."""
    return architecture.gguf in _table()["betas"]


def _multiplies_logits(architecture: Architecture) -> bool:
    return architecture.rope is not None and architecture.rope.log_multiplier


def _reading(architecture: Architecture) -> str | None:
    found: str | None = _table()["log_multiplier"].get(architecture.gguf)
    return "equal" if found is None and _multiplies_logits(architecture) else found


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(files(__package__).joinpath("yarn.json").read_text(encoding="utf-8"))
    return table
