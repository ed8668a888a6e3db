"""What the jobs of a chain do at their ends, with faked Slurm commands."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import JobError, Outcome, Resources, attempt_log, chain, logs_folder, lost_ranks
from jobs.chain import Chain, chain_of
from jobs.chain_submission import ChainSubmission
from jobs.errors import SlurmError
from jobs.job import Job
from jobs.slurm_submission import SlurmSubmission
from jobs.snapshot import Code
from jobs.stop_flag import StopFlag
from jobs.submit import attach, unfinished_job
from tests.jobs.support import GLOO, HEAD, PLACE, REPOSITORY, write_rank_error
from tests.jobs.tasks import Count


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a chain of jobs 6, 7 and 8."""
    fields = {"cluster": "slurm", "job_id": "6", "chain": ["6", "7", "8"], "world_size": 2, "folder": str(tmp_path)}
    (tmp_path / "submission.json").write_text(json.dumps(fields))
    return tmp_path


def fake_scontrol(monkeypatch, answers: dict[str, str]) -> None:
    """Let Slurm know these jobs only, without accounting."""

    def answer(*command: str) -> str:
        if command[-1] not in answers:
            raise SlurmError("scontrol: slurm_load_jobs error: Invalid job id specified")
        return f"JobId={command[-1]} JobName=x y {answers[command[-1]]}"

    monkeypatch.setattr("jobs.slurm.ask", answer)
    monkeypatch.setenv("PATH", "/nowhere")


def test_a_job_knows_those_before_and_after_it(folder, capfd):
    assert chain_of(folder, "7") == Chain(before=("6",), after=("8",))
    assert chain_of(folder, "8").is_used_up
    # A job of an earlier chain of the folder.
    assert not chain_of(folder, "5").is_used_up
    (folder / "submission.json").write_text("{")
    assert not chain_of(folder, "8").is_used_up
    assert f"{folder}/submission.json cannot be read (it is damaged); what follows" in "".join(capfd.readouterr())


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"cluster": "slurm"}', b"\xff"])
def test_a_folder_whose_submission_cannot_be_read_gets_no_second_job(folder, damage):
    (folder / "submission.json").write_bytes(damage)
    with pytest.raises(
        JobError, match=r"if no job of this run is in a queue \(squeue --me\), remove that file and launch again"
    ):
        unfinished_job(folder)
    assert logs_folder(folder) == folder


def ends_of(folder: Path, job_id: str) -> list[tuple[str, str]]:
    """How the attempts of a job ended, by the attempt log, and why."""
    return [(event.outcome, event.reason) for event in attempt_log.read(folder, job_id) if event.event == "end"]


@pytest.mark.parametrize(
    ("job_id", "is_damaged", "outcome", "told"),
    [
        ("7", False, "requeued", "INTERRUPTED"),
        ("8", False, "stopped", "STOPPED"),
        # Another job may follow, and goes on.
        ("8", True, "requeued", "INTERRUPTED"),
    ],
)
def test_an_interrupted_job_leaves_the_work_to_the_next_one(
    folder, monkeypatch, fake_command, job_id, is_damaged, outcome, told
):
    # Preempted without a grace time, this job looks as if it was cancelled.
    fake_scontrol(monkeypatch, {"6": "JobState=PREEMPTED", "7": "JobState=COMPLETING", "8": "JobState=COMPLETING"})
    if is_damaged:
        (folder / "submission.json").write_text("")
    task = Count(folder=folder)
    job = Job(task, folder, Resources(chain=3), Code(root=REPOSITORY))
    job._follow_interruption(task, StopFlag(), replace(PLACE, job_id=job_id), "slurm")
    assert [end[0] for end in ends_of(folder, job_id)] == [outcome]
    assert (folder / "ended").read_text() == f"{told}\n"


def test_a_cancel_that_an_interrupted_job_sees_ends_the_chain(folder, monkeypatch):
    """The last job was cancelled while it waited, and Slurm has forgotten it."""
    cancelled: list[str] = []
    fake_scontrol(monkeypatch, {"6": "JobState=RUNNING", "7": "JobState=PENDING"})
    monkeypatch.setattr("jobs.chain.ask", lambda *command: cancelled.extend(command))
    task = Count(folder=folder)
    job = Job(task, folder, Resources(chain=3), Code(root=REPOSITORY))
    job._follow_interruption(task, StopFlag(), replace(PLACE, job_id="6"), "slurm")
    assert ends_of(folder, "6") == [("cancelled", "job 8 of the chain was cancelled")]
    assert cancelled == ["scancel", "7", "8"]


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
    assert lost_ranks.main([str(folder), "137", "5", "chain"]) == 137
    assert [event.outcome for event in attempt_log.read(folder, "7") if event.event == "end"] == outcomes
    assert cancelled == ([] if outcomes else ["scancel", "8"])


