"""What the task of a training tells MLflow of the end of a job."""

from pathlib import Path

import pytest

from jobs import Outcome, Submission, Update
from pipeline.launch.command import follow
from pipeline.tracking.client import open_client
from pipeline.tracking.description import HINT_TAG
from pipeline.tracking.shipper import Shipper
from pipeline.train.job_task import TrainTask
from tests.pipeline.tracking.runs import leave_to_next_job, new_run
from tests.support.tracking_runs import new_store


def interrupted(folder: Path) -> tuple[Shipper, str]:
    """A run whose attempt has left it to the next job, as MLflow knows too."""
    uri = new_store(folder)
    run_dir, _ = new_run(folder, uri)
    return leave_to_next_job(run_dir), uri


@pytest.mark.parametrize(
    ("outcome", "status"),
    [pytest.param(Outcome.CANCELLED, "KILLED", marks=pytest.mark.thorough), (Outcome.FAILED, "FAILED")],
)
def test_a_job_that_ends_before_its_attempt_does_not_leave_the_run_waiting(
    tmp_path: Path, outcome: Outcome, status: str
):
    """The job of a chain that a user has cancelled, or that has failed; or attempts made no progress."""
    shipper, uri = interrupted(tmp_path)
    TrainTask(shipper.run_dir).ended(outcome)
    assert open_client(uri).get_run(str(shipper.state.run_id)).info.status == status


class Killed(Submission):
    """A job of Slurm's whose ranks were killed before one could record anything."""

    cluster = "slurm"

    def update(self) -> Update:
        return Update(state="OUT_OF_MEMORY")

    def is_over(self, update: Update) -> bool:
        return True

    def cancel(self) -> None: ...

    def detach(self) -> str:
        return ""

    def failure(self) -> str:
        return "job 7 ended as OUT_OF_MEMORY (signal SIGKILL, task 1: Out Of Memory)\n  end of its log"


def test_a_run_whose_ranks_were_killed_has_failed_for_the_reason_that_the_cluster_knows(tmp_path: Path):
    shipper, uri = interrupted(tmp_path)
    assert follow(Killed(tmp_path, "7", 2), shipper.run_dir, 10) == 1
    run = open_client(uri).get_run(str(shipper.state.run_id))
    assert run.info.status == "FAILED"
    assert run.data.tags[HINT_TAG] == (
        f"launch again with --run-dir {shipper.run_dir}: job 7 ended as OUT_OF_MEMORY (signal SIGKILL, task 1: "
        "Out Of Memory)"
    )


def test_a_run_whose_chain_is_used_up_says_so_in_mlflow_until_it_goes_on(tmp_path: Path):
    shipper, uri = interrupted(tmp_path)
    shipper.begin({})
    shipper.end("KILLED", "launch again")
    shipper.send_status()
    run = open_client(uri).get_run(str(shipper.state.run_id))
    assert (run.info.status, run.data.tags[HINT_TAG]) == ("KILLED", "launch again")
    shipper = Shipper(shipper.run_dir)
    shipper.begin({})
    shipper.ship(-1)
    run = open_client(uri).get_run(str(shipper.state.run_id))
    assert (run.info.status, HINT_TAG in run.data.tags) == ("RUNNING", False)
