"""Nodes that Slurm is told to leave out of the next start of a job, and taken back."""

import pytest

import jobs
from jobs.exclusion import apply_exclusion
from tests.jobs.support import REPOSITORY
from tests.jobs.tasks import Count

pytestmark = pytest.mark.slurm


@pytest.mark.slow
def test_element_of_an_array_that_lost_a_rank_leaves_its_node_out(slurm, tmp_path):
    home = tmp_path / "run"
    home.mkdir()
    [submission] = jobs.submit_array(
        [Count(folder=home, end=10, avoids=0.25, kill_at=(1, 1))],
        task_folders=[home / "jobs"],
        folder=tmp_path / "array",
        resources=jobs.Resources(nodes=2, partition="low", timeout_min=10),
        name="sweep",
        code=jobs.Code(root=REPOSITORY),
    )
    assert submission.wait(0.2) is jobs.Outcome.FINISHED
    first, second = zip(*((home / f"node{rank}").read_text().split() for rank in range(2)), strict=True)
    assert first[0] not in second, (first, second)


@pytest.mark.parametrize(("of_user", "both"), [("n4", "n2,n4"), ("(null)", "n2")])
def test_nodes_that_were_left_out_are_taken_back_and_those_of_the_user_stay(
    slurm, tmp_path, monkeypatch, of_user, both
):
    """Slurm is told in the moment when a job is pending, here one that the user holds."""
    exclude = ["--exclude=n4"] if of_user == "n4" else []
    command = ("--hold", "-p", "low", *exclude, "-o", "/dev/null", "--wrap", "true")
    job_id = slurm.run("sbatch", "--parsable", *command).strip()
    monkeypatch.setenv("JOB_REPORT", str(tmp_path / "report.json"))
    for name, value in {"SLURM_JOB_ID": job_id, "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_PARTITION": "low"}.items():
        monkeypatch.setenv(name, value)

    def left_out() -> str:
        apply_exclusion(tmp_path, job_id)
        shown = slurm.run("scontrol", "show", "job", "--oneliner", job_id)
        return shown.partition("ExcNodeList=")[2].split()[0]

    assert jobs.exclude_nodes({"n2": "slow", "n1": "slow too"}, 0.25) == ["n2"]
    assert left_out() == both
    assert jobs.exclude_nodes({}, 0.25) == []
    assert left_out() == both
    assert jobs.exclude_nodes({"n1": "slow"}, 0) == []
    assert left_out() == of_user
