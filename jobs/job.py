"""The callable that Submitit pickles: it runs the task on the compute node, and decides what happens when it stops."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs import attempt_log, chain, superseded
from jobs.environment import MASTER_SOCKET, Place, find_place
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
        if self._resources.chain is not None:
            over = chain.why_over(self._folder, self._chain(place), place.world_size)
            if over is not None:
                return self._leave_chain(task, place, *over)
        jobs = [*self._chain(place).before, place.job_id]
        stalls = attempt_log.count_stalls(self._folder, jobs, progress)
        if stalls >= self._resources.max_stalls:
            tries = "1 attempt" if stalls == 1 else f"{stalls} attempts"
            reason = f"{tries} started at {progress or 'the beginning'} and made no progress"
            chain.cancel(self._chain(place).after)
            self._end(task, place, "given up", Outcome.FAILED, reason)
            raise JobError(f"job {place.job_id} is not tried again: {reason}; the logs are in {self._folder}")
        start = {"host": node_name(), "world_size": place.world_size, "progress": progress, "home": str(self._home)}
        self._append_event("start", place, **start)
        try:
            holds_port = bool(getattr(task, "takes_port", False))
            place, locations = meet(place, self._resources.meeting_s, holds_port=holds_port)
            self._write_report(place, locations, cluster)
            outcome = _run(task, flag)
        except Exception as error:
            flag.close()
            superseded.leave_if_superseded(self._folder, place.job_id, place.restarts)
            reason = f"{type(error).__name__}: {error}"
            is_lost = is_peer_loss(reason)
            if not is_lost:
                chain.cancel(self._chain(place).after)
            self._end(task, place, "peer lost" if is_lost else "failed", Outcome.FAILED, reason)
            raise
        superseded.leave_if_superseded(self._folder, place.job_id, place.restarts)
        if outcome is Outcome.FINISHED:
            self._end(task, place, "finished", outcome)
            chain.cancel(self._chain(place).after)
        else:
            self._follow_interruption(task, flag, place, cluster)
        return outcome

    def _follow_interruption(self, task: Task, flag: StopFlag, place: Place, cluster: str) -> None:
        """Requeue the job, or let it end, after all ranks have saved."""
        signals = ", ".join(number.name for number in flag.received) or "a signal to another rank"
        is_chained = self._resources.chain is not None
        decision = decide(cluster, self._folder, place, flag, is_chained=is_chained)
        if decision is Decision.FAILED:
            chain.cancel(self._chain(place).after)
            self._end(task, place, "failed", Outcome.FAILED, decision.value)
            raise JobError(f"{decision.value}, so rank 0 stops")
        if decision in (Decision.CANCELLED, Decision.STOPPED):
            chain.cancel(self._chain(place).after)
            self._end(task, place, decision.name.lower(), Outcome.CANCELLED, signals)
            return
        if is_chained:
            self._leave_to_next(task, place, signals)
            return
        self._end(task, place, "requeued", Outcome.INTERRUPTED, signals)
        if decision is Decision.REQUEUE and cluster == "local":
            from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

            sys.exit(LOCAL_REQUEUE_RETURN_CODE)
        if requeue_on_slurm(place.job_id, place.restarts) is Decision.CANCELLED:
            self._end(task, place, "cancelled", Outcome.CANCELLED, "while the attempt ended")
        else:
            apply_exclusion(self._home, place.job_id)

    def _chain(self, place: Place) -> chain.Chain:
        """The chain of this job as it stands now, since its last jobs may be submitted while the first one runs."""
        return chain.Chain() if self._resources.chain is None else chain.chain_of(self._folder, place.job_id)

    def _leave_to_next(self, task: Task, place: Place, signals: str) -> None:
        """Leave the work of an interrupted job to the next one of the chain, unless there is none to go on."""
        jobs = self._chain(place)
        over = chain.why_over(self._folder, jobs, place.world_size)
        if over is not None and over[0] == "cancelled":
            chain.cancel(jobs.after)
            self._end(task, place, "cancelled", Outcome.CANCELLED, over[1])
        elif jobs.is_used_up:
            reason = f"the last job of the chain ({self._resources.chain} in all) has ended; launch again to go on"
            log(reason)
            self._end(task, place, "stopped", Outcome.STOPPED, reason)
        else:
            self._end(task, place, "requeued", Outcome.INTERRUPTED, signals)
            for following in jobs.after:
                apply_exclusion(self._home, following)

    def _leave_chain(self, task: Task, place: Place, outcome: str, reason: str) -> Outcome:
        """End this job, which has just started, and the rest of its chain, since the run is not to be gone on with.

        Args:
            task: the task, which is not called.
            place: place of this process in the job.
            outcome: for the attempt log, "cancelled" or "failed".
            reason: for the user.

        Raises:
            JobError: the run has failed.
        """
        log(f"job {place.job_id} ends: {reason}")
        chain.cancel(self._chain(place).after)
        self._end(task, place, outcome, Outcome.FAILED if outcome == "failed" else Outcome.CANCELLED, reason)
        if outcome == "failed":
            raise JobError(reason)
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


def meet(place: Place, timeout_s: float, *, holds_port: bool = False) -> tuple[Place, list[Location]]:
    """Meet the other ranks; return the place with the port on which they have agreed, and the location of each rank.

    Gloo and NCCL are led to the network in which the ranks have met.

    Args:
        place: place of this process in the job.
        timeout_s: time-out for all ranks together, in seconds.
        holds_port: whether rank 0 goes on holding that port, for the task to take its socket from `MASTER_SOCKET`.

    Raises:
        JobError: a rank is missing.
    """
    meeting = rendezvous(place, timeout_s)
    export_interface(meeting.address)
    place = replace(place, master_port=meeting.master_port)
    place.export()
    if meeting.holder is not None:
        if holds_port:
            os.environ[MASTER_SOCKET] = str(meeting.holder.detach())
        else:
            meeting.holder.close()
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
