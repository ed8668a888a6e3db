"""Last command of the batch script when srun has failed: `python -m jobs.lost_ranks FOLDER STATUS`.

The job is requeued, and goes on from its last checkpoint, when ranks died without an error of their own: their node was
lost, they ran out of memory, or they were killed. It ends when a rank raised an error, since it would raise it again.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs import attempt_log
from jobs.errors import JobError
from jobs.failure import rank_errors
from jobs.log import log
from jobs.slurm import ask, slurm_job


def only_lost_ranks(folder: Path, environment: Mapping[str, str]) -> bool:
    """Whether the attempt that just ended started its task, lost ranks, and failed for no other reason."""
    job_id, restarts = _job(environment)
    events = [event for event in attempt_log.read(folder, job_id) if event.restarts == restarts]
    if not events or events[-1].outcome not in ("", "peer lost"):
        return False
    world_size = int(environment.get("SLURM_NTASKS", "1"))
    return all(error.is_peer_loss for error in rank_errors(folder, job_id, world_size))


def _job(environment: Mapping[str, str]) -> tuple[str, int]:
    """Job id and number of restarts."""
    job_id = environment["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environment:
        job_id = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return job_id, int(environment.get("SLURM_RESTART_COUNT", "0"))


def main(arguments: Sequence[str]) -> int:
    """Requeue the job or let it fail. Returns srun's exit status in both cases."""
    folder, status = Path(arguments[0]), int(arguments[1])
    if not only_lost_ranks(folder, os.environ):
        return status
    job_id, restarts = _job(os.environ)
    try:
        job = slurm_job(job_id)
        if job is None or job.state != "RUNNING":
            return status
        log(f"job {job_id} lost ranks (exit status of srun: {status}) and is requeued")
        attempt_log.append(folder, "end", job_id=job_id, restarts=restarts, outcome="lost", reason=f"srun: {status}")
        ask("scontrol", "requeue", job_id, timeout_s=60)
    except JobError as error:
        log(f"job {job_id} lost ranks and cannot be requeued: {error}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
