"""A chain: jobs that continue one run one after the other, where a site forbids that a job is requeued.

All of them are submitted at once. Each depends on the end of those before it, however they end, and finds on disk
where to go on. The rest of a chain is cancelled when the run has ended: finished, failed, given up or cancelled.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from jobs.attempt_log import last_outcome
from jobs.errors import SlurmError
from jobs.log import log
from jobs.slurm import ask, slurm_job

SUBMISSION_FILE = "submission.json"
"""Names a folder's newest submission: cluster, job id, the ids of a chain, number of processes, folder of the logs."""


def jobs_of_chain(folder: Path) -> list[str]:
    """The ids of the jobs that were last submitted from a folder as a chain, in order; none where it was no chain."""
    try:
        fields = json.loads((folder / SUBMISSION_FILE).read_text(encoding="utf-8"))
        return [str(job_id) for job_id in fields.get("chain", [])]
    except (OSError, ValueError, AttributeError):
        return []


def before(folder: Path, job_id: str) -> list[str]:
    """The jobs of the chain before this one."""
    chain = jobs_of_chain(folder)
    return chain[: chain.index(job_id)] if job_id in chain else []


def after(folder: Path, job_id: str) -> list[str]:
    """The jobs of the chain after this one."""
    chain = jobs_of_chain(folder)
    return chain[chain.index(job_id) + 1 :] if job_id in chain else []


def was_cancelled(folder: Path, job_id: str) -> str:
    """The job before this one, if a user has cancelled it, and so means the chain; else ""."""
    for previous in before(folder, job_id)[-1:]:
        if last_outcome(folder, previous) == "cancelled":
            return previous
        try:
            job = slurm_job(previous)
        except SlurmError:
            continue
        if job is not None and job.state == "CANCELLED":
            return previous
    return ""


def end_rest(folder: Path, job_id: str) -> None:
    """Cancel the jobs after this one. A job that stays in the queue finds that the run has ended, and ends itself."""
    cancel(after(folder, job_id))


def cancel(job_ids: Sequence[str]) -> None:
    """Cancel these jobs of a chain; a failure is logged, and no more."""
    try:
        if job_ids:
            ask("scancel", *job_ids)
    except SlurmError as error:
        log(f"cannot cancel what is left of the chain ({error}): scancel {' '.join(job_ids)}")
