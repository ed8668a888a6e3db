"""What the jobs of a chain do at their ends, with faked Slurm commands."""

import json
from pathlib import Path

import pytest

from jobs import Outcome, Resources, attempt_log, chain, lost_ranks
from jobs.chain_submission import ChainSubmission
from jobs.errors import SlurmError
from jobs.job import Job
from jobs.snapshot import Code
from jobs.submit import attach, unfinished_job
from tests.jobs.support import HEAD, PLACE, REPOSITORY, write_rank_error
from tests.jobs.tasks import Count


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a chain of jobs 6, 7 and 8."""
    fields = {"cluster": "slurm", "job_id": "6", "chain": ["6", "7", "8"], "world_size": 2, "folder": str(tmp_path)}
    (tmp_path / "submission.json").write_text(json.dumps(fields))
    return tmp_path


def test_a_job_knows_those_before_and_after_it(folder):
    assert chain.before(folder, "7") == ["6"]
    assert chain.after(folder, "7") == ["8"]
    # A job of an earlier chain of the folder.
    assert chain.before(folder, "5") == chain.after(folder, "5") == []


@pytest.mark.parametrize(("traceback", "outcomes"), [("", ["lost"]), (HEAD + "KeyError: 1", [])])
def test_lost_ranks_leave_the_work_to_the_next_job_and_an_error_ends_the_chain(
    folder, monkeypatch, fake_command, traceback, outcomes
):
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}.items():
        monkeypatch.setenv(name, value)
    fake_command("scontrol", error="a job of a chain is not requeued", status=1)
    attempt_log.append(folder, "start", job_id="7", restarts=0)
    if traceback:
        write_rank_error(folder, 1, traceback)
    cancelled: list[str] = []
    monkeypatch.setattr("jobs.chain.ask", lambda *command: cancelled.extend(command))
    assert lost_ranks.main([str(folder), "137", "5"]) == 137
    assert [event.outcome for event in attempt_log.read(folder, "7") if event.event == "end"] == outcomes
    assert cancelled == ([] if outcomes else ["scancel", "8"])


def test_a_chain_is_left_also_where_slurm_refuses_the_scancel(folder, fake_command, capfd):
    fake_command("scancel", error="scancel: error: Unable to contact slurm controller", status=1)
    task = Count(folder=folder)
    job = Job(task, folder, Resources(chain=3), Code(root=REPOSITORY))
    assert job._leave_chain(task, PLACE, "6") is Outcome.INTERRUPTED
    assert [event.outcome for event in attempt_log.read(folder, "7")] == ["cancelled"]
    printed = "".join(capfd.readouterr())
    assert printed.count("cannot cancel what is left of the chain (scancel: ") == 2


def test_attempts_without_progress_are_counted_over_the_chain(folder):
    for job_id in ("6", "7"):
        attempt_log.append(folder, "start", job_id=job_id, restarts=0, progress="step 4")
    assert attempt_log.count_stalls(folder, ["6", "7"], "step 4") == 2
    assert attempt_log.count_stalls(folder, ["6", "7"], "step 5") == 0


def test_a_cancel_of_the_job_before_means_the_chain_and_a_preemption_does_not(folder, fake_command):
    fake_command("scontrol", "JobState=PREEMPTED Reason=None Restarts=0")
    assert chain.was_cancelled(folder, "7") == ""
    fake_command("scontrol", "JobState=CANCELLED Reason=None Restarts=0")
    assert chain.was_cancelled(folder, "7") == "6"
    assert chain.was_cancelled(folder, "6") == ""
    fake_command("scontrol", error="slurm_load_jobs error: Unable to contact slurm controller", status=1)
    attempt_log.append(folder, "end", job_id="6", restarts=0, outcome="cancelled")
    assert chain.was_cancelled(folder, "7") == "6"


@pytest.mark.parametrize(
    ("states", "outcome", "followed"),
    [
        ({"6": "PREEMPTED", "7": "PENDING"}, "requeued", "7"),
        ({"6": "FAILED", "7": "FAILED", "8": "RUNNING"}, "lost", "8"),
        ({"6": "COMPLETED", "7": "CANCELLED"}, "finished", "6"),
        ({"6": "FAILED", "7": "PENDING"}, "failed", "6"),
        ({"6": "RUNNING", "7": "PENDING"}, "", "6"),
        ({"6": "COMPLETED", "7": "forgotten", "8": "PENDING"}, "requeued", "8"),
    ],
)
def test_a_chain_stands_with_the_job_that_has_the_work(folder, monkeypatch, states, outcome, followed):
    for job_id, state in states.items():
        attempt_log.append(folder, "start", job_id=job_id, restarts=0) if state in ("FAILED", "RUNNING") else None
        if outcome and state not in ("PENDING", "RUNNING", "CANCELLED", "forgotten"):
            attempt_log.append(folder, "end", job_id=job_id, restarts=0, outcome=outcome)

    def answer(*command: str) -> str:
        if states.get(command[-1]) == "forgotten":
            raise SlurmError("scontrol: slurm_load_jobs error: Invalid job id specified")
        return f"JobState={states.get(command[-1], 'PENDING')} Reason=None Restarts=0"

    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("jobs.slurm.ask", answer)
    submission = attach(folder)
    assert isinstance(submission, ChainSubmission)
    update = submission.update()
    assert submission.job_id == followed
    assert update.state == states[followed]
    assert update.part == f"job {int(followed) - 5} of 3"


def test_an_interrupted_job_whose_next_one_was_cancelled_ends_a_cancelled_chain(folder, monkeypatch):
    attempt_log.append(folder, "end", job_id="6", restarts=0, outcome="requeued")
    cancelled: list[str] = []
    states = {"6": "COMPLETED", "7": "CANCELLED"}
    monkeypatch.setattr("jobs.slurm.ask", lambda *command: f"JobState={states.get(command[-1], 'PENDING')}")
    monkeypatch.setattr("jobs.chain.ask", lambda *command: cancelled.extend(command))
    submission = attach(folder)
    assert submission is not None
    assert submission.poll()[1] is Outcome.CANCELLED
    assert cancelled == ["scancel", "8"]


def fake_scontrol(monkeypatch, answers: dict[str, str]) -> None:
    """Let Slurm know these jobs only, without accounting."""

    def answer(*command: str) -> str:
        if command[-1] not in answers:
            raise SlurmError("scontrol: slurm_load_jobs error: Invalid job id specified")
        return f"JobId={command[-1]} JobName=x y {answers[command[-1]]}"

    monkeypatch.setattr("jobs.slurm.ask", answer)
    monkeypatch.setenv("PATH", "/nowhere")


def test_a_second_launch_follows_a_chain_whose_first_job_slurm_has_forgotten(folder, monkeypatch):
    attempt_log.append(folder, "end", job_id="6", restarts=0, outcome="requeued")
    attempt_log.append(folder, "start", job_id="7", restarts=0)
    fake_scontrol(monkeypatch, {"7": "JobState=RUNNING", "8": "JobState=PENDING"})
    submission = unfinished_job(folder)
    assert submission is not None
    assert submission.job_id == "7"
    assert submission.job_ids == ["6", "7", "8"]


def test_only_jobs_of_the_folder_that_are_in_the_queue_are_cancelled_at_the_end(folder, monkeypatch):
    cancelled: list[str] = []
    monkeypatch.setattr("jobs.chain.ask", lambda *command: cancelled.extend(command))
    submission = ChainSubmission(folder, ["6", "7", "8", "9", "10"], 2)
    answers = {
        "7": "JobState=COMPLETED StdOut=/elsewhere/7_0_log.out",
        "8": f"JobState=PENDING StdIn=/dev/null StdOut={folder}/8_0_log.out Power=",
        "9": f"JobState=PENDING StdErr=/dev/null StdOut={folder}2/9_0_log.out",
    }
    fake_scontrol(monkeypatch, answers)
    submission.end_rest()
    assert cancelled == ["scancel", "8"]
