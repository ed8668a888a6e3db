"""Lose hosts of the rehearsal cluster again and again, and count how the job on them ends; needs root and iproute2.

    python -m tests.benchmarks.hosts --trials 5

A small training runs on two of four hosts, over gloo and the hosts' own addresses. Once it has saved, the host of one
rank is cut off or turned off, and is back before the next trial. A trial is right if the job goes on on other hosts and
ends with the weight of an uninterrupted training, and if none of its processes stays on the host that was cut off. The
results are in `RESULTS_hosts.md`.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jobs
from tests.jobs.support import REPOSITORY, wait_until
from tests.slurm.cluster import Cluster, rehearsal
from tests.slurm.config import Settings
from tests.slurm.gloo_task import STEPS, GlooTraining, trained_alone
from tests.slurm.hosts import why_not
from tests.slurm.ranks import ranks_on_host

EVENTS = ("cut off n2", "cut off n1", "lose n2", "lose n1")
"""n1 is the host of rank 0 and of the batch script."""


def trial(cluster: Cluster, folder: Path, event: str) -> tuple[float, float, bool]:
    """Let one event happen to a job.

    Returns:
        Seconds from the event to the next attempt's first step, and to the end of the job; whether the trial is right.
    """
    word, _, node = event.rpartition(" ")
    task = GlooTraining(folder=folder)
    resources = jobs.Resources(nodes=2, timeout_min=60, partition="low", cpus_per_task=1)
    code = jobs.Code(root=REPOSITORY)
    submission = jobs.submit(task, cluster="slurm", folder=folder / "jobs", resources=resources, name="gloo", code=code)
    wait_until((folder / "saved").exists)
    began = time.monotonic()
    if word == "lose":
        cluster.kill_node(node)
    else:
        cluster.hosts.cut_off(node)
    wait_until(lambda: (folder / "starts0").read_text().count("\n") == 2, 300)
    started = time.monotonic() - began
    outcome = submission.wait(0.2)
    ended = time.monotonic() - began
    try:
        wait_until(lambda: not ranks_on_host(cluster, node), 60)
    except AssertionError:
        return started, ended, False
    return started, ended, outcome is jobs.Outcome.FINISHED and task.saved() == (STEPS, trained_alone(2))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all trials, and print a row of a table for each event."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5, help="how often each event happens")
    parser.add_argument("--events", nargs="+", choices=EVENTS, default=EVENTS)
    options = parser.parse_args(arguments)
    if reason := why_not():
        parser.error(reason)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with rehearsal(folder / "cluster", Settings(hosts=True), shared=[folder]) as cluster:
            os.environ |= cluster.environment
            print("| event | right | next attempt's first step, s | end of the job, s |\n|---|---|---|---|")
            for event in options.events:
                done = []
                for number in range(options.trials):
                    home = folder / f"{event.replace(' ', '-')}-{number}"
                    home.mkdir()
                    done.append(trial(cluster, home, event))
                    cluster.clear()
                starts, ends, right = zip(*done, strict=True)
                print(f"| {event} | {sum(right)} of {len(done)} | {_span(starts)} | {_span(ends)} |", flush=True)


def _span(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.0f} ({min(seconds):.0f} to {max(seconds):.0f})"


if __name__ == "__main__":
    main()
