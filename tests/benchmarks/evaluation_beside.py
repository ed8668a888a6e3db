"""What an evaluation costs its training: `python -m tests.benchmarks.evaluation_beside [--rounds N]`.

The demo's network trains on one rank with one thread, on a Slurm of four nodes on this machine, which needs a second
core for the evaluations. The same training runs three times: it evaluates itself between two steps, has a job evaluate,
and has processes of its own allocation evaluate. A round takes two to three minutes on two idle cores. Printed are, as
ratios, how long the training took from its first steps to its end, compared with its own steps and with the training
that evaluates itself, and how long its steps took while an evaluation ran beside it.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.run.files import read_evaluations
from tests.slurm.cluster import Cluster, rehearsal
from tests.slurm.config import Settings
from tests.slurm.runs import Run, wait_until

STEPS, EVERY = 48, 16
FLAGS = (
    *("--nodes", "1", "--no-wait", "--train.steps", str(STEPS), "--train.eval-every-steps", str(EVERY)),
    # Four times as many images as the validation split has, so that an evaluation lasts for several steps.
    *("--train.data.validation-split", "train", "--train.save-every-steps", "1000", "--train.preflight", "off"),
)
WAYS = {"inline": (), "job": ("--evaluate", "job"), "allocation": ("--evaluate", "allocation")}
PATIENCE_S = 900
FIRST = 3
"""Steps that do not count, since the first ones allocate memory."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one training took.

    Attributes:
        training_s: seconds from the end of its first steps to its end, with evaluations of its own.
        beside: steps while an evaluation ran beside it, in seconds.
        alone: all other steps, in seconds.
        scores_s: seconds from the end of the last step to its scores.
    """

    training_s: float
    beside: list[float]
    alone: list[float]
    scores_s: float

    @property
    def times_its_steps(self) -> float:
        """How many times as long as its own steps the training took, whatever else the machine did meanwhile."""
        return self.training_s / sum(self.beside + self.alone)


def measure(cluster: Cluster, folder: Path, name: str, way: str) -> Measured:
    """Train once, and end the job as soon as the last step has its scores."""
    run = Run(folder, name, *FLAGS, *WAYS[way]).launch()
    output = run.finish()
    assert run.status == 0, output
    wait_until(lambda: run.events("end"), PATIENCE_S)
    if way != "inline":
        wait_until(lambda: STEPS in read_evaluations(run.path), PATIENCE_S)
    records = {record["step"]: record for record in run.records()}
    spans = _evaluating(run.path / "evaluations" / "submitit")
    beside, alone = [], []
    for step in range(FIRST + 1, STEPS + 1):
        end, seconds = records[step]["time"], records[step]["step_s"]
        is_beside = any(start < end and end - seconds < stop for start, stop in spans)
        (beside if is_beside else alone).append(seconds)
    last = records[STEPS]["time"]
    evaluated = run.events("evaluate")[-1] if way == "inline" else read_evaluations(run.path)[STEPS]
    cluster.clear()
    return Measured(
        training_s=run.events("end")[-1]["time"] - records[FIRST]["time"],
        beside=beside,
        alone=alone,
        scores_s=evaluated["time"] - last,
    )


def _evaluating(logs: Path) -> list[tuple[float, float]]:
    """Begin and end of each evaluation job, in Unix seconds; one that has no end yet is at work until now."""
    spans = []
    for path in logs.glob("*_attempts.jsonl"):
        events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        ends = [event["time"] for event in events if event["event"] == "end"]
        spans.append((events[0]["time"], ends[-1] if ends else time.time()))
    return spans


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each training, and the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=1, help="how often each of the three trainings runs")
    options = parser.parse_args(arguments)
    found: dict[str, list[Measured]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name, rehearsal(Path(name) / "cluster", Settings()) as cluster:
        os.environ.update(cluster.environment)
        for number in range(options.rounds):
            for way in WAYS:
                measured = measure(cluster, Path(name), f"{way}{number}", way)
                found[way].append(measured)
                print(
                    f"{way}: training {measured.training_s:.1f} s, {measured.times_its_steps:.2f} times its steps; "
                    f"{len(measured.beside)} steps beside an evaluation, last scores after {measured.scores_s:.1f} s",
                    flush=True,
                )
    for way in ("job", "allocation"):
        shares = [a.training_s / b.training_s for a, b in zip(found[way], found["inline"], strict=True)]
        steps = [statistics.median(a.beside) / statistics.median(a.alone) for a in found[way] if a.beside and a.alone]
        slower = f"{statistics.median(steps):.2f}" if steps else "unknown"
        print(f"{way}: the training took {statistics.median(shares):.2f} of the inline one's time; ", end="")
        print(f"a step beside an evaluation took {slower} of one without")


if __name__ == "__main__":
    main()
