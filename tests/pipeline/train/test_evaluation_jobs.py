"""The jobs that evaluate checkpoints: when one is submitted, and what follows from its end."""

import itertools
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import Cluster, JobError, Outcome, Resources, Submission, Update
from pipeline.launch import evaluation as launch_evaluation
from pipeline.launch import sweep
from pipeline.launch.closing import describe_end
from pipeline.launch.command import conclude
from pipeline.run.evaluations import (
    MAX_TRIES,
    awaiting,
    begin_try,
    describe_problems,
    write_problem,
)
from pipeline.run.files import CONFIG_NAME
from pipeline.run.status import read_status
from pipeline.status.jobs import Jobs
from pipeline.train import evaluation_jobs
from pipeline.train.completion import complete_or_explain
from pipeline.train.evaluation_jobs import EvaluationJobs, jobs_folder
from pipeline.train.evaluation_process import EvaluationProcess
from pipeline.weights import card
from tests.support.awaiting_runs import SETUP, STEPS, prepare_awaiting


class Job(Submission):
    """A job of Slurm's, or a local one, that is as the test says."""

    def __init__(self, folder: Path, cluster: Cluster, number: int, run: Callable[[], Update]) -> None:
        super().__init__(folder, str(number), 1)
        self.cluster, self.goes_on_alone = cluster, cluster == "slurm"
        self.run = run
        self.state = Update(state="RUNNING")
        self.is_cancelled = False

    def update(self) -> Update:
        if self.cluster == "local":
            self.state = self.run()
        return self.state

    def is_over(self, update: Update) -> bool:
        return update.state not in ("RUNNING", "PENDING")

    def cancel(self) -> None:
        self.is_cancelled = True

    def detach(self) -> str:
        return ""


class Scheduler:
    """Takes what `submit` is given; jobs on this machine end with `local`."""

    def __init__(self, local: Callable[[], Update]) -> None:
        self.jobs: list[Job] = []
        self.setups: list[tuple[str, ...]] = []
        self.refuses = False
        self.jobs_refused: set[str] = set()
        self.local = local

    def submit(self, task: object, *, cluster: Cluster, folder: Path, resources: Resources, **_: object) -> Job:
        if self.refuses or cluster in self.jobs_refused:
            raise JobError("sbatch refuses the job")
        folder.mkdir(exist_ok=True)
        self.jobs.append(Job(folder, cluster, len(self.jobs) + 1, self.local))
        self.setups.append(resources.setup)
        self.jobs[-1].remember()
        return self.jobs[-1]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return prepare_awaiting(tmp_path / "run")


def set_evaluation(run_dir: Path, **changes: object) -> None:
    """Change how a run says that it is evaluated."""
    content = json.loads((run_dir / CONFIG_NAME).read_text())
    content["evaluation"] |= changes
    (run_dir / CONFIG_NAME).write_text(json.dumps(content))


