"""Whole conversions: rate, time, memory and start-up of ``qconv``, beside ``cp`` on the same disk.

    python scripts/bench_conversion.py [--folder DIR] [--only NAME]... [--json FILE]

"bar" is what the project demands. It makes synthetic Llama folders (random BF16 weights, the example's tokenizer) of 4.0 GB and of 0.4 billion weights, converts them
with warm kernels, and prints the least time of several runs; for the copy, whose rate follows the state of the page cache, the medians
of interleaved runs. Memory is the largest anonymous resident set (RssAnon) of the process,
sampled every 10 ms. It needs 13 GB of disk and, for llama.cpp's side, nothing: its figures come from the documentation.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "prose-llama-7m"
QCONV = [sys.executable, "-m", "qconv"]


@dataclass(frozen=True)
class Shape:
    """Sizes of a synthetic Llama."""

    name: str
    hidden: int
    feed_forward: int
    layers: int
    vocabulary: int
    heads: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return NumPy-order shapes by Hugging Face name."""
        sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                sizes[f"{prefix}self_attn.{name}.weight"] = (self.hidden, self.hidden)
            for name in ("gate_proj", "up_proj"):
                sizes[f"{prefix}mlp.{name}.weight"] = (self.feed_forward, self.hidden)
            sizes[f"{prefix}mlp.down_proj.weight"] = (self.hidden, self.feed_forward)
            for name in ("input_layernorm", "post_attention_layernorm"):
                sizes[f"{prefix}{name}.weight"] = (self.hidden,)
        sizes["model.norm.weight"] = (self.hidden,)
        sizes["lm_head.weight"] = (self.vocabulary, self.hidden)
        return sizes


LARGE = Shape("large", 2048, 8192, 28, 32000, 16)
SMALL = Shape("small", 1024, 3072, 24, 32000, 8)


def make_folder(shape: Shape, parent: Path) -> Path:
    """Write a Hugging Face folder of ``shape``: one safetensors file, its weights cut from a random block of Gaussian BF16."""
    folder = parent / shape.name
    folder.mkdir(exist_ok=True)
    for file in EXAMPLE.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    config = json.loads((EXAMPLE / "config.json").read_text())
    config |= {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.hidden // shape.heads,
        "vocab_size": shape.vocabulary,
    }
    (folder / "config.json").write_text(json.dumps(config))
    values = np.random.default_rng(0).standard_normal(1 << 25, np.float32) * np.float32(0.02)
    block = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    header: dict[str, object] = {}
    offset = 0
    for name, size in shape.tensors().items():
        nbytes = 2 * int(np.prod(size))
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as weights:
        weights.write(len(text).to_bytes(8, "little") + text)
        for size in shape.tensors().values():
            left = 2 * int(np.prod(size))
            while left:
                weights.write(block[: min(left, len(block))])
                left -= min(left, len(block))
    return folder


def run(command: list[str]) -> tuple[float, int]:
    """Run a command; return its wall seconds and its largest RssAnon in bytes; raises CalledProcessError where it fails."""
    environment = {
        key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"
    }  # as users have it
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            status = ""
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                peak = max(peak, int(line.split()[1]) * 1024)
        time.sleep(0.01)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.perf_counter() - started, peak


def best(repeats: int, action: Callable[[], tuple[float, int]]) -> tuple[float, int]:
    """Return the least time and the largest memory of several runs."""
    results = [action() for _ in range(repeats)]
    return min(seconds for seconds, _ in results), max(memory for _, memory in results)


def best_new(output: Path, command: list[str]) -> tuple[float, int]:
    """Return the least time and the largest memory of several runs that write ``output``, which is not there before."""
    results = []
    for _ in range(5):
        output.unlink(missing_ok=True)
        results.append(run(command))
    return min(seconds for seconds, _ in results), max(memory for _, memory in results)


