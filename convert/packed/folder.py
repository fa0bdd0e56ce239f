"""From a model to a GPTQ or AWQ folder: one pass, since every matrix is rounded when its tensors are written.

Without a calibration file every weight becomes the nearest code. With one, GPTQ makes up for errors (:mod:`qconv.quantizers.rounding.feedback`), and AWQ scales
inputs (:mod:`.activation_folds`) and chooses each group's scale by the second moments of its inputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from ... import __version__
from ...errors import UsageError
from ...formats.base import Model, Tensor
from ...formats.scales import fold_scales
from ...plugins.manager import Registries
from ...quantizers.rounding.group_rounding import Grid
from ...runtime.building.network import load_network
from ..calibration.error_feedback import refuse_other_model
from ..jobs import Result, run_plan
from ..plan import Plan
from ..prune import prune_layers
from ..quantized_folder import in_float16, plan_folder
from ..settings import Settings
from .activation_folds import Fold, find_folds, scale_tensors
from .linears import PackedLinear, PackedSubject, check_sizes, packed_subject
from .matrices import Matrices
from .rounding import Inputs, Order, Rounders, Rounding
from .scales import Scales

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["PACKINGS", "PackedPlan", "PackedRequest", "plan_packed", "run_packed"]

PACKINGS: Final = ("gptq", "awq")

_BITS: Final = 4
_LISTED: Final = 4  # names in a note


@dataclass(frozen=True)
class PackedRequest:
    """What is asked for, beside the settings of every conversion.

    Attributes:
        packing: ``gptq`` or ``awq``.
        group_size: inputs that share a scale, -1 for all.
        symmetric: whether every zero point is the middle code; None: GPTQ's are, AWQ's are not.
        static_groups: with activation order: groups are neighbours all the same.
        feedback: whether errors are made up for, where a calibration file is given; None: in GPTQ, and in AWQ where the settings' method says so.
        scaling: whether AWQ scales inputs, where a calibration file is given.
    """

    packing: Literal["gptq", "awq"]
    group_size: int = 128
    symmetric: bool | None = None
    static_groups: bool = False
    feedback: bool | None = None
    scaling: bool = True


@dataclass(frozen=True)
class PackedPlan:
    """A plan, and what it does to which matrix.

    Attributes:
        plan: to be carried out by :func:`run_packed`.
        linears: matrices that are packed.
        rounding: how.
        measured: names of those whose inputs are known.
        scaled: names of those whose inputs are scaled.
    """

    plan: Plan
    linears: tuple[PackedLinear, ...]
    rounding: Rounding
    measured: frozenset[str]
    scaled: frozenset[str]

    @property
    def weights(self) -> int:
        """Weights of all packed matrices."""
        return sum(it.outputs * it.inputs for it in self.linears)

    @property
    def bits_per_weight(self) -> float:
        """Of the packed matrices."""
        names = {it.name for it in self.linears}
        steps = [step for step in self.plan.steps if step.target.name.rpartition(".")[0] in names]
        packed = [step for step in steps if not step.target.name.endswith(".bias")]
        return 8 * sum(step.target.nbytes for step in packed) / self.weights


def plan_packed(
    model: Model, output: Path, request: PackedRequest, settings: Settings, registries: Registries
) -> PackedPlan:
    """Decide everything about a packed folder; of the model's weights, only samples are read, to compare it with the calibration file's.

    Raises UsageError for settings that do not go together, EncodingError for sizes that cannot be packed, ModelError for the calibration file of another
    model, and what :func:`.packed.linears.packed_subject` raises.
    """
    rounding = _rounding(request, settings)
    context = registries.open_context()
    inputs = None if settings.calibration is None else Inputs(settings.calibration, context)
    if inputs is not None:
        refuse_other_model(inputs.facts, inputs.path, model)
    if settings.prune:
        model = prune_layers(model, settings.prune)
    model = replace(
        model,
        tensors=MappingProxyType(fold_scales(model.tensors)),
        metadata=MappingProxyType({**model.metadata, **settings.overrides}),
    )
    rounders = Rounders(rounding, inputs, settings.threads)
    scaling = None
    if request.packing == "awq" and request.scaling and inputs is not None:
        scaling = _find_scaling(model, registries, inputs, rounders)
        model = replace(model, tensors=MappingProxyType(scale_tensors(model.tensors, scaling.folds, scaling.scales)))
    subject = packed_subject(model, context)
    check_sizes(subject, rounding.grid)
    scales_of = _unscaled if scaling is None else scaling.scales_of
    matrices = Matrices(rounders, settings.threads, registries.encodings, scales_of)
    tensors: list[Tensor] = []
    for name, tensor in subject.prepared.tensors.items():
        linear = subject.linears.get(name)
        tensors += [in_float16(tensor, registries.encodings["F16"])] if linear is None else matrices.tensors(linear)
    linears = tuple(subject.linears.values())
    measured = frozenset(it.name for it in linears if matrices.key(it) is not None)
    scaled = frozenset(it.name for it in linears if scaling is not None and scaling.fold_of(it) is not None)
    files = () if settings.calibration is None else (settings.calibration,)
    prepared = replace(
        subject.prepared,
        files=(*model.files, *files),
        notes=(*subject.prepared.notes, *_notes(linears, measured, inputs)),
    )
    plan = plan_folder(
        prepared,
        tensors,
        output,
        _quantization(subject, request, rounding, inputs),
        target=request.packing,
        split_max_size=settings.write.split_max_size,
        split_max_tensors=settings.write.split_max_tensors,
        threads=settings.threads,
    )
    return PackedPlan(plan, linears, rounding, measured, scaled)


def run_packed(planned: PackedPlan, force: bool, progress: Callable[[int], None]) -> Result:
    """Carry a plan out as :func:`.jobs.run_plan` does; the threads of the job are all that there are."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):  # results may depend on how BLAS divides its work
        return run_plan(planned.plan, force, progress)


