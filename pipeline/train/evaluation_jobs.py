"""Submits the job that evaluates checkpoints, again whenever some await it and no such job is left.

It is a job of the cluster's, or processes beside rank 0, where the training's allocation evaluates.
"""

import contextlib
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs import (
    Cluster,
    JobError,
    Outcome,
    Resources,
    StopRequested,
    Submission,
    attach,
    is_running_locally,
    submit,
)
from pipeline.common.errors import one_line
from pipeline.common.processes import ONE_THREAD
from pipeline.run.config import read_config
from pipeline.run.evaluations import MAX_TRIES, awaiting, is_leaving
from pipeline.run.files import EVALUATIONS, LOGS
from pipeline.run.recorder import log
from pipeline.run.system import query_gpus
from pipeline.train.evaluation_task import EvaluationTask

ASK_EVERY_S = 15.0
"""Shortest time between two questions to a cluster about a job, and between two submissions that it refuses.

It is also the pause after a job that has failed, which doubles with each further one in a row."""
LONGEST_PAUSE_S = 600.0
"""Longest pause after failed jobs beside the training."""
LONGEST_PAUSE_AT_END_S = 60.0
"""Longest pause after failed jobs once the training has ended, whose nodes wait."""
HAND_OVER_S = 30.0
"""How long a job of the cluster is held back for the end of the processes whose work it takes on."""
ORPHANS_S = 150.0
"""How long the end of a training waits for evaluating processes whose parent was killed: so long they may take to end.
"""
STOP_S = 8.0
"""How long an interrupted training waits for the end of the batch that is evaluated beside it."""
MOST_FAILURES = MAX_TRIES + 1
"""Failed jobs in a row after which rank 0's node evaluates at the training's end, and as many there are the last."""


def jobs_folder(run_dir: Path) -> Path:
    """Return the folder of the scripts, pickles and logs of the evaluation jobs."""
    return run_dir / EVALUATIONS / LOGS


