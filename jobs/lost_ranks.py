"""Last command of the batch script when srun has failed: `python -m jobs.lost_ranks FOLDER STATUS MAX_STALLS [chain]`.

The job is requeued, and goes on from its last checkpoint, when ranks died without an error of their own: their node was
lost, they ran out of memory, or they were killed. It ends when a rank raised an error, since it would raise it again.
In a chain the next job goes on instead of a requeue, or the rest of the chain is cancelled.
The batch script goes on with the exit status that this command returns.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs import attempt_log, chain
from jobs.environment import slurm_job_of
from jobs.errors import JobError
from jobs.exclusion import apply_exclusion
from jobs.failure import rank_errors
from jobs.log import log
from jobs.requeue import Decision, ask_slurm, requeue_on_slurm
from jobs.results import ended_well
from jobs.superseded import newer_attempt, own_start

KILLED = 128
"""srun exits with this plus the number of the signal that ended a rank."""


CHAINED = "chain"
"""Last argument for a job of a chain, which Slurm does not requeue."""


def only_lost_ranks(
    folder: Path, environment: Mapping[str, str], status: int, max_stalls: int, earlier: Sequence[str] = ()
) -> bool:
    """Whether the attempt that just ended lost ranks, and failed for no other reason.

    Args:
        folder: folder of the job.
        environment: Slurm's variables in the batch script.
        status: exit status of srun.
        max_stalls: how many attempts, one after the other, may be lost before rank 0 has started.
        earlier: the jobs of the chain before this one.
    """
    job_id, restarts = slurm_job_of(environment)
    events = [event for event in attempt_log.read(folder, job_id) if event.restarts == restarts]
    world_size = _world_size(environment)
    if events and events[-1].outcome == "requeued":
        # All ranks had saved, and rank 0 was lost before it could requeue the job.
        return True
    if any(not error.is_peer_loss for error in rank_errors(folder, job_id, world_size)):
        return False
    if not events:
        return status > KILLED and attempt_log.count_unstarted(folder, [*earlier, job_id]) < max_stalls
    if events[-1].outcome == "finished":
        # Rank 0 was lost while it told others of the end, such as a model registry.
        return not ended_well(folder, job_id, 0)
    return events[-1].outcome in ("", "peer lost")


def has_ended_well(folder: Path, environment: Mapping[str, str]) -> bool:
    """Whether the work of the attempt was over before what srun reports: rank 0 has finished, or every rank has ended.

    A result of an earlier attempt does not count, since the attempt log must have an end of this one.
    """
    job_id, restarts = slurm_job_of(environment)
    world_size = _world_size(environment)
    ends = [event for event in attempt_log.read(folder, job_id) if event.restarts == restarts and event.event == "end"]
    if not ends or rank_errors(folder, job_id, world_size):
        return False
    ranks = [0] if ends[-1].outcome == "finished" else range(world_size)
    return all(ended_well(folder, job_id, rank) for rank in ranks)


def _world_size(environment: Mapping[str, str]) -> int:
    return int(environment.get("SLURM_NTASKS", "1"))


def main(arguments: Sequence[str]) -> int:
    """Requeue the job or let it end. Returns srun's exit status, or 0 where the work was over."""
    folder, status, max_stalls = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    job_id, restarts = slurm_job_of(os.environ)
    if newer_attempt(folder, job_id, restarts, own_start(folder, job_id, restarts) or 0.0) is not None:
        # This node had been lost, and the job has started elsewhere.
        return status
    if has_ended_well(folder, os.environ):
        return 0
    is_chained = CHAINED in arguments[3:]
    jobs = chain.chain_of(folder, job_id) if is_chained else chain.Chain()
    if not only_lost_ranks(folder, os.environ, status, max_stalls, jobs.before):
        chain.cancel(jobs.after)
        return status
    try:
        if not is_chained and ask_slurm(job_id, restarts) is not Decision.REQUEUE:
            return status
        follows = "the next job of the chain goes on" if is_chained else "is requeued"
        log(f"job {job_id} lost ranks (exit status of srun: {status}) and {follows}")
        # Before the requeue, since Slurm ends this process then.
        attempt_log.append(folder, "end", job_id=job_id, restarts=restarts, outcome="lost", reason=f"srun: {status}")
        if not is_chained and requeue_on_slurm(job_id, restarts) is Decision.CANCELLED:
            attempt_log.append(folder, "end", job_id=job_id, restarts=restarts, outcome="cancelled")
        else:
            home = attempt_log.home(folder, job_id)
            for following in jobs.after if is_chained else [job_id]:
                apply_exclusion(home, following)
    except JobError as error:
        log(f"job {job_id} lost ranks and cannot be requeued: {error}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