def _rounding(request: PackedRequest, settings: Settings) -> Rounding:
    """Return how matrices are rounded; raises UsageError for what makes no sense."""
    is_gptq = request.packing == "gptq"
    calibrated = settings.calibration is not None
    if settings.method == "gptq" and not calibrated:
        raise UsageError(
            "--method gptq needs second moments",
            remedy="Measure them with qconv calibrate, and pass the file with --calibration.",
        )
    if calibrated and settings.prune:
        raise UsageError("--calibration and --prune-layers exclude each other", remedy="Prune first, then calibrate.")
    feedback = calibrated and (is_gptq or settings.method == "gptq") if request.feedback is None else request.feedback
    if settings.activation_order and not feedback:
        raise UsageError("--activation-order goes with error feedback", remedy="Pass --calibration, or leave it out.")
    if settings.activation_order and not is_gptq and not request.static_groups:
        raise UsageError(
            "AWQ holds groups of neighbours only", remedy="Add --static-groups, or leave out --activation-order."
        )
    if request.static_groups and not settings.activation_order:
        raise UsageError("--static-groups goes with --activation-order", remedy="Leave it out.")
    if request.group_size != -1 and request.group_size < 8:
        raise UsageError(f"--group-size is -1 or a number from 8 up, not {request.group_size}")
    order: Order = "none"
    if settings.activation_order:
        order = "static" if request.static_groups or request.group_size == -1 else "groups"
    symmetric = is_gptq if request.symmetric is None else request.symmetric
    grid = Grid(_BITS, request.group_size, symmetric, lowest_zero=1 if is_gptq else 0)
    return Rounding(request.packing, grid, feedback, settings.damping, order)


@dataclass(frozen=True)
class _Scaling:
    """How AWQ scales inputs.

    Attributes:
        folds: the places where inputs are scaled.
        scales: the vectors by which they are.
        places: number of the fold before a matrix, by its canonical name and first row.
    """

    folds: tuple[Fold, ...]
    scales: Scales
    places: Mapping[tuple[str, int], int]

    def fold_of(self, linear: PackedLinear) -> int | None:
        """Return the number of the fold that scales a layer's inputs, None where they are not scaled."""
        return self.places.get((linear.canonical[0], (linear.expert or 0) * linear.outputs))

    def scales_of(self, linear: PackedLinear) -> NDArray[np.float32] | None:
        """Return float32 (inputs,): the scales of a layer's inputs, None where they are not scaled."""
        number = self.fold_of(linear)
        return None if number is None else self.scales(number)