def bench_copy(folder: Path, found: dict[str, float]) -> None:
    """Hugging Face BF16 to GGUF BF16, digests included, beside ``cp``; both with and without waiting for the disk."""
    source = make_folder(LARGE, folder)
    size = (source / "model.safetensors").stat().st_size
    (source / "model.safetensors").read_bytes()[:0]  # into the page cache, for both sides
    output = folder / "large.gguf"

    def copy(wait: str) -> tuple[float, int]:
        output.unlink(missing_ok=True)
        return run(["sh", "-c", f"cp {source}/model.safetensors {output}{wait}"])

    def convert() -> tuple[float, int]:
        output.unlink(missing_ok=True)
        return run([*QCONV, "hf-to-gguf", str(source), "-o", str(output), "--type", "bf16"])

    rounds = [(copy("")[0], copy(f" && sync {output}")[0], *convert()) for _ in range(7)]
    copied, synced, converted, _ = (statistics.median(column) for column in zip(*rounds, strict=True))
    for label, column in (("slowest", max), ("fastest", min)):
        found[f"copy: {label} cp against {label} conversion"] = column(it[0] for it in rounds) / column(
            it[2] for it in rounds
        )
    found["copy: model GB"] = size / 1e9
    found["copy: cp, MB/s"] = size / copied / 1e6
    found["copy: cp and sync, MB/s"] = size / synced / 1e6
    found["copy: HF BF16 to GGUF BF16, MB/s"] = size / converted / 1e6
    found["copy: ratio to cp (bar 0.5)"] = copied / converted
    found["copy: ratio to cp and sync, which waits for the disk as we do"] = synced / converted
    found["copy: peak anonymous memory, MB (bar 600)"] = max(memory for *_, memory in rounds) / 1e6
    output.unlink()
    seconds, memory = run([*QCONV, "hf-to-gguf", str(source), "-o", str(output), "--type", "q4_k_m"])
    found["4 GB to Q4_K_M, s"] = seconds
    found["4 GB to Q4_K_M, peak anonymous memory, MB (bar 600)"] = memory / 1e6
    output.unlink()
    shutil.rmtree(source)


def bench_back(folder: Path, found: dict[str, float]) -> None:
    """GGUF BF16 to a Hugging Face folder, query and key rows regrouped, beside ``cp``."""
    source = make_folder(LARGE, folder)
    gguf, output = folder / "large.gguf", folder / "back"
    run([*QCONV, "hf-to-gguf", str(source), "-o", str(gguf), "--type", "bf16"])
    shutil.rmtree(source)

    def copy() -> float:
        seconds, _ = run(["cp", str(gguf), f"{output}.gguf"])
        Path(f"{output}.gguf").unlink()
        return seconds

    def convert() -> tuple[float, int]:
        done = run([*QCONV, "convert", str(gguf), str(output)])
        shutil.rmtree(output)
        return done

    rounds = [(copy(), *convert()) for _ in range(7)]
    copied, converted, _ = (statistics.median(column) for column in zip(*rounds, strict=True))
    size = gguf.stat().st_size
    found["back: cp, MB/s"] = size / copied / 1e6
    found["back: GGUF BF16 to Hugging Face BF16, MB/s"] = size / converted / 1e6
    found["back: ratio to cp (bar 0.5)"] = copied / converted
    found["back: peak anonymous memory, MB (bar 600)"] = max(memory for *_, memory in rounds) / 1e6
    gguf.unlink()


