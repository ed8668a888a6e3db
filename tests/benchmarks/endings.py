"""Cancel and preempt jobs at random moments of their lives, and count how they end, on a Slurm of four nodes.

    python -m tests.benchmarks.endings cancel --trials 100
    python -m tests.benchmarks.endings preempt --trials 100 --busy 3
    python -m tests.benchmarks.endings cancel-preempted --trials 100

A job has two ranks on one node, lives for about five seconds (interpreter, meeting, steps, and a second that stands for
a tracking server at the end), and each node has a job of its own, so that four trials run at a time. `--busy` processes
that only count keep the machine loaded. The results are in `RESULTS_endings.md`.
"""

import argparse
import collections
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import jobs
from jobs import attempt_log
from jobs.slurm import slurm_job
from tests.jobs.support import REPOSITORY, starts
from tests.jobs.tasks import Count
from tests.slurm.cluster import Cluster, rehearsal
from tests.slurm.config import NODES, Settings

LIFE_S = 4.5
"""Moments are drawn from so many seconds after Slurm has started the job."""
SETTLE_S = 3.0
"""Seconds after the end of a cancelled job in which a requeue would show."""
STEPS, PAUSE_S, ENDED_S = 40, 0.05, 1.0


@dataclass(frozen=True)
class Trial:
    """What became of one job.

    Attributes:
        moment_s: when the event came, in seconds after Slurm had started the job.
        phase: what rank 0 was doing then: "start-up", "steps", "end", or "over" where the job had ended.
        state: Slurm's last state of the job.
        outcomes: the outcomes in the job's attempt log.
        attempts: how often the task was started.
        verdict: "right", or what is wrong.
    """

    moment_s: float
    phase: str
    state: str
    outcomes: tuple[str, ...]
    attempts: int
    verdict: str


class Lane:
    """Runs one trial after the other on one node."""

    def __init__(self, cluster: Cluster, node: str, folder: Path) -> None:
        self.cluster, self.node, self.folder = cluster, node, folder
        self.numbers = itertools.count()

    def run(self, kind: str, seed: int) -> Trial:
        """Submit a job, let the event happen at a random moment, and wait for the end."""
        draw = random.Random(seed)
        home = self.folder / f"{self.node}-{next(self.numbers)}"
        home.mkdir(parents=True)
        submission = jobs.submit(
            Count(folder=home, end=STEPS, pause_s=PAUSE_S, save_every=10_000, ended_s=ENDED_S),
            cluster="slurm",
            folder=home / "jobs",
            resources=jobs.Resources(
                tasks_per_node=2, timeout_min=60, partition="low", slurm=(f"nodelist={self.node}",)
            ),
            name="trial",
            code=jobs.Code(root=REPOSITORY),
        )
        while submission.update().state != "RUNNING":
            time.sleep(0.05)
        began = time.monotonic()
        time.sleep(draw.uniform(0, LIFE_S))
        moment_s, phase = time.monotonic() - began, self._phase(home)
        if kind != "cancel":
            self._preempt()
        if kind == "cancel-preempted":
            time.sleep(draw.uniform(0, 2))
            phase = self._phase(home)
        if kind != "preempt":
            self.cluster.run("scancel", submission.job_id)
        submission.wait(0.3)
        if kind != "preempt":
            time.sleep(SETTLE_S)
        job = slurm_job(submission.job_id)
        ends = [event for event in attempt_log.read(home / "jobs", submission.job_id) if event.event == "end"]
        outcomes, state = tuple(event.outcome for event in ends), "forgotten" if job is None else job.state
        attempts = len(starts(home))
        if kind == "preempt":
            verdict = _judge_preemption(state, outcomes)
        else:
            verdict = "right" if state == "CANCELLED" or (phase == "over" and state == "COMPLETED") else "lost"
        if verdict != "right":
            self.cluster.run("scancel", submission.job_id, check=False)
        return Trial(round(moment_s, 2), phase, state, outcomes, attempts, verdict)

    def _phase(self, home: Path) -> str:
        if (home / "ended").exists():
            return "over"
        if (home / "ending").exists():
            return "end"
        return "steps" if starts(home) else "start-up"

    def _preempt(self) -> None:
        self.cluster.run(
            "sbatch", "-p", "high", "--exclusive", "-w", self.node, "-o", "/dev/null", "--wrap", "sleep 0.2"
        )


def _judge_preemption(state: str, outcomes: Sequence[str]) -> str:
    if state == "COMPLETED" and outcomes and outcomes[-1] == "finished":
        return "right"
    return f"ended as {state}, {outcomes[-1] if outcomes else 'no outcome'}"


def _spin() -> None:
    while True:
        pass


@contextlib.contextmanager
def _load(processes: int) -> Iterator[None]:
    """Keep processes busy that only count."""
    busy = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(processes)]
    for process in busy:
        process.start()
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.join()


def run_trials(kind: str, trials: int, busy: int, seed: int, folder: Path) -> list[Trial]:
    """Run trials on a rehearsal cluster, four at a time; print each that is not right."""
    found: list[Trial] = []
    with rehearsal(folder / "cluster", Settings()) as cluster, _load(busy):
        os.environ.update(cluster.environment)
        lanes = [Lane(cluster, node, folder / "jobs") for node in NODES]
        shares = [range(seed + number, seed + trials, len(lanes)) for number in range(len(lanes))]

        def work(lane: Lane, seeds: range) -> None:
            for each in seeds:
                trial = lane.run(kind, each)
                found.append(trial)
                if trial.verdict != "right":
                    print(json.dumps(asdict(trial)), flush=True)
                elif len(found) % 20 == 0:
                    print(f"{len(found)} of {trials}", flush=True)

        with ThreadPoolExecutor(len(lanes)) as pool:
            list(pool.map(work, lanes, shares))
    return found


def describe(trials: Sequence[Trial]) -> Iterator[str]:
    """Yield a table: trials by the phase in which the event came, and by how the job ended."""
    counts = collections.Counter((trial.phase, trial.state, trial.outcomes, trial.verdict) for trial in trials)
    yield "| moment | Slurm's state | attempt log | jobs | verdict |"
    yield "|---|---|---|---:|---|"
    order = ("start-up", "steps", "end", "over")
    for (phase, state, outcomes, verdict), count in sorted(
        counts.items(), key=lambda row: (order.index(row[0][0]), row)
    ):
        yield f"| {phase} | {state} | {', '.join(outcomes) or 'nothing'} | {count} | {verdict} |"
    wrong = sum(trial.verdict != "right" for trial in trials)
    yield f"\n{len(trials)} trials, {wrong} of them wrong"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 1 if a trial went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.endings", description=__doc__)
    parser.add_argument("kind", choices=["cancel", "preempt", "cancel-preempted"])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--busy", type=int, default=0, help="busy processes beside the trials")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trials = run_trials(options.kind, options.trials, options.busy, options.seed, Path(folder))
    print("\n".join(describe(trials)))
    print(f"{time.monotonic() - began:.0f} s, {options.busy} busy processes, load {os.getloadavg()[1]:.1f}")
    return any(trial.verdict != "right" for trial in trials)


if __name__ == "__main__":
    sys.exit(main())
