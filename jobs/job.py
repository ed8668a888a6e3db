"""The callable that Submitit pickles: run a task where the cluster placed it, and settle what happens when it stops."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs import attempts, notice
from jobs.doctor import report, write
from jobs.environment import Place, find_place
from jobs.errors import JobError
from jobs.failure import is_consequence
from jobs.preemption import StopFlag
from jobs.presence import share_claim, stop_when_orphaned
from jobs.rendezvous import Seat, meet, node_name
from jobs.requeue import Fate, clear_leftovers, fate, requeue
from jobs.resources import Resources
from jobs.snapshot import Code
from jobs.task import Outcome, Task


class Job:
    """Runs `task` in each process of a job.

    The task travels as bytes inside the pickle, and is loaded only once the stop signals are listened to: loading it
    may import for many seconds. Nothing that decides where to go on is in here: the task finds that on disk.
    """

    def __init__(self, task: Task, folder: Path, resources: Resources, code: Code, home: Path | None = None) -> None:
        import cloudpickle

        self._task = cloudpickle.dumps(task)
        self._folder = folder
        self._home = home or folder
        self._resources = resources
        self._code = code

    def checkpoint(self) -> Any:
        """What Submitit writes for the next attempt: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def __call__(self) -> Outcome:
        """Run the task; on the compute node, once for each process.

        Returns:
            FINISHED, or INTERRUPTED where the job does not come back by itself. Where it does, this does not return.

        Raises:
            JobError: too many attempts started from the same place, or the task says FAILED.
        """
        import cloudpickle
        from submitit import JobEnvironment

        cluster = JobEnvironment().cluster
        flag = StopFlag()
        flag.install()
        try:
            place = find_place()
            place.export()
            if cluster == "local":
                stop_when_orphaned()
                share_claim(self._folder)
            if cluster != "debug":
                clear_leftovers()
            seats = meet(place, self._resources.meeting_s)
            if place.rank == 0:
                self._examine(place, seats, cluster)
            task = cloudpickle.loads(self._task)
            return self._lead(task, flag, place, cluster) if place.rank == 0 else _run(task, flag)
        finally:
            if cluster == "debug":
                flag.restore()
            else:
                flag.close()

    def _examine(self, place: Place, seats: list[Seat], cluster: Any) -> None:
        """Rank 0: put the doctor's report into the log and beside it, where JOB_REPORT tells the task to find it."""
        partition = os.environ.get("SLURM_JOB_PARTITION") or self._resources.partition
        known = notice.notices(cluster, replace(self._resources, partition=partition))
        notice.export(known)
        path = self._home / f"{place.job_id}_report_{place.restarts}.json"
        words = report(place, seats, known, [Path.cwd(), self._folder, Path("/tmp")], self._code.words())
        os.environ["JOB_REPORT"] = str(path)
        print(write(path, words), flush=True)

    def _lead(self, task: Task, flag: StopFlag, place: Place, cluster: str) -> Outcome:
        """Rank 0: keep the book of attempts around the task, and requeue."""
        tell = getattr(task, "ended", lambda outcome: None)
        progress = str(getattr(task, "progress", lambda: "")())

        def end(words: str, outcome: Outcome, reason: str = "") -> None:
            try:
                self._record("end", place, outcome=words, reason=reason)
            except OSError as error:
                # What has ended has ended, also on a full disk.
                print(f"cannot note the end of this attempt in {self._folder}: {error}", flush=True)
            try:
                tell(outcome)
            except Exception as error:
                print(f"the task could not tell how it ended: {type(error).__name__}: {error}", flush=True)

        stalls = attempts.stalled(self._folder, place.job_id, progress)
        if stalls >= self._resources.max_stalls:
            tries = "1 attempt" if stalls == 1 else f"{stalls} attempts"
            reason = f"{tries} started at {progress or 'the beginning'} and got no further"
            end("given up", Outcome.FAILED, reason)
            raise JobError(f"job {place.job_id} is given up: {reason}; the logs are in {self._folder}")
        self._record("start", place, host=node_name(), world_size=place.world_size, progress=progress)
        try:
            outcome = _run(task, flag)
        except Exception as error:
            words = f"{type(error).__name__}: {error}"
            end("peer lost" if is_consequence(words) else "failed", Outcome.FAILED, words)
            raise
        if outcome is Outcome.FINISHED:
            end("finished", outcome)
            return outcome
        signals = ", ".join(number.name for number in flag.received) or "a signal to another rank"
        what = fate(cluster, self._folder, place, flag)
        if what in (Fate.REQUEUE, Fate.REQUEUED):
            end("requeued", Outcome.INTERRUPTED, signals)
            if what is Fate.REQUEUE:
                requeue(flag)
        elif what is Fate.FAILED:
            end("failed", Outcome.FAILED, what.value)
            raise JobError(f"{what.value}, so this one stops")
        else:
            end("cancelled" if what is Fate.CANCELLED else "stopped", Outcome.CANCELLED, signals)
        return Outcome.INTERRUPTED

    def _record(self, event: str, place: Place, **fields: object) -> None:
        attempts.record(self._folder, event, job_id=place.job_id, restarts=place.restarts, **fields)


def _run(task: Task, flag: StopFlag) -> Outcome:
    """Run the task, and refuse endings that would read like a vanished process or like success."""
    try:
        outcome = task(flag)
    except SystemExit as error:
        raise JobError(f"the task ended its process with sys.exit({error.code!r})") from error
    if outcome in (Outcome.FINISHED, Outcome.INTERRUPTED):
        return outcome
    if outcome is Outcome.FAILED:
        raise JobError("the task says that it cannot go on; its reason stands above in this log")
    raise JobError(f"the task returned {outcome!r}; a task returns Outcome.FINISHED, INTERRUPTED or FAILED")
