"""Real trainings on a real Slurm: an interrupted run ends with the same weights as an uninterrupted one."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from jobs.attempt_log import last_outcome
from pipeline.run.mirror_files import read_progress
from tests.slurm.cluster import Cluster
from tests.slurm.ranks import rank_process, ranks_on_host
from tests.slurm.runs import REPOSITORY, SAVE_EVERY, STEPS, Run, preempt, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's working directory; all runs share the digits' shards and MLflow's database in it."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def uninterrupted(plain_cluster: Cluster, folder: Path) -> Run:
    """The run with which all others are compared."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in plain_cluster.environment.items():
            patch.setenv(name, value)
        run = Run(folder, "uninterrupted").launch()
        output = run.finish()
    assert run.status == 0, output
    assert [step for step, _ in run.losses()] == list(range(1, STEPS + 1))
    return run


def test_preempted_run_goes_on_at_its_save_and_ends_registered(slurm_with_hosts_if_possible, folder):
    run = Run(folder, "preempted").launch()
    run.wait_for_step(3)
    preempt(slurm_with_hosts_if_possible)
    output = run.finish()
    assert run.status == 0, output
    first, second = run.events("start")
    assert (first["step"], second["step"]) == (0, run.events("save")[0]["step"])
    assert second["step"] >= 3
    assert [step for step, _ in run.losses()] == list(range(1, STEPS + 1))
    run.assert_registered()


@pytest.mark.slow
@pytest.mark.parametrize("node", ["n1", "n2"])
def test_run_with_a_host_that_is_cut_off_equals_an_uninterrupted_one(hosts, folder, uninterrupted, node):
    run = Run(folder, f"cut-off-{node}").launch()
    run.wait_for_step(SAVE_EVERY + 2)
    hosts.hosts.cut_off(node)
    output = run.finish()
    assert run.status == 0, output
    run.assert_equals(uninterrupted)
    assert [start["step"] for start in run.events("start")] == [0, SAVE_EVERY]
    assert not ranks_on_host(hosts, node)


@pytest.mark.slow
def test_preempted_run_with_a_killed_rank_equals_an_uninterrupted_one(slurm, folder, uninterrupted):
    run = Run(folder, "interrupted").launch()
    run.wait_for_step(3)
    preempt(slurm)
    run.wait_for_step(SAVE_EVERY + 2, attempt=2)
    rank_process(slurm, rank=1).kill()
    output = run.finish()
    assert run.status == 0, output
    run.assert_equals(uninterrupted)
    starts = run.events("start")
    saved = [row["step"] for row in run.events("save")]
    assert len(starts) == 3
    # The preemption loses no step; the killed rank loses at most one interval.
    assert starts[1]["step"] == saved[0] >= 3
    assert starts[2]["step"] >= SAVE_EVERY


@pytest.mark.slow
@pytest.mark.parametrize("event", ["cancelled", "preempted"])
def test_run_that_is_stopped_while_it_registers_its_model_ends_registered(slurm, folder, event):
    run = Run(folder, f"registering-{event}").launch()
    wait_until((run.path / "export" / "model.json").exists)
    if event == "cancelled":
        slurm.run("scancel", run.job_id)
    else:
        preempt(slurm)
    output = run.finish()
    assert run.status == 0, output
    run.assert_registered()
    assert [step for step, _ in run.losses()] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_preemption_without_grace_loses_at_most_one_interval(slurm, folder, uninterrupted):
    slurm.run("scontrol", "update", "PartitionName=low", "GraceTime=0")
    run = Run(folder, "no-grace").launch()
    run.wait_for_step(SAVE_EVERY + 2)
    preempt(slurm)
    output = run.finish()
    run.assert_equals(uninterrupted)
    assert "after 1 requeue" in output
    log = (run.path / "submitit" / f"{run.job_id}_0_log.out").read_text()
    assert "partition low gives 0 s at a preemption (GraceTime)" in log
    assert run.events("start")[1]["step"] >= SAVE_EVERY


@pytest.mark.slow
@pytest.mark.parametrize("at", ["step", "requeue", "pending"])
def test_cancelled_run_is_killed_in_mlflow_and_resumes_when_launched_again(slurm, folder, uninterrupted, at):
    run = Run(folder, f"cancelled-{at}").launch()
    run.wait_for_step(3)
    if at != "step":
        slurm.run("scancel", "--signal=USR1", run.job_id)
        # MLflow is being told that the run waits for its next attempt, or was told.
        wait_until(lambda: last_outcome(run.path / "submitit", run.job_id) == "requeued")
    if at == "pending":
        wait_until(lambda: "PENDING" in slurm.run("squeue", "-h", "-j", run.job_id, "-o", "%T"))
    slurm.run("scancel", run.job_id)
    output = run.finish()
    assert run.status != 0
    assert "cancelled" in output
    assert run.mlflow()["sent_status"] == "KILLED"
    run_id = run.mlflow()["run_id"]
    output = run.launch().finish()
    run.assert_equals(uninterrupted)
    assert run.mlflow()["run_id"] == run_id


