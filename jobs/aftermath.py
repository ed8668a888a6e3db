"""Last command of the batch script when srun has failed: `python -m jobs.aftermath FOLDER STATUS`.

A rank that failed for a reason of its own ends the job, since it would fail again. A rank that vanished without a word
(its machine, its memory, a kill) does not: the job is requeued and goes on from its last checkpoint.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs import attempts
from jobs.cluster import ask, slurm_job
from jobs.errors import JobError
from jobs.failure import reports


def lost_ranks(folder: Path, environment: Mapping[str, str]) -> bool:
    """Whether the attempt that just ended started its work and then lost ranks, and nothing else went wrong."""
    job_id, restarts = _job(environment)
    rows = [row for row in attempts.read(folder, job_id) if row.restarts == restarts]
    if not rows or rows[-1].outcome not in ("", "peer lost"):
        return False
    world_size = int(environment.get("SLURM_NTASKS", "1"))
    return all(report.is_consequence for report in reports(folder, job_id, world_size))


def _job(environment: Mapping[str, str]) -> tuple[str, int]:
    job_id = environment["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environment:
        job_id = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return job_id, int(environment.get("SLURM_RESTART_COUNT", "0"))


def main(arguments: Sequence[str]) -> int:
    """Requeue the job or leave it failed; returns srun's status either way."""
    folder, status = Path(arguments[0]), int(arguments[1])
    if not lost_ranks(folder, os.environ):
        return status
    job_id, restarts = _job(os.environ)
    try:
        job = slurm_job(job_id)
        if job is None or job.state != "RUNNING":
            return status
        print(f"ranks of job {job_id} vanished (srun's status {status}): requeued", flush=True)
        attempts.record(folder, "end", job_id=job_id, restarts=restarts, outcome="lost", reason=f"srun: {status}")
        ask("scontrol", "requeue", job_id, timeout_s=60)
    except JobError as error:
        print(f"ranks of job {job_id} vanished, and it cannot be requeued: {error}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
