"""What the mirror adds to a step: `python -m tests.benchmarks.mirror_steps [--pairs N] [--every N]`.

Two ranks of this machine train a small network and publish a checkpoint every so many steps. The process that mirrors
the run works during one such interval and is stopped during the next, in turns within the one training; by the next
interval it has copied its checkpoint, hashed, to a local folder. The ratio of the two durations is printed. The results
are in `RESULTS_mirror.md`.
"""

import argparse
import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from pipeline.config.checks import check
from pipeline.mirror.claim import use_mirror
from pipeline.run import directory as run_directory
from pipeline.run.files import checkpoints, newest_record, read_metrics
from pipeline.run.mirror_files import read_progress
from tests.support.attempts import RunningAttempt
from tests.support.small_shards import config, pack

RANKS = 2


def train(folder: Path, pairs: int, every: int) -> tuple[list[float], int, int, float]:
    """Train, with the mirror in every other interval.

    Returns:
        How many times as long the steps with the mirror took, of each pair; the copies; the bytes of each; and the
        seconds of a processor that each took, with the looks at the run directory between them.
    """
    pack(folder / "shards", (48, 48))
    pack(folder / "shards", (8,), split="validation")
    training = config(
        folder / "shards",
        folder / "cache",
        data={"workers": 0},
        steps=1_000_000,
        global_batch_size=8,
        precision="fp32",
        save_every_steps=every,
        keep_checkpoints=1,
        eval_every_steps=1_000_000,
    )
    run_dir = folder / "run"
    run_directory.prepare(run_dir, check(training, RANKS), {"tracking_uri": "sqlite:///none.db"})
    use_mirror(run_dir, str(folder / "mirror"))
    copied = set()
    first = every  # the checkpoint of an interval's first step is copied in it
    with RunningAttempt(run_dir, ranks=RANKS) as attempt:
        _wait_for(run_dir, 1)
        children = psutil.Process(attempt.processes[0].pid).children()
        alive = [each for each in children if each.status() != psutil.STATUS_ZOMBIE]
        [worker] = [each for each in alive if "mirror.worker" in " ".join(each.cmdline())]
        used = 0.0
        for number in range(2 * pairs + 1):
            _wait_for(run_dir, first + number * every)
            worker.send_signal(signal.SIGCONT if number % 2 == 0 else signal.SIGSTOP)
            copied.add(read_progress(run_dir).step)
            used = used or sum(worker.cpu_times()[:2])
        used = sum(worker.cpu_times()[:2]) - used
        times = {record["step"]: record["time"] for record in read_metrics(run_dir)}
        size = sum(path.stat().st_size for path in max(checkpoints(run_dir).items())[1].iterdir())
    lasted = [times[first + (n + 1) * every] - times[first + n * every] for n in range(2 * pairs)]
    ratios = [lasted[2 * pair] / lasted[2 * pair + 1] for pair in range(pairs)]
    copies = len(copied - {None})
    return ratios, copies, size, used / max(1, copies - 1)


def _wait_for(run_dir: Path, step: int) -> None:
    """Look at the journal ten times a second, so that this program takes little from the training."""
    while (newest_record(run_dir) or {"step": 0})["step"] < step:
        time.sleep(0.1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=10, help="pairs of intervals with and without the mirror")
    parser.add_argument("--every", type=int, default=100, help="steps between two checkpoints")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        ratios, copies, size, used = train(Path(name), options.pairs, options.every)
    print(f"{copies} checkpoints of {size:,} bytes copied, {1000 * used:.0f} ms of a processor each")
    print("steps with the mirror took, as a multiple of those without:")
    print(f"median {statistics.median(ratios):.4f} of {len(ratios)} pairs: {', '.join(f'{r:.3f}' for r in ratios)}")


if __name__ == "__main__":
    main()
