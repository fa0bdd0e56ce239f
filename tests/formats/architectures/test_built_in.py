"""The descriptions that ship with qconv against the gguf package's tables of names and keys."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import gguf.constants
import pytest
from huggingface_folder import CONFIGS, hf_shapes

from qconv.formats.architectures import TRANSFORMS, Architecture, built_in_architectures, map_names
from qconv.formats.huggingface.configuration import read_hyper_parameters

ALL = pytest.mark.parametrize("architecture", built_in_architectures(), ids=lambda item: item.name)

# Hugging Face names that the gguf package's table lacks: already stacked experts, and the router's name beside them; older names of norms; scales; projections one by one
_LATER = re.compile(
    r"model\.layers\.#\.mlp\.(experts\.(gate_up|down)_proj|gate\.weight)|.*\.shared_mlp\.output_linear\.weight|backbone\.layers\.#\.mixer\.experts\.\{expert\}\..*|.*\.(gamma|beta)|.*\.router\.(scale|per_expert_scale)"
    r"|model\.altup_(unembed_)?projections\.0\.weight|.*\.hc_(attn|ffn)_(fn|base|scale)|.*\.indexer\.index_kpool_compress_(gate|ape)"
    r"|model\.layers\.#\.block_sparse_moe\.(gate|up|down)_proj\.weight"
)

_OTHER_STEMS = {
    "linear_attn.dt": "linear_attn.dt_proj",
    "mamba.dt": "mamba.dt_proj",
    "self_attn.dt": "self_attn.dt_proj",
}  # the gguf package lists a module that no checkpoint has
_WITHOUT_SUFFIX = ("blk.3.ssm_a", "blk.3.ssm_d")


# what llama.cpp has and this gguf package does not yet: keys, and architectures whose names are those of others
_LATER_KEYS = {
    "attention.indexer.types",
    "attention.indexer.kpool",
    "attention.indexer.kpool_select_tail",
    "hyper_connection.count",
    "hyper_connection.sinkhorn_iterations",
    "hyper_connection.epsilon",
    "kda.gate_lower_bound",
}
_LATER_ARCHITECTURES = {"deepseek32": ("glm-dsa",), "glm5-next": ("kimi-linear", "glm-dsa")}


def known_keys() -> set[str]:
    """Every GGUF key that the gguf package defines, without the architecture's prefix."""
    return {key.removeprefix("{arch}.") for key in keys_of(gguf.constants.Keys)} | _LATER_KEYS


def keys_of(group: type) -> set[str]:
    found: set[str] = set()
    for value in vars(group).values():
        found |= keys_of(value) if isinstance(value, type) else {value} if isinstance(value, str) else set()
    return found


def name_tables(name: str) -> list[gguf.TensorNameMap]:
    known = _LATER_ARCHITECTURES.get(name, (name,))
    return [gguf.get_tensor_name_map(key, 4) for key, value in gguf.MODEL_ARCH_NAMES.items() if value in known]


@ALL
def test_names_agree_with_gguf(architecture: Architecture) -> None:
    tables = name_tables(architecture.gguf)
    assert tables
    compared = 0
    for entry in architecture.tensors:
        if len(entry.gguf) > 1 or _LATER.fullmatch(entry.hf[0].replace("{layer}", "#")):
            continue
        if architecture.name in ("cohere", "cohere2", "gemma", "gemma2") and entry.gguf[0] == "output.weight":
            continue  # always tied: the entry is there to leave out a stored copy
        name = entry.hf[0].replace("{layer}", "3").replace("model.language_model.", "model.")
        if entry.per_expert:  # the gguf package lists the stacked form
            name = name.replace("experts.{expert}", "experts")
        stem, suffix = _stem(name)
        found = next((found for found in (table.get_name(stem) for table in tables) if found is not None), None)
        assert (found if found in _WITHOUT_SUFFIX else f"{found}.{suffix}") == entry.gguf[0].replace("{layer}", "3")
        compared += 1
    assert compared > 7


def _stem(name: str) -> tuple[str, str]:
    """Return what the gguf package lists, and the suffix: parameters of a module of their own end in neither weight nor bias."""
    stem, _, suffix = name.rpartition(".")
    if suffix in ("weight", "bias"):
        return stem, suffix
    if not suffix.endswith("_bias"):
        return name, "weight"
    stem = name.removesuffix("_bias")
    return next((stem.replace(*it) for it in _OTHER_STEMS.items() if stem.endswith(it[0])), stem), "bias"


@ALL
def test_keys_are_gguf_keys(architecture: Architecture) -> None:
    known = known_keys()
    keys = [key for parameter in architecture.hyper_parameters for key in parameter.keys]
    keys += [key for parameter in architecture.per_layer for key in parameter.keys]
    assert len(set(keys)) == len(keys)
    assert set(keys) <= known
    assert {"block_count", "context_length", "embedding_length", "attention.head_count"} <= set(keys)


@ALL
def test_a_whole_checkpoint_maps(architecture: Architecture) -> None:
    config = CONFIGS[architecture.name]
    shapes = hf_shapes(architecture, config)
    found = map_names(architecture, shapes, read_hyper_parameters(architecture, config, Path("config.json")))
    assert not (found.unmapped or found.missing or found.ambiguous or found.dropped)
    names = [name for item in found.mapped for name in item.gguf]
    assert len(set(names)) == len(names)
    assert {source for item in found.mapped for source in item.sources} == set(shapes)


@ALL
def test_every_tensor_can_be_dropped_and_is_then_missing(architecture: Architecture) -> None:
    shapes = hf_shapes(architecture, CONFIGS[architecture.name])
    values = read_hyper_parameters(architecture, CONFIGS[architecture.name], Path("config.json"))
    for name in shapes:
        found = map_names(architecture, [other for other in shapes if other != name], values)
        assert name in found.missing


def test_every_transform_but_the_joins_is_used_or_an_inverse() -> None:
    used = {entry.transform for architecture in built_in_architectures() for entry in architecture.tensors}
    assert set(TRANSFORMS) - used == {"fuse_rows"}  # for plugins, and for the way back of split_rows
