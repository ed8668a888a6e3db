"""What a dry run shows, and what is refused before a job is queued."""

import os
import re
import sys

import pytest

import jobs
from jobs import attempt_log
from jobs.failure import rank_errors
from jobs.folder_lock import lock_folder
from jobs.slurm import check_folder, own_job
from tests.jobs.support import HEAD, write_rank_error
from tests.jobs.tasks import Count


def test_dry_run_shows_the_script_without_slurm(fake_command, tmp_path):
    resources = jobs.Resources(
        nodes=4,
        gpus_per_node=2,
        cpus_per_task=6,
        mem_gb=10.5,
        partition="low",
        account="lab",
        setup=("module load cuda",),
        slurm=("reservation=abc", "exclusive="),
    )
    script = jobs.dry_run(cluster="slurm", folder=tmp_path / "run", resources=resources, name="demo")
    lines = script.splitlines()
    for line in (
        "#SBATCH --nodes=4",
        "#SBATCH --ntasks-per-node=2",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --mem=10752M",
        "#SBATCH --partition=low",
        "#SBATCH --account=lab",
        "#SBATCH --reservation=abc",
        "#SBATCH --exclusive",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR2@120",
        "module load cuda",
    ):
        assert line in lines
    srun = next(line for line in lines if line.startswith("srun"))
    assert "--kill-on-bad-exit=1" in srun
    assert "--cpus-per-task=6" in srun
    # A site's own WaitTime must not end rank 0 while it registers.
    assert "--wait=0" in srun
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "#SBATCH --requeue"),
        ({"slurm": ("requeue=",)}, "#SBATCH --requeue"),
        ({"slurm": ("requeue=expedite",)}, "#SBATCH --requeue=expedite"),
        ({"chain": 3}, "#SBATCH --no-requeue"),
    ],
)
def test_requeue_is_asked_for_in_the_words_of_the_user(tmp_path, changes, line):
    script = jobs.dry_run(cluster="slurm", folder=tmp_path, resources=jobs.Resources(**changes), name="x")
    assert [each for each in script.splitlines() if each.partition("=")[0].endswith("requeue")] == [line]
    assert ("# the same script again as 2 more jobs" in script) == ("chain" in changes)


def test_container_mounts_the_run_and_the_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resources = jobs.Resources(container_image="registry#image:1")
    code = jobs.Code(root=tmp_path / "code")
    script = jobs.dry_run(cluster="slurm", folder=tmp_path / "run/jobs", resources=resources, name="x", code=code)
    srun = next(line for line in script.splitlines() if line.startswith("srun"))
    mounts = ",".join(f"{path}:{path}" for path in (tmp_path / "run", tmp_path / "code", tmp_path))
    assert f"'--container-image=registry#image:1' --container-mounts={mounts} sh -c " in srun
    assert " sh python3 -u -m jobs.rank " in srun


def test_sif_image_is_opened_by_apptainer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resources = jobs.Resources(container_image="/images/x.sif", container_mounts="/data:/data", gpus_per_node=2)
    script = jobs.dry_run(cluster="slurm", folder=tmp_path / "run/jobs", resources=resources, name="x")
    srun = next(line for line in script.splitlines() if line.startswith("srun"))
    assert "--container-image" not in srun
    command = '"$container" exec --nv --bind /data:/data /images/x.sif python3 -u -m jobs.rank'
    assert f" sh {command} {tmp_path}/run/jobs" in srun


def test_dry_run_on_the_local_cluster_describes_the_processes(tmp_path):
    text = jobs.dry_run(cluster="local", folder=tmp_path / "run", resources=jobs.Resources(nodes=4), name="demo")
    assert text.startswith("4 processes on this machine stand for 4 nodes of 1")


def test_a_job_is_not_queued_into_a_folder_in_which_a_local_job_runs(tmp_path):
    held = lock_folder(tmp_path)
    try:
        with pytest.raises(jobs.JobError, match=f"processes of a launch on this machine still run in {tmp_path}"):
            jobs.submit(Count(folder=tmp_path), cluster="slurm", folder=tmp_path, resources=jobs.Resources(), name="x")
    finally:
        os.close(held)


@pytest.mark.parametrize("name", ["run%j", "50%", "a b=c", "back\\slash"])
@pytest.mark.parametrize("call", ["submit", "submit_array", "dry_run"])
def test_a_folder_that_slurm_would_show_otherwise_is_refused(tmp_path, name, call):
    """Its jobs would be taken for those of another folder."""
    folder = tmp_path / name / "submitit"
    where = {"folder": folder, "resources": jobs.Resources(), "name": "x"}
    calls = {
        "submit": lambda: jobs.submit(Count(folder=tmp_path), cluster="slurm", **where),
        "submit_array": lambda: jobs.submit_array([Count(folder=tmp_path)], task_folders=[tmp_path / "a"], **where),
        "dry_run": lambda: jobs.dry_run(cluster="slurm", **where),
    }
    with pytest.raises(jobs.JobError, match=f"the logs are in {re.escape(str(folder))}, .*choose another one"):
        calls[call]()
    assert not folder.exists()


def test_a_folder_with_blanks_and_signs_is_found_again(tmp_path, monkeypatch):
    folder = tmp_path / "lr=1e-3 my run, (2)" / "submitit"
    check_folder(folder)
    text = f"JobId=7 JobName=x JobState=PENDING StdErr={folder}/7_0_log.out StdOut={folder}/7_0_log.out Power= "
    monkeypatch.setattr("jobs.slurm.ask", lambda *command: text)
    assert own_job(folder, "7") is not None
    assert own_job(folder.parent, "7") is not None
    assert own_job(tmp_path / "lr=1e-3", "7") is None


@pytest.mark.parametrize("chain", [None, 2])
def test_what_a_former_job_with_the_same_id_has_left_says_nothing_of_the_new_one(
    tmp_path, monkeypatch, fake_command, chain
):
    fake_command("sbatch", "Submitted batch job 7")
    # `jobs.submit` is the function.
    monkeypatch.setattr(sys.modules["jobs.submit"], "fit_resources", lambda resources, groups: resources)
    monkeypatch.setattr(sys.modules["jobs.submit"], "node_groups", list)
    attempt_log.append(tmp_path, "end", job_id="7", restarts=0, outcome="cancelled")
    attempt_log.append(tmp_path, "end", job_id="70", restarts=0, outcome="finished")
    write_rank_error(tmp_path, 0, HEAD + "KeyError: 1")
    submission = jobs.submit(
        Count(folder=tmp_path),
        cluster="slurm",
        folder=tmp_path,
        resources=jobs.Resources(nodes=2, chain=chain),
        name="x",
    )
    assert submission.job_id == "7"
    assert attempt_log.last_outcome(tmp_path, "7") == ""
    assert rank_errors(tmp_path, "7", 2) == []
    assert attempt_log.last_outcome(tmp_path, "70") == "finished"
