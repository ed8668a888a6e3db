"""The callable that Submitit pickles: it runs the task on the compute node, and decides what happens when it stops."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs import attempt_log, chain, superseded
from jobs.environment import Place, find_place
from jobs.errors import JobError
from jobs.exclusion import apply_exclusion
from jobs.failure import is_peer_loss
from jobs.folder_lock import share_lock
from jobs.interfaces import export_interface
from jobs.job_report import collect_report, write_report
from jobs.log import log
from jobs.notice import export_notices, find_notices
from jobs.orphan_watch import stop_when_orphaned
from jobs.rendezvous import Location, node_name, rendezvous
from jobs.requeue import Decision, decide, requeue_on_slurm
from jobs.resources import Resources
from jobs.snapshot import Code
from jobs.stop_flag import StopFlag
from jobs.task import Outcome, Task


class Job:
    """Runs `task` in each process of a job.

    The task is stored as bytes inside the pickle and is loaded only after the handlers of the stop signals are
    installed, since loading it may import modules for many seconds. The pickle holds no training state: the task finds
    on disk where to go on.
    """

    def __init__(
        self, task: Task, folder: Path, resources: Resources, code: Code, task_folder: Path | None = None
    ) -> None:
        import cloudpickle

        self._task = cloudpickle.dumps(task)
        self._folder = folder
        self._home = task_folder or folder
        self._resources = resources
        self._code = code

    def __call__(self) -> Outcome:
        """Run the task on the compute node; called once in each process.

        Returns:
            FINISHED, or INTERRUPTED when work is left. On this machine a job that is requeued ends the process instead.

        Raises:
            JobError: too many attempts started from the same progress, or the task returned FAILED.
        """
        from submitit import JobEnvironment

        cluster = JobEnvironment().cluster
        flag = StopFlag(restores=cluster == "debug")
        flag.install()
        try:
            place = find_place()
            place.export()
            if cluster == "local":
                stop_when_orphaned()
                share_lock(self._folder)
            if cluster == "slurm" and place.local_rank == 0:
                superseded.watch(self._folder, place.job_id, place.restarts)
            if place.rank == 0:
                return self._lead(flag, place, cluster)
            try:
                meet(place, self._resources.meeting_s)
                return _run(self._load(), flag)
            except Exception:
                # Its result would be taken for one of the newer attempt.
                superseded.leave_if_superseded(self._folder, place.job_id, place.restarts)
                raise
        finally:
            flag.close()

    def _load(self) -> Task:
        import cloudpickle

        return cloudpickle.loads(self._task)

    def _write_report(self, place: Place, locations: list[Location], cluster: Any) -> None:
        """Write the job report to the log and to a file, and export the file's path as JOB_REPORT."""
        partition = os.environ.get("SLURM_JOB_PARTITION") or self._resources.partition
        notices = find_notices(cluster, replace(self._resources, partition=partition))
        export_notices(notices)
        path = self._home / f"{place.job_id}_report_{place.restarts}.json"
        folders = [Path.cwd(), self._folder, Path("/tmp")]
        report = collect_report(place, locations, notices, folders, self._code.describe())
        os.environ["JOB_REPORT"] = str(path)
        log(write_report(path, report))

    def _lead(self, flag: StopFlag, place: Place, cluster: str) -> Outcome:
        """Rank 0: run the task, write the attempt log around it, and decide what follows."""
        task = self._load()
        progress = str(getattr(task, "progress", lambda: "")())
        cancelled = chain.was_cancelled(self._folder, place.job_id)
        if cancelled:
            return self._leave_chain(task, place, cancelled)
        jobs = [*chain.before(self._folder, place.job_id), place.job_id]
        stalls = attempt_log.count_stalls(self._folder, jobs, progress)
        if stalls >= self._resources.max_stalls:
            tries = "1 attempt" if stalls == 1 else f"{stalls} attempts"
            reason = f"{tries} started at {progress or 'the beginning'} and made no progress"
            self._end(task, place, "given up", Outcome.FAILED, reason)
            raise JobError(f"job {place.job_id} is not tried again: {reason}; the logs are in {self._folder}")
        self._append_event("start", place, host=node_name(), world_size=place.world_size, progress=progress)
        try:
            place, locations = meet(place, self._resources.meeting_s)
            self._write_report(place, locations, cluster)
            outcome = _run(task, flag)
        except Exception as error:
            flag.close()
            superseded.leave_if_superseded(self._folder, place.job_id, place.restarts)
            reason = f"{type(error).__name__}: {error}"
            self._end(task, place, "peer lost" if is_peer_loss(reason) else "failed", Outcome.FAILED, reason)
            raise
        superseded.leave_if_superseded(self._folder, place.job_id, place.restarts)
        if outcome is Outcome.FINISHED:
            self._end(task, place, "finished", outcome)
            chain.end_rest(self._folder, place.job_id)
        else:
            self._follow_interruption(task, flag, place, cluster)
        return outcome

    def _follow_interruption(self, task: Task, flag: StopFlag, place: Place, cluster: str) -> None:
        """Requeue the job, or let it end, after all ranks have saved."""
        signals = ", ".join(number.name for number in flag.received) or "a signal to another rank"
        decision = decide(cluster, self._folder, place, flag, is_chained=self._resources.chain is not None)
        if decision is Decision.FAILED:
            self._end(task, place, "failed", Outcome.FAILED, decision.value)
            raise JobError(f"{decision.value}, so rank 0 stops")
        if decision in (Decision.CANCELLED, Decision.STOPPED):
            self._end(task, place, decision.name.lower(), Outcome.CANCELLED, signals)
            chain.end_rest(self._folder, place.job_id)
            return
        if self._resources.chain is not None and not chain.after(self._folder, place.job_id):
            reason = f"the last job of the chain ({self._resources.chain} in all) has ended; launch again to go on"
            log(reason)
            self._end(task, place, "stopped", Outcome.CANCELLED, reason)
            return
        self._end(task, place, "requeued", Outcome.INTERRUPTED, signals)
        if decision is Decision.REQUEUE and cluster == "local":
            from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

            sys.exit(LOCAL_REQUEUE_RETURN_CODE)
        if self._resources.chain is not None:
            for following in chain.after(self._folder, place.job_id):
                apply_exclusion(self._home, following)
            return
        if requeue_on_slurm(place.job_id, place.restarts) is Decision.CANCELLED:
            self._end(task, place, "cancelled", Outcome.CANCELLED, "while the attempt ended")
        else:
            apply_exclusion(self._home, place.job_id)

    def _leave_chain(self, task: Task, place: Place, cancelled: str) -> Outcome:
        """Cancel this job, which has just started, and the rest of its chain, since a user cancelled the one before."""
        reason = f"job {cancelled}, the one before it in the chain, was cancelled"
        log(f"job {place.job_id} ends: {reason}")
        self._end(task, place, "cancelled", Outcome.CANCELLED, reason)
        chain.end_rest(self._folder, place.job_id)
        chain.cancel([place.job_id])
        return Outcome.INTERRUPTED

    def _end(self, task: Task, place: Place, logged: str, outcome: Outcome, reason: str = "") -> None:
        """Write the end to the attempt log, and then tell the task, which may take long over it."""
        try:
            self._append_event("end", place, outcome=logged, reason=reason)
        except OSError as error:
            # A full disk must not hide how the attempt ended.
            log(f"cannot write the end of this attempt to the attempt log in {self._folder}: {error}")
        try:
            getattr(task, "ended", lambda outcome: None)(outcome)
        except Exception as error:
            log(f"the task's ended() failed: {type(error).__name__}: {error}")

    def _append_event(self, event: str, place: Place, **fields: object) -> None:
        attempt_log.append(self._folder, event, job_id=place.job_id, restarts=place.restarts, **fields)


def meet(place: Place, timeout_s: float) -> tuple[Place, list[Location]]:
    """Meet the other ranks; return the place with the port on which they have agreed, and the location of each rank.

    Gloo and NCCL are led to the network in which the ranks have met.

    Raises:
        JobError: a rank is missing.
    """
    meeting = rendezvous(place, timeout_s)
    export_interface(meeting.address)
    place = replace(place, master_port=meeting.master_port)
    place.export()
    return place, meeting.locations


def _run(task: Task, flag: StopFlag) -> Outcome:
    """Run the task. Raise JobError where it ends in a way that would look like a lost rank or like success."""
    try:
        outcome = task(flag)
    except SystemExit as error:
        raise JobError(f"the task ended its process with sys.exit({error.code!r})") from error
    finally:
        flag.close()
    if outcome in (Outcome.FINISHED, Outcome.INTERRUPTED):
        return outcome
    if outcome is Outcome.FAILED:
        raise JobError("the task returned FAILED; see above in this log for the reason")
    raise JobError(f"the task returned {outcome!r}; it must return Outcome.FINISHED, INTERRUPTED or FAILED")
