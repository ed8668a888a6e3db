"""Which cluster is chosen, and how a job's state is read, with faked Slurm commands."""

import pytest

import jobs
from jobs.slurm import slurm_job
from jobs.slurm_submission import SlurmSubmission


def test_auto_chooses_slurm_where_sinfo_answers(fake_command):
    fake_command("sinfo", "low\nhigh")
    cluster, reason = jobs.choose_cluster("auto")
    assert cluster == "slurm"
    assert "high, low" in reason


def test_auto_chooses_local_without_slurm_and_gives_the_reason(fake_command):
    assert jobs.choose_cluster("auto") == (
        "local",
        "processes on this machine, because sinfo is not installed on this machine",
    )


def test_a_slurm_command_that_hangs_is_given_up_after_the_time_limit(fake_command, monkeypatch):
    monkeypatch.setattr("jobs.slurm.ANSWER_S", 0.3)
    fake_command("sinfo", "low", sleep_s=20)
    cluster, reason = jobs.choose_cluster("auto")
    assert cluster == "local"
    assert "did not answer" in reason
    with pytest.raises(jobs.JobError, match="use --cluster local"):
        jobs.choose_cluster("slurm")


def test_a_login_node_whose_controller_is_down_is_not_taken_for_a_machine_without_slurm(fake_command):
    fake_command("sinfo", error="slurm_load_partitions: Unable to contact slurm controller (connect failure)", status=1)
    assert jobs.choose_cluster("auto")[0] == "local"
    with pytest.raises(jobs.JobError, match=r"Unable to contact.*use --cluster local to run on this machine"):
        jobs.choose_cluster("auto", falls_back=False)
    fake_command("sinfo", error="sinfo: fatal: Could not establish a configuration source", status=1)
    assert jobs.choose_cluster("auto", falls_back=False)[0] == "local"


def test_error_for_an_unknown_cluster_lists_the_known_ones(fake_command):
    with pytest.raises(jobs.JobError, match="there are: auto, slurm, local, debug"):
        jobs.choose_cluster("slrum")


def test_job_state_is_read_from_the_controller_and_else_from_the_accounting(fake_command):
    fake_command("scontrol", "JobId=7 JobState=PENDING Reason=Priority Restarts=3 NodeList=(null) Comment=JobState=X")
    job = slurm_job("7")
    assert job is not None
    assert (job.state, job.reason, job.restarts, job.nodes) == ("PENDING", "Priority", 3, "")
    fake_command("scontrol", error="slurm_load_jobs error: Invalid job id specified", status=1)
    assert slurm_job("7") is None
    fake_command("sacct", "CANCELLED by 1000|n[1-2]|0:15")
    job = slurm_job("7")
    assert job is not None
    assert (job.state, job.nodes, job.exit_code) == ("CANCELLED", "n[1-2]", "signal SIGTERM")


def test_a_job_whose_ranks_left_no_error_is_described_by_what_slurm_knows(fake_command, tmp_path):
    fake_command("scontrol", "JobId=7 JobState=FAILED Reason=NonZeroExitCode Restarts=5 ExitCode=137:0")
    (tmp_path / "7_0_log.out").write_text("srun: error: n2: task 1: Out Of Memory\n")
    job = SlurmSubmission(tmp_path, "7", 2)
    assert job.failure().startswith(
        "job 7 ended as FAILED (NonZeroExitCode, signal SIGKILL, task 1: Out Of Memory)\n  end of"
    )
    fake_command("scontrol", "JobId=7 JobState=TIMEOUT Reason=TimeLimit Restarts=0 ExitCode=0:0")
    (tmp_path / "7_0_log.out").unlink()
    assert job.failure().startswith("job 7 ended as TIMEOUT (TimeLimit); it left no log")
    fake_command("scontrol", "JobId=7 JobState=FAILED Reason=NonZeroExitCode Restarts=0 ExitCode=2:0")
    assert job.failure().startswith("job 7 ended as FAILED (NonZeroExitCode, exit status 2);")
    fake_command("scontrol", error="slurm_load_jobs error: Unable to contact slurm controller", status=1)
    assert job.failure().startswith("job 7 failed, and Slurm does not say how (scontrol: slurm_load_jobs error")
