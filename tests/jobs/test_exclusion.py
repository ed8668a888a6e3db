"""Which nodes Slurm is told to leave out of the next start."""

import json

from jobs import attempt_log, lost_ranks
from jobs.exclusion import FILE_NAME, apply_exclusion
from jobs.requeue import Decision


def test_each_job_of_a_chain_keeps_the_nodes_of_which_slurm_was_told(fake_command, tmp_path):
    (tmp_path / FILE_NAME).write_text(json.dumps({"nodes": {"n1": "slow"}, "told": {}}))
    fake_command("scontrol", "JobId=7 ExcNodeList=(null)")
    for job_id in ("7", "8"):
        apply_exclusion(tmp_path, job_id)
    assert json.loads((tmp_path / FILE_NAME).read_text())["told"] == {"7": ["n1"], "8": ["n1"]}


def test_an_element_of_an_array_that_lost_a_rank_leaves_its_own_nodes_out(fake_command, tmp_path, monkeypatch):
    """All elements share the folder of the job; what one of them has recorded is in its own."""
    home, folder = tmp_path / "run1", tmp_path / "array"
    home.mkdir()
    folder.mkdir()
    (home / FILE_NAME).write_text(json.dumps({"nodes": {"n1": "slow"}, "told": {}}))
    fake_command("scontrol", "JobId=7 JobState=RUNNING Restarts=0 ExcNodeList=(null)")
    monkeypatch.setattr("jobs.lost_ranks.requeue_on_slurm", lambda job_id, restarts: Decision.REQUEUE)
    element = {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1", "SLURM_NTASKS": "2"}
    for name, value in element.items():
        monkeypatch.setenv(name, value)
    attempt_log.append(folder, "start", job_id="7_1", restarts=0, home=str(home))
    assert lost_ranks.main([str(folder), "137", "5"]) == 137
    assert json.loads((home / FILE_NAME).read_text())["told"] == {"7_1": ["n1"]}
