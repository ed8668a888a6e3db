"""The jobs that evaluate checkpoints: when one is submitted, and what follows from its end."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from jobs import Cluster, JobError, Submission, Update
from pipeline.common.errors import TrainingError
from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.engine.distributed import World
from pipeline.launch import evaluation as launch_evaluation
from pipeline.launch import sweep
from pipeline.launch.command import conclude
from pipeline.run import directory as run_directory
from pipeline.run.evaluations import AWAITS, MAX_TRIES, awaiting, begin_try, describe_problems, write_problem
from pipeline.run.files import CONFIG_NAME
from pipeline.run.recorder import Recorder
from pipeline.run.status import read_status
from pipeline.status.jobs import Jobs
from pipeline.train import evaluation_jobs, late_evaluation
from pipeline.train.completion import complete_or_explain
from pipeline.train.evaluation import Evaluation
from pipeline.train.evaluation_jobs import EvaluationJobs, jobs_folder
from pipeline.train.evaluation_process import EvaluationProcess
from pipeline.train.validation import Evaluator
from pipeline.weights import card
from tests.support.tracking_runs import write_checkpoint

STEPS = (2, 4, 6)


class Job(Submission):
    """A job of Slurm's, or a local one, that is as the test says."""

    def __init__(self, folder: Path, cluster: Cluster, number: int, run: Callable[[], Update]) -> None:
        super().__init__(folder, str(number), 1)
        self.cluster, self.goes_on_alone = cluster, cluster == "slurm"
        self.run = run
        self.state = Update(state="RUNNING")

    def update(self) -> Update:
        if self.cluster == "local":
            self.state = self.run()
        return self.state

    def is_over(self, update: Update) -> bool:
        return update.state not in ("RUNNING", "PENDING")

    def cancel(self) -> None: ...

    def detach(self) -> str:
        return ""


class Scheduler:
    """Takes what `submit` is given; jobs on this machine end with `local`."""

    def __init__(self, local: Callable[[], Update]) -> None:
        self.jobs: list[Job] = []
        self.refuses = False
        self.local = local

    def submit(self, task: object, *, cluster: Cluster, folder: Path, **_: object) -> Job:
        if self.refuses:
            raise JobError("sbatch refuses the job")
        folder.mkdir(exist_ok=True)
        self.jobs.append(Job(folder, cluster, len(self.jobs) + 1, self.local))
        self.jobs[-1].remember()
        return self.jobs[-1]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with three checkpoints that await their evaluation, none of which can be read."""
    folder = tmp_path / "run"
    evaluation = {"cluster": "slurm", "name": "evaluate", "resources": {}}
    config = TrainConfig(steps=6, model=ModelConfig(name="transxnet_n"))
    run_directory.prepare(folder, config, {"tracking_uri": None, "total_steps": 6, "evaluation": evaluation})
    for step in STEPS:
        write_checkpoint(folder, step)
        manifest = folder / f"checkpoints/step_{step:08d}/manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {AWAITS: True}))
    return folder


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
    scheduler.jobs[0].state = Update(state="CANCELLED")
    assert not jobs.submit_if_due()
    assert not jobs.submit_if_due()
    assert "evaluation job 1 was cancelled; none is submitted before the end" in capfd.readouterr().out
    jobs.finish()
    assert len(scheduler.jobs) == 2


def test_a_checkpoint_that_always_fails_leaves_a_job_for_the_others_until_too_many_have_failed(
    run_dir: Path, scheduler: Scheduler, capfd: pytest.CaptureFixture[str]
):
    jobs = EvaluationJobs(run_dir)
    for number in range(MAX_TRIES + 1):
        assert jobs.submit_if_due()
        scheduler.jobs[number].state = Update(state="FAILED")
    assert not jobs.submit_if_due()
    assert f"{MAX_TRIES + 1} evaluation jobs in a row have failed" in capfd.readouterr().out


def test_at_the_end_every_checkpoint_is_tried_until_it_is_given_up(
    run_dir: Path, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
):
    jobs = EvaluationJobs(run_dir)
    monkeypatch.setattr(jobs, "_failures", evaluation_jobs.MOST_FAILURES)
    jobs.finish()
    assert not awaiting(run_dir)
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
    plan = SimpleNamespace(runs=[SimpleNamespace(run_dir=run_dir)])
    sweep._register_finished(plan)  # type: ignore[arg-type]
    assert len(scheduler.jobs) == 1
    assert "step 2, 4, 6 awaits its evaluation by job 1" in capfd.readouterr().out
    assert conclude(run_dir, follow=False) == 0


def test_a_checkpoint_that_cannot_be_read_for_a_moment_is_read_again(run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    looks: list[int] = []

    class Store:
        def __init__(self, _: Path) -> None: ...

        def read(self, step: int) -> int:
            looks.append(step)
            if step == max(STEPS) and looks.count(step) < 3:
                raise OSError("Stale file handle")
            return step

    monkeypatch.setattr(late_evaluation, "CheckpointStore", Store)
    monkeypatch.setattr(late_evaluation, "averaged_state", lambda *_: {})
    monkeypatch.setattr(late_evaluation, "REREAD_S", 0.0)
    order = []
    while (chosen := late_evaluation._next(run_dir, {})) is not None:
        order.append(chosen[0])
        write_problem(run_dir, chosen[0], "evaluated")
    assert sorted(order) == list(STEPS)
    assert looks == [6, 4, 6, 2, 6]


def test_scores_that_cannot_be_written_end_the_training_only_at_its_last_step(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    (run_dir / "evaluations").write_text("a file where a folder is needed")
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    recorder = Recorder(run_dir, is_main=True, world_size=1)
    evaluation = Evaluation(
        TrainConfig(model=ModelConfig(name="transxnet_n")), world, run_dir, recorder, Evaluator.__new__(Evaluator)
    )
    monkeypatch.setattr(evaluation, "_evaluate", lambda *_: {"top1": 0.5, "top5": 0.9, "loss": 1.0})
    monkeypatch.setattr("pipeline.train.evaluation.broadcast_from_main", lambda value: value)
    assert evaluation.make_up(4, None, lambda: False)  # type: ignore[arg-type]
    # Of the last step no later attempt would make up for them: the model would be registered without them.
    with pytest.raises(TrainingError, match=r"scores of its last step 6 could not be written .*: make room in"):
        evaluation.make_up(6, None, lambda: False, is_last=True)  # type: ignore[arg-type]
    recorder.close()
    assert "the scores of step 4 could not be written" in capfd.readouterr().out
    assert awaiting(run_dir) == list(STEPS)


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
    content = json.loads((run_dir / CONFIG_NAME).read_text())
    content["evaluation"]["in_allocation"] = True
    (run_dir / CONFIG_NAME).write_text(json.dumps(content))
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
