"""Which matrices of a model GPTQ and AWQ folders hold packed: every linear layer of every block, by Hugging Face's name, but the routers.

The embedding, the output, routers, indexers' weights of heads and rates of linear attention stay as they are, as the reference implementations leave them. Every expert of a mixture has its own
matrices; families whose experts lie in one tensor without names of their own are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from ...errors import EncodingError, ModelError
from ...formats.architectures import TRANSFORMS, answering, whole
from ...formats.architectures.names import fill_name
from ...formats.base import Model, OpenContext, Tensor
from ...formats.huggingface.out.prepare import family_of, prepare_for_huggingface
from ...formats.huggingface.out.source import PREFIX, read_recorded
from ...formats.metadata import string
from ...quantizers.rounding.group_packing import OUTPUTS_PER_WORD
from ...quantizers.rounding.group_rounding import Grid

__all__ = ["PackedLinear", "PackedSubject", "check_sizes", "expert_by_expert", "packed_subject"]

# an indexer's weights and the rates of linear attention are few, and loaders hold them in float32
_LEFT_OUT: Final = (
    "ffn_gate_inp.weight",
    "ffn_gate_inp_shexp.weight",
    "indexer.proj.weight",
    "ssm_alpha.weight",
    "ssm_beta.weight",
    "ssm_ba.weight",
    "altup_router.weight",  # of streams, as routers of experts
    "altup_predict_coef.weight",
    "altup_correct_coef.weight",
)
_KERNELS: Final = ".ssm_conv1d"  # of single channels: no matrix that meets a vector
_WEIGHT: Final = ".weight"
_SIZES: Final = (128, 64, 32)  # groups that runtimes take


@dataclass(frozen=True)
class PackedLinear:
    """A matrix to be packed.

    Attributes:
        name: Hugging Face's, without ``.weight``.
        weight: (outputs, inputs), in Hugging Face's order of rows.
        canonical: the tensors of the forward pass that it is, or is a part of.
        expert: its number, where it is one of a stack.
    """

    name: str
    weight: Tensor
    canonical: tuple[str, ...]
    expert: int | None = None

    @property
    def outputs(self) -> int:
        """Rows of the matrix."""
        return self.weight.row_count

    @property
    def inputs(self) -> int:
        """Weights per row."""
        return self.weight.columns


@dataclass(frozen=True)
class PackedSubject:
    """A model as packed folders have it.

    Attributes:
        prepared: under Hugging Face's names, with the documents of its folder.
        linears: by the name of the tensor that each stands for.
        left_out: names of the linear layers of blocks that are not packed: routers, indexers' weights of heads, rates of linear attention.
    """

    prepared: Model
    linears: Mapping[str, PackedLinear]
    left_out: tuple[str, ...]


def packed_subject(model: Model, context: OpenContext) -> PackedSubject:
    """Return what of a model is packed; nothing is read.

    Raises ModelError for experts without names, or where there is nothing to pack, and what :func:`prepare_for_huggingface` raises.
    """
    model = expert_by_expert(model, context)
    recorded = read_recorded(model.metadata)
    family = family_of(model, context)
    prepared = prepare_for_huggingface(model, context)
    linears: dict[str, PackedLinear] = {}
    left_out: list[str] = []
    for entry, layer in family.entries:
        canonical = tuple(fill_name(name, layer) for name in entry.gguf)
        if layer is None or not all(_is_matrix(name) for name in canonical):
            continue
        experts = range(whole(family.values, "experts")) if entry.per_expert else (None,)
        for expert in experts:
            for template in entry.hf:
                name = recorded.stored_name(fill_name(template, layer, expert))
                tensor = prepared.tensors[name]
                own = len(tensor.shape) == 2 and not name.endswith(
                    _WEIGHT
                )  # a parameter of no module that could be packed
                if len(tensor.shape) < 2 or own:
                    continue
                if len(tensor.shape) > 2 or not name.endswith(_WEIGHT):
                    raise ModelError(
                        "holds all experts in one, and packed folders need a name for each",
                        path=model.path,
                        tensor=name,
                        remedy="This family has no packed form; choose another format.",
                    )
                if canonical[0].endswith(_LEFT_OUT):
                    left_out.append(name.removesuffix(_WEIGHT))
                    continue
                weight = TRANSFORMS["transpose"].forward([tensor], {})[0] if entry.transform == "transpose" else tensor
                linears[name] = PackedLinear(name.removesuffix(_WEIGHT), weight, canonical, expert)
    if not linears:
        raise ModelError("has no matrices to pack", path=model.path)
    return PackedSubject(prepared, MappingProxyType(linears), tuple(left_out))


def check_sizes(subject: PackedSubject, grid: Grid) -> None:
    """Raise EncodingError, naming a matrix and group sizes that would do, where groups do not fill rows, or words columns."""
    for linear in subject.linears.values():
        if linear.outputs % OUTPUTS_PER_WORD or linear.inputs % OUTPUTS_PER_WORD:
            raise EncodingError(
                f"has {linear.outputs} × {linear.inputs} weights, and packed matrices have multiples of {OUTPUTS_PER_WORD}",
                tensor=linear.name,
                remedy="This model has no packed form; choose another format.",
            )
    wrong = [linear for linear in subject.linears.values() if linear.inputs % grid.size(linear.inputs)]
    if wrong:
        fitting = [size for size in _SIZES if all(it.inputs % size == 0 for it in subject.linears.values())]
        words = " or ".join(str(size) for size in (*fitting, -1))
        raise EncodingError(
            f"has rows of {wrong[0].inputs} weights, which groups of {grid.group_size} do not fill",
            tensor=wrong[0].name,
            remedy=f"All rows of this model are filled by --group-size {words} (-1: one group per row).",
        )


def _is_matrix(name: str) -> bool:
    return name.endswith(_WEIGHT) and "norm" not in name and _KERNELS not in name


def expert_by_expert(model: Model, context: OpenContext) -> Model:
    """Return a model that goes back to Hugging Face's form with a name for each expert, though its source had them in stacks."""
    key = f"{PREFIX}names"
    recorded = read_recorded(model.metadata)
    named = answering(context.architectures.values(), model.architecture or "", model.metadata)
    forms = sorted({entry.hf[0] for it in named for entry in it.tensors if entry.per_expert})
    if not forms:
        return model
    kept = {"forms": forms} | ({} if recorded.prefix is None else {"prefix": list(recorded.prefix)})
    return replace(model, metadata=MappingProxyType({**model.metadata, key: string(json.dumps(kept))}))
