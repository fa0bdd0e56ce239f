"""Meta's ``.pth`` to GGUF: rate and memory of ``qconv convert``, beside ``cp`` on the same disk.

    python scripts/bench_checkpoint.py [--folder DIR] [--rounds 5]

It makes a Llama of 4.0 GB (random BF16 weights, the example's tokenizer) as Meta released them, in one file and in two, whose matrices are to be joined by
rows or by columns, and prints medians of interleaved rounds. "bar" is what the project demands. It needs 13 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "helpers")]

from bench_conversion import EXAMPLE, LARGE, QCONV, run
from torch_files import dictionary, pickled, storage, tensor

_BY_ROWS = (
    "wq",
    "wk",
    "wv",
    "w1",
    "w3",
    "output",
)  # how two files share a matrix; the others' columns, and norms whole
_BY_COLUMNS = ("wo", "w2", "tok_embeddings")
_ALIGNMENT = 64  # of torch's archives


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of the large synthetic Llama under Meta's names."""
    hidden, wide = LARGE.hidden, LARGE.feed_forward
    sizes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (LARGE.vocabulary, hidden)}
    for layer in range(LARGE.layers):
        prefix = f"layers.{layer}."
        sizes |= {f"{prefix}attention.{name}.weight": (hidden, hidden) for name in ("wq", "wk", "wv", "wo")}
        sizes |= {f"{prefix}feed_forward.{name}.weight": (wide, hidden) for name in ("w1", "w3")}
        sizes[f"{prefix}feed_forward.w2.weight"] = (hidden, wide)
        sizes |= {f"{prefix}{name}.weight": (hidden,) for name in ("attention_norm", "ffn_norm")}
    return sizes | {"norm.weight": (hidden,), "output.weight": (LARGE.vocabulary, hidden)}


def share(name: str, shape: tuple[int, ...], parts: int) -> tuple[int, ...]:
    """Return the shape of one part's share of a tensor."""
    kind = name.split(".")[-2]
    if kind in _BY_ROWS:
        return (shape[0] // parts, *shape[1:])
    return (shape[0], shape[1] // parts) if kind in _BY_COLUMNS else shape


def write_part(path: Path, sizes: Mapping[str, tuple[int, ...]], block: bytes) -> None:
    """Write a checkpoint in torch's zip form, its storages cut from ``block``."""
    entries = {}
    for key, (name, shape) in enumerate(sizes.items()):
        strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
        entries[name] = tensor(storage(str(key), "BFloat16", int(np.prod(shape))), 0, shape, strides)
    with path.open("wb") as raw, zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("consolidated/data.pkl", pickled(dictionary(entries)))
        for key, shape in enumerate(sizes.values()):
            info = zipfile.ZipInfo(f"consolidated/data/{key}")
            header = 30 + len(info.filename) + 20  # with the field for lengths of 64 bits
            padding = -(raw.tell() + header + 4) % _ALIGNMENT
            info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            left = 2 * int(np.prod(shape))
            info.file_size = left
            with archive.open(info, "w", force_zip64=True) as member:
                while left:
                    left -= member.write(memoryview(block)[: min(left, len(block))])
        archive.writestr("consolidated/version", "3\n")


def make_folder(parent: Path, parts: int) -> Path:
    """Write the checkpoint in so many parts; return its folder."""
    folder = parent / f"meta-{parts}"
    folder.mkdir()
    values = np.random.default_rng(0).standard_normal(1 << 25, np.float32) * np.float32(0.02)
    block = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    sizes = {name: share(name, shape, parts) for name, shape in shapes().items()}
    for part in range(parts):
        write_part(folder / f"consolidated.{part:02}.pth", sizes, block)
    parameters = {"dim": LARGE.hidden, "n_layers": LARGE.layers, "n_heads": LARGE.heads, "norm_eps": 1e-5}
    (folder / "params.json").write_text(json.dumps(parameters | {"vocab_size": LARGE.vocabulary}))
    shutil.copy(EXAMPLE / "tokenizer.model", folder)
    return folder


def bench(folder: Path, parts: int, rounds: int) -> None:
    """Print rates and memory for a checkpoint of so many parts."""
    source = make_folder(folder, parts)
    output = folder / "meta.gguf"
    size = sum(path.stat().st_size for path in source.glob("*.pth"))

    def timed(command: list[str]) -> tuple[float, int]:
        found = run(command)
        output.unlink()
        return found

    copy = (
        ["sh", "-c", f"cat {source}/*.pth > {output}"]
        if parts > 1
        else ["cp", *map(str, source.glob("*.pth")), str(output)]
    )
    convert = [*QCONV, "convert", str(source), str(output), "--type", "bf16"]
    pairs = [(timed(copy)[0], *timed(convert)) for _ in range(rounds)]
    copied, converted, _ = (statistics.median(column) for column in zip(*pairs, strict=True))
    label = f"{parts} part{'s' * (parts > 1)} of {size / 1e9:.2f} GB"
    print(f"{label}: {copy[0] if parts == 1 else 'cat'}, MB/s {size / copied / 1e6:34.0f}")
    print(f"{label}: .pth to GGUF BF16, MB/s {size / converted / 1e6:21.0f}")
    print(f"{label}: ratio (bar 0.5) {copied / converted:29.3f}")
    print(f"{label}: peak anonymous memory, MB (bar 600) {max(memory for *_, memory in pairs) / 1e6:9.1f}")
    shutil.rmtree(source)


def main() -> None:
    """Run the benches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for parts in (1, 2):
            bench(Path(folder), parts, arguments.rounds)


if __name__ == "__main__":
    main()
