"""Evaluation jobs beside a training on a real Slurm, from the launch to the registered model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.run.files import read_evaluations
from tests.slurm.cluster import Cluster
from tests.slurm.runs import STEPS, Run, preempt, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]

EVERY = 8
FLAGS = ("--evaluate", "job", "--train.eval-every-steps", str(EVERY))


def scores(run: Run) -> dict[int, float]:
    return {record["step"]: record["eval_top1"] for record in run.records() if "eval_top1" in record}


def submission(run: Run) -> dict[str, str]:
    return json.loads((run.path / "evaluations" / "submitit" / "submission.json").read_text())


def starts_of(run: Run) -> int:
    """How often evaluation jobs have started."""
    logs = (run.path / "evaluations" / "submitit").glob("*_attempts.jsonl")
    return sum('"start"' in line for log in logs for line in log.read_text().splitlines())


def hosts_of(logs: Path) -> dict[str, str]:
    """The hosts and GPUs of the newest attempt whose logs are in a folder."""
    report = max(logs.glob("[0-9]*_report_*.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(report.read_text())["hosts"]


def test_training_and_evaluation_jobs_that_are_preempted_end_registered(slurm: Cluster, tmp_path: Path):
    inline = Run(tmp_path, "inline", "--train.eval-every-steps", str(EVERY)).launch()
    output = inline.finish()
    assert inline.status == 0, output
    run = Run(tmp_path, "beside", *FLAGS).launch()
    # While the first evaluation job runs.
    wait_until(lambda: starts_of(run) == 1)
    preempt(slurm)
    output = run.finish()
    assert run.status == 0, output
    run.assert_registered()
    assert len(run.events("start")) == 2
    assert starts_of(run) >= 2
    assert scores(run) == scores(inline)
    assert run.weights() == inline.weights()
    assert submission(run)["job_id"] != run.job_id
    assert sorted(run.mlflow()["shipped_evaluations"]) == list(range(EVERY, STEPS + 1, EVERY))


def test_gpus_of_the_allocation_evaluate_also_after_preemptions(signalling_slurm: Cluster, tmp_path: Path):
    inline = Run(tmp_path, "inline", "--train.eval-every-steps", str(EVERY)).launch()
    output = inline.finish()
    assert inline.status == 0, output
    # A preflight on a busy machine might leave a node out, and the test names the nodes.
    flags = ("--evaluate", "allocation", "--gpus-per-node", "2", "--train.preflight", "off")
    run = Run(tmp_path, "beside", *flags, "--train.eval-every-steps", str(EVERY)).launch()
    # While the first evaluation runs.
    wait_until(lambda: starts_of(run) == 1)
    preempt(signalling_slurm)
    # The training has ended, and its job still evaluates.
    wait_until(lambda: any(event["outcome"] == "finished" for event in run.events("end")))
    preempt(signalling_slurm)
    output = run.finish()
    assert run.status == 0, output
    assert "1 of the job's GPUs will not be used" in output
    run.assert_registered()
    assert len(run.events("start")) == 3
    assert scores(run) == scores(inline)
    assert run.weights() == inline.weights()
    assert sorted(run.mlflow()["shipped_evaluations"]) == list(range(EVERY, STEPS + 1, EVERY))
    # No rank of the training has computed on the second GPU, and no evaluation on another one or in another job.
    assert hosts_of(run.path / "submitit") == {"n1": "ranks 0 on GPUs 0", "n2": "ranks 1 on GPUs 0"}
    assert list(hosts_of(run.path / "evaluations" / "submitit").values()) == ["ranks 0 on GPUs 1"]
    assert submission(run)["cluster"] == "local"


def test_an_evaluation_job_that_starts_after_the_training_registers_the_model(slurm: Cluster, tmp_path: Path):
    # The other two nodes are busy, and the training has its own for itself.
    slurm.run("sbatch", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 900")
    run = Run(tmp_path, "late", *FLAGS, "--slurm", "exclusive=true", "--no-wait").launch()
    output = run.finish()
    assert run.status == 0, output
    wait_until((run.path / "evaluations" / "submitit" / "submission.json").exists)
    job_id = submission(run)["job_id"]
    slurm.run("scontrol", "update", f"JobId={job_id}", "StartTime=now+1hour")
    wait_until(lambda: any(event["outcome"] == "finished" for event in run.events("end")))
    wait_until(lambda: "COMPLETED" in slurm.run("scontrol", "show", "job", run.job_id))
    assert not (run.path / "registered.json").exists()
    assert not read_evaluations(run.path)
    shown = subprocess.run(
        [sys.executable, "-m", "pipeline.status", str(run.path)], capture_output=True, text=True, check=True
    )
    assert f"step 8, 16, 24 awaits evaluation: job {job_id} PENDING" in shown.stdout
    assert submission(run)["job_id"] == job_id
    slurm.run("scontrol", "update", f"JobId={job_id}", "StartTime=now")
    wait_until((run.path / "registered.json").exists)
    assert sorted(scores(run)) == [8, 16, 24]
    run.assert_registered()
