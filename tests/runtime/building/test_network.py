"""Models that cannot be run say why, by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from memory_model import tensor
from numpy.typing import NDArray
from tiny_networks import in_memory, logits, network, tokens

from qconv.errors import (
    MissingTensorError,
    ModelError,
    QconvError,
    ShapeError,
    UnknownArchitectureError,
    UnmappedTensorError,
    UsageError,
)
from qconv.formats.base import Model, Tensor
from qconv.formats.metadata import Field, float32, string, uint32
from qconv.runtime.building.network import load_network
from qconv.runtime.building.read_configuration import read_configuration

PATH = Path("tiny")


def changed(model: Model, **tensors: Tensor | None) -> Model:
    """Return the model with tensors (``__`` for the dot) replaced, added or, where None, removed."""
    named = {key.replace("__", "."): value for key, value in tensors.items()}
    kept = {**model.tensors, **named}
    return replace(model, tensors={key: value for key, value in kept.items() if value is not None})


def told(model: Model, **fields: Field) -> Model:
    """Return the model with metadata (``__`` for the dot) replaced."""
    return replace(
        model, metadata={**model.metadata, **{key.replace("__", "."): value for key, value in fields.items()}}
    )


def test_families_that_share_a_name_are_told_apart_by_experts() -> None:
    assert network("llama").configuration.architecture == "llama"
    mixture = network("mixtral").configuration
    assert (mixture.architecture, mixture.experts, mixture.experts_used) == ("mixtral", 3, 2)


def test_sizes_come_from_metadata() -> None:
    found = network("qwen3").configuration
    assert (found.layers, found.hidden, found.heads, found.kv_heads, found.head_size) == (2, 16, 4, 2, 8)
    assert found.attention_scale == pytest.approx(8**-0.5)


def test_gemma3_has_rotary_positions_of_two_kinds() -> None:
    found = network("gemma3", num_hidden_layers=6).configuration
    thetas = []
    for layer in range(6):
        rope = found.layer_rope(layer)
        assert rope is not None
        thetas.append(rope.theta)
    assert thetas == [10000.0] * 5 + [1000000.0]


MISTAKES: list[tuple[Model, type[QconvError], str]] = [
    (told(in_memory("llama", PATH), general__architecture=string("rwkv")), UnknownArchitectureError, "'rwkv' has no"),
    (changed(in_memory("llama", PATH), blk__1__ffn_up__weight=None), MissingTensorError, "blk.1.ffn_up.weight"),
    (changed(in_memory("llama", PATH), token_embd__weight=None), MissingTensorError, "token_embd.weight"),
    (
        changed(in_memory("llama", PATH), blk__0__attn_rel_b__weight=tensor("x", np.ones((1, 4), np.float32))),
        UnmappedTensorError,
        "blk.0.attn_rel_b.weight",
    ),
    (
        changed(in_memory("llama", PATH), blk__1__attn_k__weight=tensor("x", np.ones((8, 15), np.float32))),
        ShapeError,
        r"blk.1.attn_k.weight: its shape is \(8, 15\), but \(8, 16\) is needed",
    ),
    (
        told(in_memory("llama", PATH), llama__attention__head_count=uint32(3)),
        ModelError,
        "3 query heads cannot share 2",
    ),
    (told(in_memory("llama", PATH), llama__attention__value_length=uint32(8)), ModelError, "4 and 8.*must be equal"),
    (told(in_memory("llama", PATH), llama__rope__dimension_count=uint32(5)), ModelError, "5 of 4 dimensions"),
    (told(in_memory("llama", PATH), llama__rope__freq_base=float32(1.0)), ModelError, "freq_base is 1.0"),
    (told(in_memory("llama", PATH), llama__rope__scaling__type=string("ntk")), ModelError, "'ntk' is not known"),
    (told(in_memory("llama", PATH), llama__block_count=uint32(0)), ModelError, "layers is 0"),
    (told(in_memory("mixtral", PATH), llama__expert_used_count=uint32(4)), ModelError, "4 of 3 experts"),
    (told(in_memory("llama", PATH), llama__block_count=uint32(1)), UnmappedTensorError, "blk.1.attn_norm.weight"),
    (
        told(in_memory("llama", PATH), llama__attention__layer_norm_rms_epsilon=float32(float("nan"))),
        ModelError,
        "epsilon is nan",
    ),
    (
        told(in_memory("gemma4", PATH), gemma4__attention__shared_kv_layers=uint32(3)),
        ModelError,
        "layer 1 cannot read the keys and values of layer 0",
    ),
    (
        told(in_memory("gemma4", PATH), gemma4__attention__shared_kv_layers=uint32(1 << 30)),
        ModelError,
        "layer 0 cannot read the keys and values of layer -",
    ),
    (told(in_memory("gemma4", PATH), gemma4__rope__dimension_count_swa=uint32(5)), ModelError, "5 of 4 dimensions"),
    (changed(in_memory("gemma4", PATH), blk__0__attn_v__weight=None), MissingTensorError, "blk.0.attn_v.weight"),
]


@pytest.mark.parametrize(("model", "kind", "message"), MISTAKES, ids=lambda item: item if isinstance(item, str) else "")
def test_a_model_that_cannot_run_says_why(model: Model, kind: type[QconvError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        load_network(model)
    assert type(caught.value) is kind
    assert caught.value.path == PATH


def test_tokens_that_the_model_lacks_are_refused() -> None:
    found = network("llama")
    for bad, message in (([3, 24], "token 24 is not among the 24"), ([-1], "token -1"), ([], "one or more token ids")):
        with pytest.raises(UsageError, match=message):
            logits(found, bad)
    with pytest.raises(UsageError, match="no sequence"):
        logits(found)


def test_learned_positions_end() -> None:
    with pytest.raises(UsageError, match="33 tokens is longer than the 32 positions"):
        logits(network("gpt2"), tokens(33))


@pytest.mark.parametrize("name", ["blk.1.attn_v.weight", "blk.1.ffn_down.weight", "blk.1.ffn_norm.weight"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_activations_that_are_not_finite_name_the_block(name: str, bad: float) -> None:
    model = in_memory("llama", PATH)
    old = model.tensors[name]
    values = old.rows(0, old.row_count).reshape(old.shape).copy()
    values.reshape(-1)[3:11] = bad
    with pytest.raises(
        ModelError, match=r"after block 1 is (nan|-?inf|-?[0-9.]+e\+3[78]) at position \d+ of sequence 0"
    ) as caught:
        logits(load_network(replace(model, tensors={**model.tensors, name: tensor(name, values)})), tokens(12))
    assert "block 1 is damaged" in str(caught.value)


def test_an_output_that_is_not_finite_is_named() -> None:
    model = in_memory("llama", PATH)
    head = np.full((24, 16), np.nan, np.float32)
    with pytest.raises(ModelError, match="after the output is nan"):
        logits(load_network(changed(model, output__weight=tensor("output.weight", head))), tokens(4))


def test_a_configuration_needs_no_tensors() -> None:
    model = replace(in_memory("gpt2", PATH), tensors={})
    assert read_configuration(model).rope is None
    with pytest.raises(MissingTensorError):
        load_network(model)


def test_norms_of_heads_are_told_by_their_shape() -> None:
    """One for every head alike, the same as one row per head; rows that differ, or one over all heads, are something else."""
    model = in_memory("qwen3", PATH)
    row = model.tensors["blk.0.attn_q_norm.weight"].rows(0, 1)[0]
    text = tokens(9)
    (wanted,) = logits(load_network(model), text)

    def with_norm(values: NDArray[np.float32]) -> NDArray[np.float32]:
        (found,) = logits(load_network(changed(model, blk__0__attn_q_norm__weight=tensor("x", values))), text)
        return found

    assert np.array_equal(with_norm(np.tile(row, (4, 1))), wanted)
    assert not np.allclose(with_norm(np.stack([row, 2 * row, row, row])), wanted, atol=1e-3)
    assert not np.allclose(with_norm(np.tile(row, 4)), wanted, atol=1e-3)
    with pytest.raises(ShapeError, match=r"blk.0.attn_q_norm.weight: its shape is \(3, 8\), but \(4, 8\) is needed"):
        with_norm(np.tile(row, (3, 1)))


def test_families_that_share_a_name_are_told_apart_by_their_marks() -> None:
    assert [network(name).configuration.architecture for name in ("deepseek2", "deepseek3")] == [
        "deepseek2",
        "deepseek3",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"deepseek2__attention__key_length_mla": uint32(4)}, "keys of 4 of which 4 are rotated"),
        ({"deepseek2__expert_group_count": uint32(3)}, "2 of 4 experts cannot come from 1 of 3 groups"),
        ({"deepseek2__expert_group_used_count": uint32(5)}, "from 5 of 2 groups"),
        ({"deepseek2__expert_weights_scale": float32(float("nan"))}, "expert_weights_scale is nan"),
    ],
)
def test_latents_and_groups_that_make_no_sense(change: dict[str, Field], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_network(told(in_memory("deepseek3", PATH), **change))
