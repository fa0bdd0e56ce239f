"""``qconv imatrix --compat llama.cpp`` beside the sums of what llama.cpp itself multiplies its weights by."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from gguf_files import CONTEXT
from huggingface_folder import CONFIGS, architecture_named, hf_shapes, random_weights, stored, write_folder
from llamacpp_models import product_inputs
from measuring import PROSE, subject
from numpy.typing import NDArray
from run_cli import Cli

from qconv.convert.measure import Cut, cut_text
from qconv.formats.imatrix import read_imatrix
from qconv.runtime.measuring.identity import read_text

Sums = dict[str, NDArray[np.float64]]


def mixture(folder: Path, example: Path) -> Path:
    """A random Mixtral with the example's tokenizer."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 4096}
    config = CONFIGS["mixtral"] | sizes | {"num_local_experts": 4, "max_position_embeddings": 512}
    weights = random_weights(hf_shapes(architecture_named("mixtral"), config))
    small = {key: value * np.float32(1 / 8) if value.ndim > 1 else value for key, value in weights.items()}
    write_folder(folder, config, stored(small))
    for path in example.glob("*token*"):
        shutil.copy(path, folder)
    return folder


def llamacpps(path: Path, sequences: Sequence[Sequence[int]]) -> tuple[Sums, Sums]:
    """Return, by name, sums of squares (experts, columns) and counts (experts,), by llama.cpp's definition from its own numbers."""
    sums: dict[str, dict[int, NDArray[np.float64]]] = defaultdict(dict)
    counts: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for name, rows, experts in product_inputs(path, sequences):
        wide = rows.astype(np.float64).reshape(len(rows), -1, rows.shape[-1])
        chosen = np.zeros((len(rows), 1), np.int32) if experts is None else experts
        each = np.broadcast_to(wide, (*chosen.shape, rows.shape[-1]))
        for expert in np.unique(chosen):
            mine = np.square(each[chosen == expert])
            sums[name][int(expert)] = sums[name].get(int(expert), 0.0) + mine.sum(axis=0)
            counts[name][int(expert)] += len(mine)
    return (
        {name: np.array([it[key] for key in sorted(it)]) for name, it in sums.items()},
        {name: np.array([it[key] for key in sorted(it)], np.float64) for name, it in counts.items()},
    )


@pytest.mark.oracles
@pytest.mark.parametrize("experts", [False, True])
def test_sums_are_those_of_llamacpps_own_activations(
    cli: Cli, example_model: Path, tmp_path: Path, experts: bool
) -> None:
    source = mixture(tmp_path / "mixture", example_model) if experts else example_model
    model, output = tmp_path / "m.gguf", tmp_path / "imatrix.gguf"
    assert cli("hf-to-gguf", source, "-o", model, "--type", "f32").code == 0
    words = ("--text", PROSE, "-c", 128, "--chunks", 3, "--compat", "llama.cpp", "--process-output")
    done = cli("imatrix", model, *words, "-o", output)
    assert done.code == 0, done.err
    ours = read_imatrix(output, CONTEXT).entries
    with subject(model) as found:
        sequences = cut_text(found, read_text(PROSE), Cut(128, limit=3)).evaluated.tolist()
    sums, counts = llamacpps(model, sequences)
    assert set(sums) == set(ours)
    worst = 0.0
    for name, theirs in sums.items():
        assert ours[name].counts.tolist() == counts[name].tolist()
        worst = max(worst, float(np.abs(ours[name].sums / theirs - 1).max()))
    print(f"{len(sums)} matrices, sums differ by at most {worst:.1e}")
    assert worst < 1e-4
