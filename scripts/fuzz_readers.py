"""Damage files of every kind that qconv reads, and see whether each reader refuses or reads them, soon and within memory.

    python scripts/fuzz_readers.py [--mutations 20000] [--reader NAME]... [--shared ../shared] [--resume FILE] [--seed 0] [--keep DIR]

Every damaged file is read in this process: headers, metadata, tokenizer, rows from both ends of every tensor and slabs from both ends of the largest,
with at most 2 s of processor time and memory of 5 MiB and ten times the files. What fails is every exception that is not a QconvError, every warning, every hang, and
every hunger, once per place in the code; ``--keep`` writes the first file of each. ``--shared`` adds the files of the historical programs and
trained models to those that are made here. ``--resume`` keeps what was counted in FILE, and goes on with it when called again. The exit code is 1
where anything failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from hostile_fixtures import READERS, Reader
from hostile_shared import add_shared
from hostile_watch import LARGE, Failure, Tally, fuzz

_PIECE = 500  # files between two states of --resume


def main() -> None:
    """Fuzz the readers and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=20_000, help="damaged files per reader")
    parser.add_argument("--reader", action="append", choices=list(READERS), help="one reader; may be repeated")
    parser.add_argument("--shared", type=Path, help="folder with fixtures/ and models/ to damage as well")
    parser.add_argument("--resume", type=Path, help="file that keeps what was counted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the first file of each failure")
    arguments = parser.parse_args()
    tallies = _load(arguments.resume)
    for name in arguments.reader or READERS:
        tally = tallies.setdefault(name, Tally())
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            work = Path(folder)
            (work / "made").mkdir()
            reader: Reader = READERS[name](work / "made")
            if arguments.shared is not None:
                add_shared(name, reader, arguments.shared)
            keep = None if arguments.keep is None else arguments.keep / name
            while tally.read < arguments.mutations:
                cases = range(tally.read, min(tally.read + _PIECE, arguments.mutations))
                with tempfile.TemporaryDirectory(dir=work) as piece:
                    fuzz(reader, Path(piece), cases, arguments.seed, keep, tally)
                _save(arguments.resume, tallies)
        print(f"{name}: {tally.read:,} files, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    chosen = {name: tallies[name] for name in arguments.reader or READERS}
    print(_table(chosen))
    for name, tally in chosen.items():
        for failure, (count, first) in sorted(tally.failures.items(), key=lambda it: -it[1][0]):
            print(f"{name}: {count}x {failure.kind} at {failure.where}: {failure.message} (case {first})")
    sys.exit(any(tally.failures for tally in chosen.values()))


def _table(tallies: dict[str, Tally]) -> str:
    """Return the figures as a table in Markdown."""
    small = f"{LARGE >> 10} KiB"
    lines = [
        f"| reader | mutations | accepted | refused | failed | slowest | most memory | of the bound | ÷ files of {small} and more |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, tally in tallies.items():
        failed = sum(count for count, _ in tally.failures.values())
        lines.append(
            f"| {name} | {tally.read:,} | {tally.accepted:,} | {tally.refused:,} | {failed} | {tally.seconds:.2f} s "
            f"| {tally.peak / (1 << 20):.1f} MiB | {100 * tally.share:.0f} % | {f'{tally.factor:.1f}' if tally.factor else '–'} |"
        )
    return "\n".join(lines)


def _save(path: Path | None, tallies: dict[str, Tally]) -> None:
    if path is None:
        return
    found: dict[str, Any] = {}
    for name, tally in tallies.items():
        failures = [[asdict(failure), count, first] for failure, (count, first) in tally.failures.items()]
        found[name] = {**vars(tally), "failures": failures}
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(found, indent=1))
    temporary.replace(path)


def _load(path: Path | None) -> dict[str, Tally]:
    if path is None or not path.exists():
        return {}
    tallies = {}
    for name, values in json.loads(path.read_text()).items():
        failures = {Failure(**failure): (count, first) for failure, count, first in values.pop("failures")}
        tallies[name] = Tally(**values, failures=failures)
    return tallies


if __name__ == "__main__":
    main()