@pytest.fixture
def scheduler(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    def fail() -> Update:
        """A local job that begins the newest checkpoint, or gives it up as the real one does, and is killed."""
        step = awaiting(run_dir)[-1]
        if begin_try(run_dir, step) > MAX_TRIES:
            write_problem(run_dir, step, "killed")
        return Update(state="FAILED")

    scheduler = Scheduler(fail)
    monkeypatch.setattr(evaluation_jobs, "submit", scheduler.submit)
    monkeypatch.setattr(evaluation_jobs, "ASK_EVERY_S", 0.0)
    return scheduler


def test_after_a_refusal_jobs_are_submitted_again_also_at_the_end(
    run_dir: Path, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    jobs = EvaluationJobs(run_dir)
    scheduler.refuses = True
    assert not jobs.submit_if_due()
    for job in range(2):
        scheduler.refuses = False
        assert jobs.submit_if_due()
        scheduler.jobs[job].state = Update(state="COMPLETED")
        scheduler.refuses = job == 0
        assert jobs.submit_if_due() == (job == 1)
    scheduler.jobs[2].state = Update(state="COMPLETED")
    # From here on a refusal would keep it from submitting for long.
    monkeypatch.setattr(evaluation_jobs, "ASK_EVERY_S", 1e9)
    jobs.finish()
    assert [job.cluster for job in scheduler.jobs] == ["slurm"] * 4
    assert capfd.readouterr().out.count("no evaluation job can be submitted") == 2


def test_a_cancelled_job_is_followed_by_none_before_the_end(
    run_dir: Path, scheduler: Scheduler, capfd: pytest.CaptureFixture[str]
):
    jobs = EvaluationJobs(run_dir)
    assert jobs.submit_if_due()
    assert scheduler.setups == [SETUP]
    scheduler.jobs[0].state = Update(state="CANCELLED")
    assert not jobs.submit_if_due()
    assert not jobs.submit_if_due()
    assert "evaluation job 1 was cancelled; none is submitted before the end" in capfd.readouterr().out
    jobs.finish()
    assert len(scheduler.jobs) == 2


class Clock:
    """A clock that moves only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time as the evaluation jobs see it, with their real pauses."""
    monkeypatch.setattr(evaluation_jobs, "ASK_EVERY_S", 15.0)
    clock = Clock()
    monkeypatch.setattr(evaluation_jobs, "time", clock)
    return clock


def test_after_jobs_that_fail_the_next_ones_come_later_and_later_but_come(
    run_dir: Path, scheduler: Scheduler, clock: Clock
):
    scheduler.local = lambda: Update(state="FAILED")
    set_evaluation(run_dir, in_allocation=True)
    jobs = EvaluationJobs(run_dir, beside_training=True)
    begun: list[float] = []
    while clock.now < 2200:
        jobs.submit_if_due()
        if len(scheduler.jobs) > len(begun):
            begun.append(clock.now)
        clock.sleep(1.0)
    pauses = [later - earlier for earlier, later in itertools.pairwise(begun)]
    assert pauses == [16, 31, 61, 121, 241, 481, 601, 601]


def test_the_end_of_a_training_outlasts_a_disturbance_of_minutes(run_dir: Path, scheduler: Scheduler, clock: Clock):
    scheduler.local = lambda: Update(state="FAILED")
    jobs = EvaluationJobs(run_dir, beside_training=True)
    scheduler.jobs_refused = {"slurm"}
    jobs.finish()
    assert [job.cluster for job in scheduler.jobs] == ["local"] * evaluation_jobs.MOST_FAILURES
    assert 180 < clock.now < 600


def test_at_the_end_every_checkpoint_is_tried_until_it_is_given_up(
    run_dir: Path, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
):
    jobs = EvaluationJobs(run_dir, beside_training=True)
    monkeypatch.setattr(jobs, "_failures", evaluation_jobs.MOST_FAILURES)
    jobs.finish()
    assert not awaiting(run_dir)
    # The environment of the training's job is set up, and /bin/sh may know no `module`.
    assert set(scheduler.setups) == {()}
    assert [problem.split()[1] for problem in describe_problems(run_dir)] == [str(step) for step in STEPS]


def test_jobs_that_fail_before_they_try_anything_end_the_wait_and_the_log_says_what_to_do(
    run_dir: Path, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    scheduler.local = lambda: Update(state="FAILED")
    jobs = EvaluationJobs(run_dir)
    monkeypatch.setattr(jobs, "_failures", evaluation_jobs.MOST_FAILURES)
    jobs.finish()
    assert len(scheduler.jobs) == evaluation_jobs.MOST_FAILURES
    assert not card.is_exported(run_dir)
    complete_or_explain(run_dir)
    said = capfd.readouterr().out
    assert "step 2, 4, 6 awaits its evaluation, and no job is left for it" in said
    assert f"python -m pipeline.register {run_dir}" in said


def test_a_damaged_record_of_the_last_job_is_a_refusal(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    folder = jobs_folder(run_dir)
    folder.mkdir(parents=True)
    (folder / "submission.json").write_text("{")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    EvaluationProcess(run_dir).close(finished=True)
    complete_or_explain(run_dir)
    said = capfd.readouterr().out
    assert "no evaluation job can be submitted from here" in said
    assert "submission.json cannot be read (it is damaged)" in said
    # A watch would wait for its end for ever.
    assert not Jobs().evaluates(read_status(run_dir))
    assert "it is damaged" in Jobs().describe_evaluation(run_dir)
    assert "no job is left for it" in said


def test_a_sweep_that_is_launched_again_submits_an_evaluation_and_does_not_wait_for_it(
    run_dir: Path, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    for module in (launch_evaluation, sweep):
        monkeypatch.setattr(module, "is_exported", lambda _: True)
    monkeypatch.setattr(Job, "wait", lambda *_, **__: pytest.fail("waits"))
    plan = SimpleNamespace(
        run_dir=run_dir.parent, runs=[SimpleNamespace(run_dir=run_dir)], options=SimpleNamespace(wait=False)
    )
    sweep._register_finished(plan)  # type: ignore[arg-type]
    assert len(scheduler.jobs) == 1
    assert "step 2, 4, 6 awaits its evaluation by job 1" in capfd.readouterr().out
    assert conclude(run_dir, follow=False) == 0
    assert sweep._conclude(plan) == 0  # type: ignore[arg-type]


def test_ctrl_c_leaves_a_training_that_evaluates_its_last_checkpoints_to_it(
    run_dir: Path, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(launch_evaluation, "is_exported", lambda _: True)
    training = Job(run_dir / "submitit", "slurm", 7, lambda: Update(state="RUNNING"))
    monkeypatch.setattr(launch_evaluation, "training_that_evaluates", lambda _: training)
    plan = SimpleNamespace(
        run_dir=run_dir.parent, runs=[SimpleNamespace(run_dir=run_dir)], options=SimpleNamespace(wait=False)
    )
    assert sweep._conclude(plan) == 0  # type: ignore[arg-type]
    monkeypatch.setattr(training, "update", _interrupt)
    conclude(run_dir, follow=True)
    said = capfd.readouterr().out
    assert "step 2, 4, 6 awaits its evaluation by job 7, which has trained it" in said
    assert "registered by the job that evaluates its last checkpoints:" in said
    assert not scheduler.jobs


def test_an_evaluation_job_that_waits_is_cancelled_where_the_allocation_is_to_evaluate(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    folder = jobs_folder(run_dir)
    folder.mkdir(parents=True)
    waiting = Job(folder, "slurm", 7, lambda: Update(state="PENDING"))
    waiting.remember()
    monkeypatch.setattr(launch_evaluation, "attach", lambda _: waiting)
    for state in ("PENDING", "RUNNING"):
        waiting.state = Update(state=state)
        launch_evaluation.end_waiting_evaluation(run_dir)
    set_evaluation(run_dir, in_allocation=True)
    launch_evaluation.end_waiting_evaluation(run_dir)
    assert (folder / "submission.json").exists()
    assert not capfd.readouterr().out
    waiting.state = Update(state="PENDING")
    launch_evaluation.end_waiting_evaluation(run_dir)
    assert waiting.is_cancelled
    # The attempt does not take it for one that a user has cancelled.
    assert not (folder / "submission.json").exists()
    assert "evaluation job 7 is cancelled before it has begun" in capfd.readouterr().out


def _interrupt() -> Update:
    raise KeyboardInterrupt


def test_a_checkpoint_without_a_job_that_evaluates_it_is_named_at_the_end(run_dir: Path):
    said = describe_end(run_dir, Outcome.FINISHED)
    assert "step 2, 4, 6 awaits its evaluation, and no job is left for it; to evaluate it and register" in said
    assert f"    the same command with --run-dir {run_dir}\n" in said


@pytest.mark.parametrize("has_queue", [True, False])
def test_a_stop_signal_after_the_training_ends_the_evaluation_there_and_a_time_limit_moves_it(
    run_dir: Path, scheduler: Scheduler, clock: Clock, has_queue: bool
):
    set_evaluation(run_dir, in_allocation=True, cluster="slurm" if has_queue else "local")
    scheduler.local = lambda: Update(state="COMPLETED" if scheduler.jobs[-1].is_cancelled else "RUNNING")
    jobs = EvaluationJobs(run_dir, beside_training=True)
    jobs.finish(lambda: clock.now > 60)
    assert clock.now < 70
    assert [(job.cluster, job.is_cancelled) for job in scheduler.jobs] == [("local", True)]
    jobs.hand_over()
    assert [job.cluster for job in scheduler.jobs[1:]] == ["slurm"] * has_queue


def test_rank_0_waits_for_what_a_killed_process_has_left_before_it_evaluates(
    run_dir: Path, scheduler: Scheduler, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    def evaluate() -> Update:
        for step in awaiting(run_dir):
            write_problem(run_dir, step, "evaluated")
        return Update(state="COMPLETED")

    monkeypatch.setattr(evaluation_jobs, "is_running_locally", lambda _: clock.now < 60)
    set_evaluation(run_dir, in_allocation=True)
    scheduler.local = evaluate
    EvaluationJobs(run_dir, beside_training=True).finish()
    assert clock.now >= 60
    assert [job.cluster for job in scheduler.jobs] == ["local"]


def test_rank_0_passes_a_stop_signal_on_while_it_waits_for_the_last_evaluation(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    program = tmp_path / "process"
    program.write_text(
        f"#!{sys.executable}\nimport os, signal, sys\nsys.stdin.read()\nos.kill(os.getppid(), signal.SIGTERM)\n"
        "sys.exit(0 if signal.sigtimedwait([signal.SIGTERM], 20) else 1)\n"
    )
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        EvaluationProcess(run_dir).close(finished=True)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "has failed" not in capfd.readouterr().out


def test_an_evaluation_in_the_allocation_sees_the_gpus_that_no_rank_uses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert evaluation_jobs.gpus_without_rank(1, 3) == ["7"]
    assert evaluation_jobs.gpus_without_rank(2, 2) == ["6", "7"]
    # The ranks have ended.
    assert evaluation_jobs.gpus_without_rank(4, 0) == ["4", "5", "6", "7"]
    with pytest.raises(JobError, match="shows 4 GPUs to a process, too few for 3 ranks and 2 beside them"):
        evaluation_jobs.gpus_without_rank(2, 3)
    # Nothing names them, so nvidia-smi counts them.
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(evaluation_jobs, "query_gpus", lambda _: ["H200", "H200"])
    assert evaluation_jobs.gpus_without_rank(1, 1) == ["1"]


def test_the_allocation_evaluates_beside_the_training_and_a_job_what_is_left_after_it(
    run_dir: Path, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
):
    set_evaluation(run_dir, in_allocation=True)
    stopped = []
    monkeypatch.setattr(Job, "cancel", lambda job: stopped.append(job.cluster))
    scheduler.local = lambda: Update(state="RUNNING" if not stopped else "COMPLETED")
    beside = EvaluationJobs(run_dir, beside_training=True)
    assert beside.submit_if_due()
    # The training is interrupted, and its job is gone.
    beside.stop()
    assert stopped == ["local"]
    assert EvaluationJobs(run_dir).submit_if_due()
    assert [job.cluster for job in scheduler.jobs] == ["local", "slurm"]