class EvaluationJobs:
    """The evaluation jobs of a run, one at a time: one evaluates everything that awaits it."""

    def __init__(self, run_dir: Path, *, beside_training: bool = False) -> None:
        """Look for the job that was last submitted for this run.

        Args:
            run_dir: of the run.
            beside_training: whether this is rank 0, or a process of its job.
        """
        self._run_dir = run_dir
        settings = read_config(run_dir).evaluation
        assert settings is not None
        self._beside_training = beside_training
        self._in_allocation = beside_training and bool(settings.get("in_allocation"))
        self._queue: Cluster = settings["cluster"]
        self._cluster: Cluster = "local" if self._in_allocation else self._queue
        self._name = settings["name"]
        self._resources = _resources(settings)
        self._submission: Submission | None = None
        self._is_refused = self._is_cancelled = self._has_ended = False
        self._failures, self._asked, self._refused, self._failed = 0, -math.inf, -math.inf, -math.inf
        try:
            self._submission = attach(jobs_folder(run_dir))
        except JobError as error:
            self._refuse(error)

    @property
    def submission(self) -> Submission | None:
        """The job that was last submitted."""
        return self._submission

    def submit_if_due(self) -> bool:
        """Submit a job if checkpoints await their evaluation and there is none; say how the last one has failed.

        Returns:
            Whether nothing awaits its evaluation, or there is a job for it. A refusal of the cluster is logged once.
            After one that has failed there is a pause; after one that was cancelled, no other one is submitted before
            the training's end.
        """
        if not awaiting(self._run_dir) or self._is_queued():
            return True
        if self._submission is None and is_running_locally(jobs_folder(self._run_dir)):
            # Processes of the attempt before, which end with it.
            return False
        waits = self._is_refused and time.monotonic() - self._refused < ASK_EVERY_S
        # At the end rank 0's node does better than jobs that have failed in a row.
        is_hopeless = self._has_ended and self._failures >= MOST_FAILURES
        if is_hopeless or self._is_cancelled or waits or self._pause() > 0:
            return False
        return self._submit(self._cluster)

    def finish(self, stop_requested: StopRequested = lambda: False) -> None:
        """See to it that all is evaluated after the training: by a job that goes on without it, or here and now.

        Args:
            stop_requested: whether the job of the training is about to end; what is left is then left to `hand_over`.
        """
        self._asked = self._refused = self._failed = -math.inf
        self._is_cancelled, self._has_ended = False, True
        self.submit_if_due()
        while self._submission and awaiting(self._run_dir) and is_leaving(self._run_dir, self._submission.job_id):
            # It may not have seen the last checkpoint.
            self._asked = -math.inf
            if self._is_queued():
                time.sleep(0.5)
        # What has failed just now is repeated where it does not keep the training's nodes.
        self._failed = -math.inf
        self.submit_if_due()
        if self._is_queued():
            assert self._submission is not None
            if self._submission.goes_on_alone:
                return
            self._wait(stop_requested)
        self._evaluate_here(stop_requested)

    def hand_over(self) -> None:
        """Submit a job of its own for what the job of the training has no time to evaluate, where there is a queue."""
        if self._queue != "slurm" or not awaiting(self._run_dir):
            return
        deadline = time.monotonic() + HAND_OVER_S
        while is_running_locally(jobs_folder(self._run_dir)) and time.monotonic() < deadline:
            time.sleep(0.5)
        self._submit("slurm")

    def stop(self) -> None:
        """Ask processes of this machine that evaluate to stop after a batch, and wait a while for their end."""
        submission = self._submission
        if submission is None or submission.goes_on_alone:
            return
        submission.cancel()
        deadline = time.monotonic() + STOP_S
        while submission.poll()[1] is None and time.monotonic() < deadline:
            time.sleep(0.1)
        self._submission = None

    def _evaluate_here(self, stop_requested: StopRequested) -> None:
        """Evaluate what is left on this machine, and wait for the end.

        Each checkpoint is tried until it is evaluated or given up, unless the jobs fail before they try one.
        """
        task, fruitless = EvaluationTask(self._run_dir), 0
        self._failures, orphans_until = 0, time.monotonic() + ORPHANS_S
        while awaiting(self._run_dir) and fruitless < MOST_FAILURES and not stop_requested():
            has_orphans = time.monotonic() < orphans_until and is_running_locally(jobs_folder(self._run_dir))
            if has_orphans or self._pause() > 0:
                time.sleep(0.5)
                continue
            if not self._submit("local"):
                return
            before = task.progress()
            self._wait(stop_requested)
            fruitless = fruitless + 1 if task.progress() == before else 0

    def _pause(self) -> float:
        """Return the seconds until another job may follow those that have failed; 0: none is too many."""
        if self._failures == 0:
            return 0.0
        longest = LONGEST_PAUSE_AT_END_S if self._has_ended else LONGEST_PAUSE_S
        pause = min(ASK_EVERY_S * 2 ** min(self._failures - 1, 16), longest)
        return max(0.0, self._failed + pause - time.monotonic())

    def _wait(self, stop_requested: StopRequested) -> None:
        """Wait for the end of the last job, a process of this machine, or end it; how it has failed is logged."""
        while self._is_queued():
            if stop_requested():
                self.stop()
                return
            time.sleep(0.5)

    def _is_queued(self) -> bool:
        """Whether the last job waits, runs, or will be started again; how a job has failed is logged."""
        submission, now = self._submission, time.monotonic()
        if submission is None:
            return False
        if submission.goes_on_alone and now - self._asked < ASK_EVERY_S:
            return True
        self._asked = now
        outcome = submission.poll()[1]
        if outcome is None:
            return True
        self._submission = None
        if outcome is Outcome.FINISHED:
            self._failures = 0
        elif outcome is Outcome.CANCELLED:
            self._is_cancelled = True
            log(
                f"warning: evaluation job {submission.job_id} was cancelled; none is submitted before the end of this "
                "attempt at the training"
            )
        else:
            self._failures, self._failed = self._failures + 1, now
            log(f"warning: evaluation job {submission.job_id} is {outcome.value}: {_reason(submission)}")
            if awaiting(self._run_dir):
                log(f"another one follows in {self._pause():.0f} s")
        return False

    def _submit(self, cluster: Cluster) -> bool:
        resources = self._resources
        if cluster == "local" and self._beside_training:
            # The job of the training has run these commands, in a shell and perhaps outside a container.
            resources = replace(resources, setup=())
        try:
            # Submitting makes it otherwise, readable by others.
            (self._run_dir / EVALUATIONS).mkdir(mode=0o700, exist_ok=True)
            with self._environment() if cluster == "local" else contextlib.nullcontext():
                self._submission = submit(
                    EvaluationTask(self._run_dir),
                    cluster=cluster,
                    folder=jobs_folder(self._run_dir),
                    resources=resources,
                    name=self._name,
                )
        except (JobError, OSError) as error:
            self._refuse(error)
            return False
        assert self._submission is not None
        self._is_refused, self._asked = False, time.monotonic()
        steps = ", ".join(map(str, awaiting(self._run_dir)))
        log(f"evaluation job {self._submission.job_id} is submitted for step {steps}")
        return True

    @contextlib.contextmanager
    def _environment(self) -> Iterator[None]:
        """Have processes that are started meanwhile compute in one thread, and on GPUs without a rank of the training.

        Raises:
            JobError: there are no such GPUs.
        """
        changes = {name: value for name, value in ONE_THREAD.items() if name not in os.environ}
        kept = self._resources.gpus_per_node or 0
        if self._in_allocation and kept:
            ranks = 0 if self._has_ended else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            changes["CUDA_VISIBLE_DEVICES"] = ",".join(gpus_without_rank(kept, ranks))
        before = {name: os.environ.get(name) for name in changes}
        os.environ.update(changes)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def _refuse(self, error: JobError | OSError) -> None:
        """Log the first refusal after a success; the next submission is tried after a while."""
        if not self._is_refused:
            log(
                f"warning: no evaluation job can be submitted from here ({one_line(error)}); the training goes on, and "
                "what could not be evaluated before is evaluated at its end"
            )
        self._is_refused, self._refused = True, time.monotonic()


def gpus_without_rank(count: int, ranks: int) -> list[str]:
    """Return the last GPUs of this node, as CUDA_VISIBLE_DEVICES names them; the ranks of the training take the first.

    Args:
        count: how many.
        ranks: ranks of the training on this node; 0 once they have ended.

    Raises:
        JobError: this process sees too few of them beside those of its node's ranks.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = map(str, range(len(query_gpus("name")))) if named is None else named.split(",")
    gpus = [gpu for gpu in found if gpu]
    if ranks and len(gpus) < ranks + count:
        raise JobError(
            f"rank 0's node shows {len(gpus)} GPUs to a process, too few for {ranks} ranks and {count} beside them"
        )
    return gpus[-count:]


def _reason(submission: Submission) -> str:
    try:
        return submission.failure() or f"its logs are in {submission.folder}"
    except JobError as error:
        return str(error)


def _resources(settings: Mapping[str, Any]) -> Resources:
    """Return the resources of an evaluation job, as `config.json` has them."""

    def value(stored: Any) -> Any:
        return tuple(stored) if isinstance(stored, list) else stored

    return Resources(**{name: value(stored) for name, stored in settings["resources"].items()})
