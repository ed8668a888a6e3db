"""Run a function of your own in two processes of a job, here on this machine; with "slurm" on a cluster.

    uv run python tests/examples/run_function.py

Each process sums its share of the squares below a million. `runs/squares` has the logs of the processes.
"""

import os
from pathlib import Path

import jobs


def sum_squares(stop_requested: jobs.StopRequested) -> jobs.Outcome:
    """Sum every second square; a task that runs longer would save before it returns INTERRUPTED."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    total = 0
    for number in range(rank, 1_000_000, world_size):
        if stop_requested():
            return jobs.Outcome.INTERRUPTED
        total += number**2
    print(f"rank {rank} of {world_size}: {total}", flush=True)
    return jobs.Outcome.FINISHED


def main() -> None:
    """Submit the function, follow the job to its end, and print what each process has printed."""
    folder, resources = Path("runs/squares"), jobs.Resources(tasks_per_node=2)
    submission = jobs.submit(sum_squares, cluster="local", folder=folder, name="squares", resources=resources)
    outcome = submission.wait(poll_s=0.2)
    print(outcome.value, submission.failure())
    for log in sorted(folder.glob(f"{submission.job_id}_*_log.out")):
        print(*(line for line in log.read_text().splitlines() if line.startswith("rank")))


if __name__ == "__main__":
    main()
