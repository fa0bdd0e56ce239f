"""Rotary scalings: every spelling, with figures computed here from the formulas, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_folder import CONFIGS, architecture_named

from qconv.errors import ModelError
from qconv.formats.huggingface.configuration import read_hyper_parameters
from qconv.formats.huggingface.rope import RopeResult, read_rope

PATH = Path("config.json")


def rope(name: str = "llama", **config: Any) -> RopeResult:
    architecture = architecture_named(name)
    merged = CONFIGS[name] | {"head_dim": 16} | config
    return read_rope(architecture, merged, read_hyper_parameters(architecture, merged, PATH), PATH)


def plain(result: RopeResult) -> dict[str, Any]:
    return {key.split(".", 1)[1].removeprefix("rope."): field.value for key, field in result.metadata.items()}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    "config",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4}},
        {"rope_theta": 5e5, "rope_parameters": {"rope_type": "linear", "factor": 4}},
    ],
)
def test_spellings_mean_the_same(config: dict[str, Any]) -> None:
    assert plain(rope(**config)) == {
        "dimension_count": 16,
        "freq_base": 5e5,
        "scaling.type": "linear",
        "scaling.factor": 4.0,
    }


@pytest.mark.parametrize("scaling", [None, {}, {"rope_type": "default"}, {"type": "default"}])
def test_no_scaling_writes_none(scaling: Any) -> None:
    result = rope(rope_scaling=scaling)
    assert plain(result) == {"dimension_count": 16, "freq_base": 10000.0}
    assert not result.tables and not result.notes


def test_llama3_without_a_band_blends_nothing() -> None:
    """Llama 4's: frequencies of less than one turn over the original context are divided, others stay."""
    result = rope(
        "llama4", rope_theta=10000.0, rope_scaling={"rope_type": "llama3"} | LLAMA3 | {"high_freq_factor": 1.0}
    )
    turns = 32 * 10000.0 ** -(np.arange(0, 16, 2) / 16) / (2 * math.pi)
    (table,) = result.tables.values()
    assert table.tolist() == [1.0 if turn >= 1 else 8.0 for turn in turns]
    assert {1.0, 8.0} == set(table.tolist())


def test_llama3_bands() -> None:
    result = rope(rope_theta=10000.0, rope_scaling={"rope_type": "llama3"} | LLAMA3)
    assert "scaling.type" not in plain(result)
    (table,) = result.tables.values()
    expected = []
    for pair in range(8):
        wavelength = 2 * math.pi * 10000.0 ** (2 * pair / 16)
        if wavelength < 32 / 4:
            expected.append(1.0)
        elif wavelength > 32 / 1:
            expected.append(8.0)
        else:
            smooth = (32 / wavelength - 1) / (4 - 1)
            expected.append(1 / ((1 - smooth) / 8 + smooth))
    assert 1.0 in expected and 8.0 in expected and any(1 < value < 8 for value in expected)
    assert table.dtype == np.float32
    assert np.allclose(table, expected, rtol=1e-6)


def test_yarn_keys() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    usual = {
        "dimension_count": 16,
        "freq_base": 10000.0,
        "scaling.original_context_length": 16,
        "scaling.yarn_beta_fast": 32.0,
        "scaling.yarn_beta_slow": 1.0,
        "scaling.type": "yarn",
        "scaling.factor": 4.0,
    }
    own = 0.1 * math.log(4) + 1
    assert plain(rope(rope_scaling=scaling)) == usual
    assert plain(rope(rope_scaling=scaling | {"attention_factor": own})) == usual
    asked = plain(rope(rope_scaling=scaling | {"attention_factor": 1.5}))
    assert asked["scaling.attn_factor"] == pytest.approx(1.5 / own)
    both = plain(rope(rope_scaling=scaling | {"mscale": 2.0, "mscale_all_dim": 1.0}))
    assert both["scaling.attn_factor"] == pytest.approx((0.2 * math.log(4) + 1) / own / own)


def test_yarn_of_unusual_betas_becomes_a_table_where_there_is_one() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 8.0}
    result = rope("llama", rope_scaling=scaling)
    assert "scaling.type" not in plain(result)
    assert plain(result)["scaling.attn_factor"] == pytest.approx(0.1 * math.log(4) + 1)
    table = result.tables["rope_freqs.weight"]
    assert table[0] == 1.0 and table[-1] == 4.0 and (np.diff(table) >= 0).all()
    other = rope("qwen2", rope_scaling=scaling)
    assert not other.tables
    assert plain(other)["scaling.yarn_beta_fast"] == 8.0
    assert "does not read qwen2.rope.scaling.yarn_beta_fast" in other.notes[0]
    assert "truncates" in rope("qwen2", rope_scaling=scaling | {"beta_fast": 32.0, "truncate": False}).notes[0]


