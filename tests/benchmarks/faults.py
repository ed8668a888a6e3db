"""`python -m tests.benchmarks.faults`: injects faults into a real training and reports the outcome of each.

A small training on two gloo ranks is started again whenever it ends. Each run with a fault is compared with the
uninterrupted run: `export/model.safetensors` bit for bit, every step once with equal loss, gradient norm, learning rate
and evaluation; and at most one save interval is computed again. Prints a table; `--write` puts it into
`RESULTS_faults.md`. Exits with 1 if a run differs.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.faults_bench import EVERY, SHORT, Bench, line
from tests.benchmarks.faults_kills import kills
from tests.benchmarks.faults_others import clock_backwards, damages, full_disk, hanging_rank, second_attempt

RESULTS = Path(__file__).with_name("RESULTS_faults.md")
HEADER = """| fault | times | outcome | steps computed again, at most | against the uninterrupted run | s |
|---|---|---|---|---|---|"""


def main() -> int:
    """Inject the selected faults and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=36, help="in one run")
    parser.add_argument(
        "--recipe",
        choices=["demo_segmentation", "demo_detection"],
        help="a demo in batches of 4, instead of a classifier",
    )
    parser.add_argument("--only", choices=["kills", "damage", "others"], help="only a part of the table")
    parser.add_argument("--folder", help="where to write; by default the temporary folder")
    parser.add_argument("--write", action="store_true", help=f"write the table to {RESULTS.name}")
    options = parser.parse_args()
    began = time.monotonic()
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        bench = Bench(Path(folder), options.recipe)
        if options.only in (None, "kills"):
            kills(bench, options.kills, steps=SHORT + 2 * options.kills)
        if options.only in (None, "damage"):
            damages(bench)
        if options.only in (None, "others"):
            full_disk(bench)
            hanging_rank(bench, 1)
            hanging_rank(bench, 0)
            clock_backwards(bench)
            second_attempt(bench)
    seconds = time.monotonic() - began
    print("\n".join([*bench.notes, f"{seconds:.0f} s in all"]))
    if options.write:
        RESULTS.write_text(report(bench, seconds))
    return 0 if all(row.equal for row in bench.rows) else 1


def report(bench: Bench, seconds: float) -> str:
    """The results as a page."""
    table = "\n".join([HEADER, *map(line, bench.rows)])
    day, notes = time.strftime("%Y-%m-%d"), "\n".join(bench.notes)
    return f"""# Faults and their outcomes

`python -m tests.benchmarks.faults --write`, {day}, 2-core AMD EPYC VM, {seconds:.0f} s.

`transxnet_n` at 32 px on two gloo ranks, ZeRO stage 1, fp32, a checkpoint every {EVERY} steps. Each run goes on until
its end, then `export/model.safetensors`, every step's loss, gradient norm and learning rate, and every evaluation are
compared with those of the uninterrupted run. The ranks are forked with everything imported, without MLflow.

{table}

{notes}

A kill costs one interval at most, counted from the newest checkpoint that had begun: if its write had not ended, the
one before it is taken, and the steps taken during that write come on top.
"""


if __name__ == "__main__":
    sys.exit(main())