@pytest.mark.slow
def test_job_goes_on_after_ctrl_c_and_the_same_command_follows_it(slurm, folder, uninterrupted):
    run = Run(folder, "detached").launch()
    run.wait_for_step(2)
    job_id = run.job_id
    assert run.process is not None
    run.process.send_signal(signal.SIGINT)
    output = run.finish()
    assert f"scancel {job_id} ends it" in output
    assert f"the same command with --run-dir {run.path}" in output
    assert run.status == 0
    output = run.launch().finish()
    assert f"job {job_id} of this run is still in the queue: following it" in output
    run.assert_equals(uninterrupted)
    assert run.job_id == job_id
    assert len(run.events("start")) == 1


@pytest.mark.slow
def test_edit_between_attempts_does_not_change_the_code_of_the_run(slurm, folder, uninterrupted, tmp_path):
    checkout = tmp_path / "checkout"
    for package in ("pipeline", "jobs", "sharding", "transxnet"):
        shutil.copytree(REPOSITORY / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    run = Run(folder, "edited", checkout=checkout).launch()
    run.wait_for_step(2)
    (checkout / "pipeline" / "train.py").write_text("raise RuntimeError('edited')\n")
    slurm.run("scontrol", "requeue", run.job_id)
    output = run.finish()
    assert len(run.events("start")) == 2, output
    run.assert_equals(uninterrupted)
    report = json.loads((run.path / "submitit" / f"{run.job_id}_report_1.json").read_text())
    assert "as submitted" in report["code"]


@pytest.mark.slow
def test_time_limit_saves_requeues_and_resumes(slurm, folder):
    longer = ("--train.steps", "360", "--train.save-every-steps", "60")  # longer than the time limit of a minute below
    whole = Run(folder, "whole", *longer).launch()
    output = whole.finish()
    assert whole.status == 0, output
    run = Run(folder, "time-limit", *longer, "--timeout-min", "1").launch()
    output = run.finish()
    assert run.status == 0, output
    run.assert_equals(whole)
    starts = [row["step"] for row in run.events("start")]
    assert len(starts) > 1
    # Each attempt resumes at the last step of the previous one.
    last = {row["attempt"]: row["step"] for row in run.records()}
    assert starts[1:] == [last[attempt] for attempt in range(1, len(starts))]


@pytest.mark.slow
def test_run_that_lost_a_node_resumes_with_one_node_fewer(slurm, folder, uninterrupted):
    run = Run(folder, "lost-node").launch()
    run.wait_for_step(SAVE_EVERY + 1)
    for node in ("n2", "n3", "n4"):
        slurm.kill_node(node)
    wait_until(lambda: "PENDING" in slurm.run("squeue", "-h", "-j", run.job_id, "-o", "%T"))
    slurm.run("scancel", run.job_id)
    run.finish()
    output = run.launch("--nodes", "1", "--train.micro-batch-size", "32").finish()
    assert run.status == 0, output
    assert [step for step, _ in run.losses()] == list(range(1, STEPS + 1))
    # The same 32 images share a BatchNorm, so that only the order of a sum differs; 6e-8 was measured.
    resumed = run.events("start")[1]["step"]
    assert run.losses()[:resumed] == uninterrupted.losses()[:resumed]
    for (step, loss), (_, expected) in zip(run.losses(), uninterrupted.losses(), strict=True):
        assert loss == pytest.approx(expected, rel=1e-5), step


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_run_with_ten_interruptions_equals_an_uninterrupted_one(slurm, folder, uninterrupted):
    run = Run(folder, "storm").launch("--train.preflight", "on", "--mirror", str(folder / "mirror"))
    for attempt in range(1, 11):
        wait_until(lambda attempt=attempt: len(run.events("start")) >= attempt)
        start = run.events("start")[attempt - 1]["step"]
        run.wait_for_step(start + 1, attempt)
        if attempt % 3 == 0:
            # Kill a rank only after a new checkpoint, so that the run makes progress.
            wait_until(lambda start=start: any(row["step"] > start for row in run.events("save")))
            rank_process(slurm, rank=attempt % 2).kill()
        elif attempt % 3 == 1:
            preempt(slurm)
        else:
            slurm.run("scontrol", "requeue", run.job_id)
    output = run.finish(1800)
    run.assert_equals(uninterrupted)
    assert len(run.events("start")) == 11, output
    mirror = read_progress(run.path)
    assert (mirror.step, mirror.is_complete) == (STEPS, True), output