def test_a_chain_is_left_also_where_slurm_refuses_the_scancel(folder, fake_command, capfd):
    fake_command("scancel", error="scancel: error: Unable to contact slurm controller", status=1)
    task = Count(folder=folder)
    job = Job(task, folder, Resources(chain=3), Code(root=REPOSITORY))
    assert job._leave_chain(task, PLACE, "cancelled", "job 6 was cancelled") is Outcome.INTERRUPTED
    assert [event.outcome for event in attempt_log.read(folder, "7")] == ["cancelled"]
    printed = "".join(capfd.readouterr())
    assert printed.count("cannot cancel what is left of the chain (scancel: ") == 2


def test_attempts_without_progress_are_counted_over_the_chain(folder):
    for job_id in ("6", "7"):
        attempt_log.append(folder, "start", job_id=job_id, restarts=0, progress="step 4")
    assert attempt_log.count_stalls(folder, ["6", "7"], "step 4") == 2
    assert attempt_log.count_stalls(folder, ["6", "7"], "step 5") == 0


@pytest.mark.parametrize("by", ["6", "7"])
def test_a_cancel_of_one_job_ends_the_chain_though_others_could_not_look(folder, monkeypatch, by):
    states: dict[str, str] = {"6": "JobState=PREEMPTED", "7": "JobState=PREEMPTED"}
    fake_scontrol(monkeypatch, states)
    assert chain.why_over(folder, chain_of(folder, "8"), 2) is None
    # Slurm did not answer the second job, which has gone on.
    attempt_log.append(folder, "end", job_id="7", restarts=0, outcome="requeued")
    fake_scontrol(monkeypatch, states | {by: "JobState=CANCELLED"})
    over = ("cancelled", f"job {by} of the chain was cancelled")
    assert chain.why_over(folder, chain_of(folder, "8"), 2) == over
    # Slurm forgets it.
    fake_scontrol(monkeypatch, {})
    assert chain.why_over(folder, chain_of(folder, "8"), 2) == over


def test_a_chain_goes_on_without_an_answer_of_slurm(folder, monkeypatch, fake_command, capfd):
    monkeypatch.setattr("jobs.chain.PAUSE_S", 0)
    fake_command("scontrol", error="slurm_load_jobs error: Unable to contact slurm controller", status=1)
    assert chain.why_over(folder, chain_of(folder, "8"), 2) is None
    assert capfd.readouterr().out.count("does not say whether a job of this chain was cancelled") == 1


def test_a_job_of_a_long_chain_does_not_ask_a_slow_slurm_until_its_ranks_give_up(folder, monkeypatch, capfd):
    asked: list[str] = []

    def answer(*command: str) -> str:
        asked.append(command[-1])
        time.sleep(0.02)
        return "JobState=PENDING"

    monkeypatch.setattr("jobs.slurm.ask", answer)
    monkeypatch.setattr("jobs.chain.LOOK_S", 0.05)
    before, after = [tuple(map(str, range(first, first + 50))) for first in (100, 200)]
    assert chain.why_over(folder, Chain(before=before, after=after), 2) is None
    assert asked[0] == "149"
    assert len(asked) < 10
    assert f"to answer for {len(asked)} of 100 jobs" in capfd.readouterr().out


def test_an_error_ends_the_chain_also_where_no_batch_script_could_see_it(folder, monkeypatch):
    """Outside a container there may be no Python."""
    fake_scontrol(monkeypatch, {"6": "JobState=PREEMPTED", "7": "JobState=FAILED", "8": "JobState=RUNNING"})
    attempt_log.append(folder, "end", job_id="7", restarts=0, outcome="peer lost")
    write_rank_error(folder, 0, GLOO)
    assert chain.why_over(folder, chain_of(folder, "8"), 2) is None
    write_rank_error(folder, 1, HEAD + "KeyError: 1")
    reason = "in job 7 of the chain rank 1 failed: KeyError: 1"
    assert chain.why_over(folder, chain_of(folder, "8"), 2) == ("failed", reason)
    task = Count(folder=folder)
    job = Job(task, folder, Resources(chain=3), Code(root=REPOSITORY))
    with pytest.raises(JobError, match=reason):
        job._lead(StopFlag(), replace(PLACE, job_id="8"), "slurm")
    assert ends_of(folder, "8") == [("failed", reason)]
    assert (folder / "ended").read_text() == "FAILED\n"


def test_a_finished_run_is_not_cancelled_with_the_jobs_that_it_has_left(folder, monkeypatch):
    attempt_log.append(folder, "end", job_id="6", restarts=0, outcome="finished")
    fake_scontrol(monkeypatch, {"6": "JobState=COMPLETED", "7": "JobState=CANCELLED", "8": "JobState=RUNNING"})
    assert chain.why_over(folder, chain_of(folder, "8"), 2) is None