def bench_split(folder: Path, found: dict[str, float]) -> None:
    """``qconv split`` and ``qconv merge`` of a GGUF of 4 GB, with and without digests in the source, beside ``cp``: medians of interleaved runs."""
    source = make_folder(LARGE, folder)
    whole, bare, part = folder / "whole.gguf", folder / "bare.gguf", folder / "part-00001-of-00003.gguf"
    run([*QCONV, "hf-to-gguf", str(source), "-o", str(whole), "--type", "bf16"])
    run([*QCONV, "hf-to-gguf", str(source), "-o", str(bare), "--type", "bf16", "--no-digests"])
    shutil.rmtree(source)
    size = whole.stat().st_size

    def copy() -> float:
        seconds = run(["cp", str(whole), str(folder / "copy.gguf")])[0]
        (folder / "copy.gguf").unlink()
        return seconds

    def split(origin: Path) -> float:
        for path in folder.glob("part-*"):
            path.unlink()
        return run([*QCONV, "split", str(origin), str(folder / "part"), "--max-size", str(size // 5 * 2)])[0]

    def merge() -> float:
        seconds = run([*QCONV, "merge", str(part), str(folder / "merged.gguf")])[0]
        (folder / "merged.gguf").unlink()
        return seconds

    labels = ("cp", "split", "merge, which verifies first", "split without digests, which adds them")
    rounds = [(copy(), split(whole), merge(), split(bare)) for _ in range(5)]
    copied, *others = (statistics.median(column) for column in zip(*rounds, strict=True))
    found["split: model GB"] = size / 1e9
    found["split: cp, MB/s"] = size / copied / 1e6
    for label, seconds in zip(labels[1:], others, strict=True):
        found[f"split: {label}, MB/s"] = size / seconds / 1e6
        found[f"split: {label}, ratio to cp (bar 0.5)"] = copied / seconds
    found["split: split, peak anonymous memory, MB (bar 600)"] = (
        run([*QCONV, "split", str(whole), str(folder / "part"), "--max-size", str(size // 5 * 2), "--force"])[1] / 1e6
    )
    for path in (whole, bare, *folder.glob("part-*")):
        path.unlink()


def make_imatrix(source: Path, path: Path) -> None:
    """Write an importance matrix of log-normal values for every matrix of the blocks of a GGUF file."""
    import qconv
    from qconv.formats.imatrix import gguf_imatrix
    from qconv.quantizers.importance import ImportanceEntry, ImportanceMatrix

    random = np.random.default_rng(0)
    with qconv.open(source) as model:
        entries = {
            it.name: ImportanceEntry(
                np.exp(random.standard_normal((1, it.columns))).astype(np.float32) * 1000, np.array([1000.0])
            )
            for it in model.tensors.values()
            if it.name.startswith("blk.") and len(it.shape) == 2
        }
    path.write_bytes(gguf_imatrix(ImportanceMatrix(entries, ("synthetic",), 2, 500)))


def bench_requantize(folder: Path, found: dict[str, float]) -> None:
    """``qconv quantize`` of an F16 GGUF of 0.4 billion weights, with warm kernels and an importance matrix."""
    source = make_folder(SMALL, folder)
    half, output, matrix = folder / "half.gguf", folder / "small.gguf", folder / "imatrix.gguf"
    run([*QCONV, "hf-to-gguf", str(source), "-o", str(half), "--type", "f16"])
    shutil.rmtree(source)
    make_imatrix(half, matrix)
    for type_name, bar in (("q4_k_m", 2.5), ("iq4_xs", 6), ("iq3_s", 6), ("iq2_xs", 12)):
        for options, label in (([], ""), (["--imatrix", str(matrix)], " with importance")):
            if type_name == "iq2_xs" and not options:
                continue
            command = [*QCONV, "quantize", str(half), str(output), "--type", type_name, *options]
            output.unlink(missing_ok=True)
            run(command)  # compiles what is not compiled yet
            seconds, memory = best_new(output, command)
            found[f"F16 GGUF, 0.4 G weights, to {type_name}{label}, s (bar {bar})"] = seconds
            found[f"F16 GGUF, 0.4 G weights, to {type_name}{label}, peak anonymous memory, MB"] = memory / 1e6
    for path in (half, output, matrix):
        path.unlink()


def bench_quantize(folder: Path, found: dict[str, float]) -> None:
    """Hugging Face BF16 to Q4_K_M of a model of 0.4 billion weights, with warm kernels."""
    source = make_folder(SMALL, folder)
    output = folder / "small.gguf"
    run([*QCONV, "warmup", "Q4_K", "Q5_K", "Q6_K", "Q8_0"])
    for type_name in ("q4_k_m", "q5_k_m", "q6_k", "q8_0"):
        command = [*QCONV, "hf-to-gguf", str(source), "-o", str(output), "--type", type_name]
        seconds, memory = best_new(output, command)
        found[f"0.4 G weights to {type_name}, s" + (" (bar 3)" if type_name == "q4_k_m" else "")] = seconds
        found[f"0.4 G weights to {type_name}, peak anonymous memory, MB"] = memory / 1e6
    output.unlink()
    shutil.rmtree(source)


def bench_start(folder: Path, found: dict[str, float]) -> None:
    """``qconv --help``, and ``qconv inspect`` of a vocabulary of 128,256 tokens."""
    source = make_folder(Shape("vocabulary", 64, 64, 1, 128256, 2), folder)
    output = folder / "vocabulary.gguf"
    run([*QCONV, "hf-to-gguf", str(source), "-o", str(output), "--vocab-only"])
    found["qconv --help, s (bar 0.3)"] = best(7, lambda: run([*QCONV, "--help"]))[0]
    found["qconv inspect of 128,256 tokens, s (bar 0.6)"] = best(7, lambda: run([*QCONV, "inspect", str(output)]))[0]
    shutil.rmtree(source)
    output.unlink()


BENCHES = {
    "start": bench_start,
    "quantize": bench_quantize,
    "requantize": bench_requantize,
    "copy": bench_copy,
    "back": bench_back,
    "split": bench_split,
}


def main() -> None:
    """Run the benches and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--only", action="append", choices=list(BENCHES), help="one bench; may be repeated")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for name in arguments.only or BENCHES:
            BENCHES[name](Path(folder), found)
    for label, value in found.items():
        print(f"{label:75} {value:10.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
