"""What Slurm adds to what a run's own files tell."""

from pathlib import Path

import pytest

from jobs.submission_file import Submitted, write_submission
from pipeline.run.status import read_status
from pipeline.status.jobs import Jobs
from pipeline.status.sync import settle_ended
from tests.support.tracking_runs import append_event


@pytest.mark.parametrize(("state", "shown"), [("OUT_OF_MEMORY", "failed"), ("CANCELLED", "cancelled")])
def test_a_run_whose_ranks_were_killed_is_shown_as_its_job(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, shown: str
):
    append_event(run_dir, "start", 1, 0, step=0, world_size=1)
    assert read_status(run_dir).state == "killed"
    logs = run_dir / "submitit"
    logs.mkdir()
    write_submission(logs, Submitted(cluster="slurm", job_id="7", world_size=1, folder=logs))
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho JobState={state} Restarts=5 ExitCode=137:0\n")
    (tmp_path / "scontrol").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    told: list[str] = []
    monkeypatch.setattr("pipeline.tracking.settle.settle_after_end", lambda *_, failure, **__: told.append(failure))
    jobs = Jobs()
    status = jobs.complete(read_status(run_dir))
    assert status.state == shown
    monkeypatch.setattr("pipeline.tracking.state.load_state", lambda _: type("Begun", (), {"status": "RUNNING"}))
    settle_ended(run_dir, jobs)
    cause = "job 7 ended as OUT_OF_MEMORY (signal SIGKILL)"
    assert [failure.startswith(cause) for failure in told] == [shown == "failed"]