@pytest.mark.parametrize(
    ("states", "outcome", "followed"),
    [
        ({"6": "PREEMPTED", "7": "PENDING"}, "requeued", "7"),
        ({"6": "FAILED", "7": "FAILED", "8": "RUNNING"}, "lost", "8"),
        ({"6": "COMPLETED", "7": "CANCELLED"}, "finished", "6"),
        ({"6": "FAILED", "7": "PENDING"}, "failed", "6"),
        ({"6": "RUNNING", "7": "PENDING"}, "", "6"),
        ({"6": "COMPLETED", "7": "forgotten", "8": "PENDING"}, "requeued", "8"),
        ({"6": "COMPLETED", "7": "forgotten", "8": "forgotten"}, "stopped", "6"),
        # The first job was interrupted before the second one was submitted.
        ({"6": "COMPLETED", "7": "PENDING"}, "stopped", "7"),
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
    assert ("launch again to go on" in str(update)) == (outcome == "stopped" and followed == "6")


@pytest.mark.parametrize("reason", ["JobHeldUser", "JobHeldAdmin", "launch_failed_requeued_held"])
def test_a_chain_that_is_held_is_followed_and_gets_no_other_chain_beside_it(folder, monkeypatch, reason):
    attempt_log.append(folder, "end", job_id="6", restarts=0, outcome="requeued")
    held = f"JobState=PENDING Reason={reason} "
    fake_scontrol(monkeypatch, {"6": "JobState=COMPLETED", "7": held, "8": "JobState=PENDING"})
    monkeypatch.setattr("jobs.chain.ask", lambda *command: pytest.fail("the chain is cancelled"))
    submission = unfinished_job(folder)
    assert submission is not None
    update, outcome = submission.poll()
    assert (submission.job_id, outcome) == ("7", None)
    assert str(update) == f"PENDING ({reason}) as job 2 of 3"


@pytest.mark.parametrize(
    ("reason", "outcome", "told"),
    [
        ("JobHeldUser", None, ""),
        (
            "launch_failed_requeued_held",
            Outcome.FAILED,
            "Slurm holds job 6 (launch_failed_requeued_held): scontrol release 6 lets it go on, and scancel 6 ends it",
        ),
    ],
)
def test_a_job_that_is_held_gets_no_other_one_beside_it(tmp_path, monkeypatch, reason, outcome, told):
    fields = {"cluster": "slurm", "job_id": "6", "world_size": 2, "folder": str(tmp_path)}
    (tmp_path / "submission.json").write_text(json.dumps(fields))
    fake_scontrol(monkeypatch, {"6": f"JobState=PENDING Reason={reason}"})
    submission = unfinished_job(tmp_path)
    assert submission is not None
    assert submission.poll()[1] is outcome
    assert submission.failure() == told


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


def test_a_second_launch_follows_a_chain_whose_first_job_slurm_has_forgotten(folder, monkeypatch):
    attempt_log.append(folder, "end", job_id="6", restarts=0, outcome="requeued")
    attempt_log.append(folder, "start", job_id="7", restarts=0)
    fake_scontrol(monkeypatch, {"7": "JobState=RUNNING", "8": "JobState=PENDING"})
    submission = unfinished_job(folder)
    assert submission is not None
    assert submission.job_id == "7"
    assert submission.job_ids == ["6", "7", "8"]


@pytest.mark.parametrize(
    ("outcome", "single", "chained"),
    [
        ("stopped", Outcome.INTERRUPTED, Outcome.INTERRUPTED),
        # One job was requeued, and only a cancel ends a pending job; no job of a chain is.
        ("lost", Outcome.CANCELLED, Outcome.FAILED),
        ("peer lost", Outcome.FAILED, Outcome.FAILED),
    ],
)
def test_a_job_that_slurm_has_forgotten_ended_as_its_attempt_log_says(folder, monkeypatch, outcome, single, chained):
    attempt_log.append(folder, "end", job_id="8", restarts=0, outcome=outcome)
    fake_scontrol(monkeypatch, {})
    assert SlurmSubmission(folder, "8", 2).poll()[1] is single
    assert ChainSubmission(folder, ["8"], 2).poll()[1] is chained


def test_a_foreign_job_with_an_old_id_is_not_followed(folder, monkeypatch):
    fake_scontrol(monkeypatch, {"6": "JobState=RUNNING StdOut=/elsewhere/6_0_log.out"})
    for chained in (["6"], []):
        fields = {"cluster": "slurm", "job_id": "6", "chain": chained, "world_size": 2, "folder": str(folder)}
        (folder / "submission.json").write_text(json.dumps(fields))
        assert unfinished_job(folder) is None
        submission = attach(folder)
        assert submission is not None
        assert submission.update().state == "UNKNOWN"


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
