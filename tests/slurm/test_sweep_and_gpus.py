"""Sweeps and GPUs with real trainings."""

import json
import stat
from pathlib import Path

import pytest

from jobs.slurm import ask
from pipeline.tracking.client import open_client
from tests.slurm.runs import Run, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]


SECRET = "hunter2"


def assert_private(folder: Path) -> None:
    """Assert that folders and pickles are private, and that no file contains the secret from the environment."""
    for path in (folder, *folder.iterdir(), *folder.rglob("*.pkl")):
        if path.is_dir() or path.suffix == ".pkl":
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    for path in folder.parent.rglob("*"):
        assert not (path.is_file() and SECRET.encode() in path.read_bytes()), path


@pytest.mark.slow
def test_sweep_is_one_job_array_with_one_mlflow_parent_run(slurm, tmp_path, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, SECRET)
    sweep = Run(tmp_path, "sweep", "--nodes", "1", "--train.steps", "4", "--sweep", "train.optimizer.lr=1e-3,2e-3")
    output = sweep.launch().finish()
    assert sweep.status == 0, output
    names = ["lr=0.001", "lr=0.002"]
    runs = [Run(sweep.path, name) for name in names]
    ids = [run.job_id for run in runs]
    assert [job_id.partition("_")[2] for job_id in ids] == ["0", "1"]
    assert len({job_id.partition("_")[0] for job_id in ids}) == 1
    assert [run.records()[0]["lr"] for run in runs] == [1e-3, 2e-3]
    for run, name in zip(runs, names, strict=True):
        assert [step for step, _ in run.losses()] == [1, 2, 3, 4]
        assert f"{name} is COMPLETED" in output
    client = open_client(f"sqlite:///{tmp_path}/runs/mlflow.db")
    (parent,) = {client.get_run(run.mlflow()["run_id"]).data.tags["mlflow.parentRunId"] for run in runs}
    assert client.get_run(parent).info.status == "FINISHED"
    assert_private(sweep.path)
    # A second launch finds nothing to train.
    again = sweep.launch().finish()
    assert "nothing is trained" in again
    assert [run.job_id for run in runs] == ids


@pytest.mark.slow
def test_each_rank_has_its_own_gpu(signalling_slurm, tmp_path):
    run = Run(tmp_path, "gpus", "--gpus-per-node", "2", "--tasks-per-node", "2", "--train.steps", "4").launch()
    wait_until(lambda: (run.path / "submitit" / "submission.json").exists())
    described = ask("scontrol", "show", "job", run.job_id)
    for setting in ("NumNodes=2", "NumTasks=4", "TresPerNode=gres:gpu:2"):
        assert setting in described
    script = (run.path / "submitit" / f"{run.job_id}_submission.sh").read_text()
    assert "#SBATCH --gpus-per-node=2\n" in script
    assert "#SBATCH --ntasks-per-node=2\n" in script
    output = run.finish()
    assert run.status == 0, output
    report = json.loads((run.path / "submitit" / f"{run.job_id}_report_0.json").read_text())
    assert report["hosts"] == {"n1": "ranks 0, 1 on GPUs 0, 1", "n2": "ranks 2, 3 on GPUs 0, 1"}