def _unscaled(linear: PackedLinear) -> None:
    """Return the scales of a layer whose inputs are left alone."""


def _find_scaling(model: Model, registries: Registries, inputs: Inputs, rounders: Rounders) -> _Scaling:
    """Return where the inputs of a model's packed matrices can be scaled; scales are found when they are asked for."""
    network = load_network(model, registries.architectures.values())
    subject = packed_subject(model, registries.open_context())
    names = {name for linear in subject.linears.values() for name in linear.canonical}
    folds = find_folds(network, names, inputs.met)
    places = {(matrix.name, matrix.first): number for number, fold in enumerate(folds) for matrix in fold.packed}
    return _Scaling(folds, Scales(folds, rounders), places)


def _quantization(
    subject: PackedSubject, request: PackedRequest, rounding: Rounding, inputs: Inputs | None
) -> dict[str, Any]:
    """Return ``quantization_config``, with what transformers, vLLM and AutoGPTQ or AutoAWQ read, and how it came about."""
    made: dict[str, Any] = {"quantizer": [f"qconv:{__version__}"], "rounding": _words(request, rounding, inputs)}
    if inputs is not None:
        made["calibration"] = {"job": inputs.facts.job, "datasets": list(inputs.facts.datasets)}
    grid = rounding.grid
    if request.packing == "awq":
        return {
            "quant_method": "awq",
            "bits": grid.bits,
            "group_size": grid.group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": list(subject.left_out) or None,
            "meta": made,
        }
    found: dict[str, Any] = {
        "quant_method": "gptq",
        "bits": grid.bits,
        "group_size": grid.group_size,
        "desc_act": rounding.order == "groups",
        "static_groups": rounding.order == "static",
        "sym": grid.symmetric,
        "true_sequential": False,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "meta": made,
    }
    if rounding.feedback and 0 < rounding.damping < 1:
        found["damp_percent"] = rounding.damping
    if subject.left_out:  # GPTQModel's and vLLM's way to say which layers are not packed
        endings = dict.fromkeys(re.sub(r"\d+", r"\\d+", re.escape(name)) for name in subject.left_out)
        found["dynamic"] = {f"-:{ending}$": {} for ending in endings}
    return found


def _words(request: PackedRequest, rounding: Rounding, inputs: Inputs | None) -> str:
    if inputs is None:
        words = ["nearest"]
    elif rounding.feedback:
        words = [f"error feedback, damping {rounding.damping:g}"]
    else:
        words = ["groups by second moments"]
    words += [{"groups": "activation order", "static": "activation order, static groups", "none": ""}[rounding.order]]
    words += ["scaled inputs"] if request.packing == "awq" and request.scaling and inputs is not None else []
    words += ["symmetric"] if rounding.grid.symmetric else []
    return ", ".join(filter(None, words))


def _notes(linears: tuple[PackedLinear, ...], measured: frozenset[str], inputs: Inputs | None) -> tuple[str, ...]:
    """Say which matrices a calibration file does nothing for."""
    left = [it.name for it in linears if it.name not in measured]
    if inputs is None or not left:
        return ()
    if len(left) == len(linears):
        raise UsageError(f"{inputs.path} has measured no input of a packed matrix", remedy="Leave out --calibration.")
    unseen = [
        it.name
        for it in linears
        if it.name not in measured and it.expert is not None and all(name in inputs.entries for name in it.canonical)
    ]
    others = [name for name in left if name not in set(unseen)]
    notes = []
    if unseen:
        notes.append(f"rounded to nearest, because no token met the expert in calibration: {_list(unseen)}")
    if others:
        notes.append(f"rounded to nearest, because no second moments were measured: {_list(others)}")
    return tuple(notes)


def _list(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