def test_longrope_tables_and_attention() -> None:
    scaling = {"type": "su", "short_factor": [1.0] * 8, "long_factor": [float(n) for n in range(1, 9)]}
    config = {"original_max_position_embeddings": 16, "rope_scaling": scaling}
    result = rope("phi3", **config)
    assert plain(result)["scaling.original_context_length"] == 16
    assert plain(result)["scaling.attn_factor"] == pytest.approx(math.sqrt(1 + math.log(4) / math.log(16)))
    assert result.tables["rope_factors_long.weight"].tolist() == list(range(1, 9))
    assert result.tables["rope_factors_short.weight"].tolist() == [1] * 8


def test_sliding_layers_have_their_own_base() -> None:
    old = rope("gemma3", rope_theta=1e6, rope_local_base_freq=2e4, rope_scaling={"rope_type": "linear", "factor": 8})
    new = rope(
        "gemma3",
        rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
        },
    )
    assert plain(old) == plain(new)
    assert plain(new)["freq_base_swa"] == 2e4
    assert plain(rope("gemma3"))["freq_base_swa"] == 1e4


def test_heads_rotated_in_part() -> None:
    assert plain(rope("phi3", partial_rotary_factor=0.75))["dimension_count"] == 12
    assert plain(rope("phi3", rope_parameters={"partial_rotary_factor": 0.5}))["dimension_count"] == 8


def test_older_names_of_base_and_share() -> None:
    found = plain(rope("gptneox", rotary_pct=0.5, rotary_emb_base=25000))
    assert (found["dimension_count"], found["freq_base"]) == (2, 25000.0)  # heads of 4 dimensions
    assert plain(rope("gptneox", rotary_pct=0.5, partial_rotary_factor=1.0))["dimension_count"] == 4


def test_dynamic_scaling_is_a_note() -> None:
    result = rope(rope_scaling={"type": "dynamic", "factor": 2.0})
    assert "up to 64 tokens" in result.notes[0]


def test_no_rotary_positions_no_keys() -> None:
    architecture = architecture_named("gpt2")
    config = CONFIGS["gpt2"]
    assert read_rope(architecture, config, read_hyper_parameters(architecture, config, PATH), PATH) == RopeResult({})


LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8}


@pytest.mark.parametrize(
    ("name", "config", "sentence"),
    [
        ("llama", {"rope_scaling": {"type": "spiral", "factor": 2}}, "'spiral' is not known for this architecture"),
        ("llama", {"rope_scaling": {"type": "longrope"}}, "Known here: default, linear, yarn, llama3, dynamic"),
        ("qwen2", {"rope_scaling": {"type": "llama3"} | LLAMA3}, "'llama3' is not known"),
        ("qwen2", {"rope_scaling": {"type": "mrope", "mrope_section": [1]}}, "'mrope' is not known"),
        ("llama", {"rope_scaling": {"type": ["linear"]}}, "is not known"),
        ("llama", {"rope_scaling": "linear"}, "must be an object"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "lacks 'factor'"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 0}}, "must be a number above 0"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": "2"}}, "must be a number above 0"),
        ("llama", {"rope_scaling": {"type": "llama3"} | LLAMA3 | {"high_freq_factor": 0.5}}, "must not be below low_freq_factor"),
        ("llama", {"rope_theta": 0}, "rope_theta is 0"),
        ("llama", {"rope_theta": 10**400}, "rope_theta"),
        ("llama", {"rope_theta": "big"}, "rope_theta is 'big'"),
        ("llama", {"partial_rotary_factor": 0.5}, "rotates whole heads"),
        ("phi3", {"partial_rotary_factor": 1.5}, "at most 1"),
        ("phi3", {"partial_rotary_factor": 0.2}, "an even number"),
        ("phi3", {"rope_scaling": LONG | {"long_factor": [1.0] * 7}}, "'long_factor' has 7 numbers, half of the 16"),
        ("phi3", {"rope_scaling": LONG | {"short_factor": [1.0] * 7 + [0.0]}}, "'short_factor' must hold positive numbers"),
        ("phi3", {"rope_scaling": LONG | {"short_factor": None}}, "lacks the list 'short_factor'"),
        ("phi3", {"rope_scaling": LONG, "original_max_position_embeddings": 0}, "original_max_position_embeddings is 0"),
        ("gemma3", {"rope_parameters": {"full_attention": {}, "sliding_attention": {"rope_type": "linear"}}}, "GGUF cannot express"),
        ("gemma3", {"rope_parameters": {"full_attention": [], "sliding_attention": {}}}, "must be objects"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, "of their own"),
    ],
)  # fmt: skip
def test_what_cannot_be_expressed_is_an_error(name: str, config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelError) as caught:
        rope(name, **config)
    assert sentence in str(caught.value)
    assert caught.value.path == PATH
