"""Damage files of every kind that qconv reads, and see whether each reader refuses or reads them, soon and within memory.

    python scripts/fuzz_readers.py [--mutations 20000] [--reader NAME]... [--seed 0] [--keep DIR]

Every damaged file is read in this process, with at most 2 s of processor time and memory of 5 MiB and ten times the files. What is reported is every
exception that is not a QconvError, every warning, every hang, and every hunger, once per place in the code; ``--keep`` writes the first file of each. The
exit code is 1 where there was any.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from hostile_fixtures import READERS
from hostile_watch import fuzz


def main() -> None:
    """Fuzz the readers and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=20_000, help="damaged files per reader")
    parser.add_argument("--reader", action="append", choices=list(READERS), help="one reader; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the first file of each failure")
    arguments = parser.parse_args()
    failed = False
    for name in arguments.reader or READERS:
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            work = Path(folder)
            (work / "made").mkdir()
            (work / "read").mkdir()
            reader = READERS[name](work / "made")
            keep = None if arguments.keep is None else arguments.keep / name
            accepted, failures = fuzz(reader, work / "read", arguments.mutations, arguments.seed, keep)
        refused = arguments.mutations - accepted - sum(count for count, _ in failures.values())
        seconds = time.monotonic() - started
        print(
            f"{name}: {refused:,} refused, {accepted:,} accepted, {len(failures)} kinds of failure, {seconds:.0f} s",
            flush=True,
        )
        for failure, (count, first) in sorted(failures.items(), key=lambda it: -it[1][0]):
            print(f"  {count}x {failure.kind} at {failure.where}: {failure.message} (case {first})", flush=True)
        failed = failed or bool(failures)
    sys.exit(failed)


if __name__ == "__main__":
    main()
