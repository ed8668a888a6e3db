"""What a real Slurm does to a job, with a small task whose ranks wait for each other at every step."""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

import jobs
from jobs import attempt_log
from jobs.submission import Submission
from tests.jobs.support import REPOSITORY, is_alive, starts, steps, wait_until
from tests.jobs.tasks import Count
from tests.slurm.config import NODES
from tests.slurm.support import assert_over, preempt

pytestmark = pytest.mark.slurm

CODE = jobs.Code(root=REPOSITORY)
NEVER = 10_000


def submit(folder: Path, *, nodes: int = 4, resources: dict | None = None, **changes) -> Submission:
    """Submit a task that counts until something stops it, and ends soon after a restart."""
    task = Count(folder=folder, **{"end": NEVER, "then": 5, "save_every": NEVER, **changes})
    wanted = jobs.Resources(**{"nodes": nodes, "timeout_min": 60, "partition": "low", **(resources or {})})
    return jobs.submit(task, cluster="slurm", folder=folder / "jobs", resources=wanted, name="count", code=CODE)


def wait_for_start(folder: Path, times: int = 1, nodes: int = 4) -> None:
    wait_until(lambda: all(len(starts(folder, rank)) >= times for rank in range(nodes)))
    # Let the task do some steps that it could lose.
    time.sleep(0.5)


def outcomes(folder: Path) -> list[str]:
    """The outcomes in the attempt log, oldest first."""
    (log,) = (folder / "jobs").glob("*_attempts.jsonl")
    events = attempt_log.read(folder / "jobs", log.name.partition("_")[0])
    return [event.outcome for event in events if event.event == "end"]


def assert_resumed(folder: Path, *, restarts: int = 1) -> list[list[int]]:
    """Assert that all ranks of each attempt started from the same step, and that each attempt used another port."""
    rows = starts(folder)
    assert [row[2] for row in rows] == list(range(restarts + 1))
    assert len({row[3] for row in rows}) == restarts + 1
    for rank in range(1, 4):
        assert [row[0] for row in starts(folder, rank)] == [row[0] for row in rows]
    return rows


def test_job_on_four_nodes_finishes_and_leaves_one_log_for_each_rank(slurm, tmp_path):
    submission = submit(tmp_path, end=3)
    updates: list[str] = []
    assert submission.wait(0.2, lambda update: updates.append(update.state)) is jobs.Outcome.FINISHED
    assert updates[-1] == "COMPLETED"
    assert submission.failure() == ""
    texts = [(tmp_path / "jobs" / f"{submission.job_id}_{rank}_log.out").read_text() for rank in range(4)]
    assert [f"rank {rank} starts at 0" in text for rank, text in enumerate(texts)] == [True] * 4


@pytest.mark.parametrize("kind", ["slurm", "signalling_slurm"])
def test_preemption_with_grace_loses_no_step(request, tmp_path, kind):
    cluster = request.getfixturevalue(kind)
    submission = submit(tmp_path)
    wait_for_start(tmp_path)
    preempt(cluster)
    assert submission.wait(0.2) is jobs.Outcome.FINISHED
    first = assert_resumed(tmp_path)[1][0]
    assert first > 0
    assert steps(tmp_path) == list(range(first + 5))
    assert outcomes(tmp_path) == ["requeued", "finished"]


@pytest.mark.slow
def test_preemption_without_grace_loses_at_most_one_interval(slurm, tmp_path):
    slurm.run("scontrol", "update", "PartitionName=low", "GraceTime=0")
    submission = submit(tmp_path, save_every=5)
    wait_for_start(tmp_path)
    preempt(slurm)
    assert submission.wait(0.2) is jobs.Outcome.FINISHED
    assert assert_resumed(tmp_path)[1][0] >= 5


def test_time_limit_saves_and_resumes(slurm, tmp_path):
    # One minute is the shortest limit of Slurm. Slurm checks limits every 30 s and may signal up to a minute early,
    # perhaps before the first step.
    submission = submit(tmp_path, resources={"timeout_min": 1, "signal_delay_s": 50})
    assert submission.wait(0.2) is jobs.Outcome.FINISHED
    assert len(starts(tmp_path)) > 1
    assert steps(tmp_path) == list(range(starts(tmp_path)[-1][0] + 5))
    assert "failed" not in outcomes(tmp_path)


@pytest.mark.parametrize("command", ["scontrol requeue", pytest.param("scancel --signal=TERM", marks=pytest.mark.slow)])
def test_requeue_or_signal_by_the_user_loses_no_step(slurm, tmp_path, command):
    submission = submit(tmp_path)
    wait_for_start(tmp_path)
    slurm.run(*command.split(), submission.job_id)
    assert submission.wait(0.2) is jobs.Outcome.FINISHED
    assert assert_resumed(tmp_path)[1][0] > 0


def test_a_node_that_is_left_out_is_not_taken_again_and_only_while_enough_are_left(slurm, tmp_path):
    for share, is_left_out in ((0.25, True), (0.2, False)):
        folder = tmp_path / str(share)
        folder.mkdir()
        submission = submit(folder, nodes=2, avoids=share)
        assert submission.wait(0.2) is jobs.Outcome.FINISHED
        first, second = zip(*((folder / f"node{rank}").read_text().split() for rank in range(2)), strict=True)
        assert (first[0] not in second) == is_left_out, (first, second)
        log = (folder / "jobs" / f"{submission.job_id}_0_log.out").read_text()
        assert (f"node {first[0]} will be left out when this job is requeued: it is slow" in log) == is_left_out
        assert ("at most 0 more may be left out" in log) != is_left_out


def test_cancelled_job_saves_and_is_not_requeued(slurm, tmp_path):
    submission = submit(tmp_path)
    wait_for_start(tmp_path)
    submission.cancel()
    assert submission.wait(0.2) is jobs.Outcome.CANCELLED
    assert (tmp_path / "ended").read_text() == "CANCELLED\n"
    saved = int((tmp_path / "step").read_text())
    assert saved > 0
    assert_over(slurm, submission, "CANCELLED")
    # The same launch resumes it.
    assert submit(tmp_path, end=saved + 5).wait(0.2) is jobs.Outcome.FINISHED


def test_job_with_a_killed_rank_resumes_from_the_last_save(slurm, tmp_path):
    submission = submit(tmp_path, kill_at=(2, 25), save_every=10, end=40)
    assert submission.wait(0.2) is jobs.Outcome.FINISHED
    assert assert_resumed(tmp_path)[1][0] == 20
    assert outcomes(tmp_path)[-2:] == ["lost", "finished"]


def test_failed_rank_ends_the_job_and_its_error_is_reported(slurm, tmp_path):
    submission = submit(tmp_path, raise_at=(3, 5))
    assert submission.wait(0.2) is jobs.Outcome.FAILED
    assert submission.failure().startswith("rank 3 failed: step 5 cannot be done\n")
    assert_over(slurm, submission, "FAILED")
    assert len(starts(tmp_path)) == 1


def test_rank_killed_at_the_same_step_in_each_attempt_ends_the_job(slurm, tmp_path):
    submission = submit(tmp_path, kill_at=(1, 5), once=False, resources={"max_stalls": 1})
    assert submission.wait(0.2) is jobs.Outcome.FAILED
    assert "1 attempt started at step 0 and made no progress" in submission.failure()
    assert len(starts(tmp_path)) == 1


def test_job_that_lost_a_node_resumes_with_fewer_nodes(slurm, tmp_path):
    submission = submit(tmp_path, save_every=5)
    wait_until(lambda: (tmp_path / "step").exists() and int((tmp_path / "step").read_text()) >= 5)
    slurm.kill_node("n3")
    # Slurm itself would find that out after half a minute.
    slurm.run("scontrol", "update", "NodeName=n3", "State=DOWN", "Reason=lost")
    wait_until(lambda: submission.update().state == "PENDING")
    # Slurm waits for the node to come back; the user launches again without it.
    submission.cancel()
    assert submission.wait(0.2) is jobs.Outcome.CANCELLED
    saved = int((tmp_path / "step").read_text())
    assert submit(tmp_path, nodes=2, save_every=5, end=saved + 5).wait(0.2) is jobs.Outcome.FINISHED
    assert starts(tmp_path)[-1][0] >= 5
    assert len(starts(tmp_path, 3)) == 1


@pytest.mark.slow
def test_job_that_lost_a_node_resumes_when_the_node_is_back(slurm, tmp_path):
    submission = submit(tmp_path, save_every=5, pause_s=0.1)
    wait_until(lambda: (tmp_path / "step").exists() and int((tmp_path / "step").read_text()) >= 5)
    slurm.kill_node("n4")
    wait_until(lambda: submission.update().state != "RUNNING")
    slurm.start_node("n4")
    assert submission.wait(0.2) is jobs.Outcome.FINISHED
    assert assert_resumed(tmp_path)[1][0] >= 5


def test_removed_run_directory_ends_the_job_and_is_reported(slurm, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    submission = submit(folder)
    wait_for_start(folder)
    pids = [starts(folder, rank)[0][1] for rank in range(4)]
    shutil.rmtree(folder)
    os.kill(pids[0], signal.SIGUSR1)
    assert submission.wait(0.2) is jobs.Outcome.FAILED
    assert "the run directory was removed" in submission.failure()
    assert not any(is_alive(pid) for pid in pids)
    assert_over(slurm, submission, "FAILED")
    assert slurm.run("squeue", "-h").strip() == ""


def test_second_launch_follows_the_running_job(slurm, tmp_path, capsys):
    submission = submit(tmp_path, end=80)
    wait_for_start(tmp_path)
    again = submit(tmp_path)
    assert again.job_id == submission.job_id
    assert "following it" in capsys.readouterr().out
    with pytest.raises(jobs.JobError, match=f"job {submission.job_id} on Slurm still uses"):
        jobs.submit(
            Count(folder=tmp_path),
            cluster="local",
            folder=tmp_path / "jobs",
            resources=jobs.Resources(),
            name="count",
        )
    assert again.wait(0.2) is jobs.Outcome.FINISHED
    assert len(starts(tmp_path)) == 1


def test_gpus_are_requested_and_each_process_has_its_own_local_rank(signalling_slurm, tmp_path):
    submission = submit(tmp_path, resources={"gpus_per_node": 2}, end=1)
    assert submission.world_size == 8
    assert submission.wait(0.2) is jobs.Outcome.FINISHED
    local_ranks = [(tmp_path / f"place{rank}").read_text().split() for rank in range(8)]
    assert [int(place[0]) for place in local_ranks] == [0, 1] * len(NODES)
    # Each process sees all GPUs of its node and uses the one with the number of its local rank.
    assert {place[1] for place in local_ranks} == {"0,1"}


@pytest.mark.thorough
def test_ranks_run_in_a_container_of_apptainer(slurm, tmp_path):
    # In place of apptainer: a program that notes its options, and runs the rest.
    program = tmp_path / "bin" / "apptainer"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$1 $2 $3 $4" >> {tmp_path}/opened\nshift 4\nexec "$@"\n')
    program.chmod(0o700)
    wanted = {"container_image": "/images/x.sif", "container_mounts": "/data:/data", "python": sys.executable}
    submission = submit(tmp_path, nodes=2, end=3, resources=wanted | {"setup": (f"PATH={program.parent}:$PATH",)})
    assert submission.wait(0.2) is jobs.Outcome.FINISHED, submission.failure()
    assert (tmp_path / "opened").read_text() == "exec --bind /data:/data /images/x.sif\n" * 2


def test_resources_that_the_cluster_lacks_are_refused_before_submission(slurm, tmp_path):
    for resources, message in (
        ({"partition": "gpu"}, "--partition gpu does not exist; there are: high, low"),
        ({"cpus_per_task": 5}, "--tasks-per-node times --cpus-per-task asks for 5 cores of a node"),
        ({"gpus_per_node": 1}, "--gpus-per-node asks for 1 GPUs of a node; the largest of low has 0"),
        ({"mem_gb": 5}, "--mem-gb asks for 5 GB of a node"),
        ({"nodes": 5}, "--nodes 5 is more than the 4 nodes of low"),
        ({"timeout_min": 121}, "--timeout-min 121 is over the limit of low: 120"),
        ({"constraint": "a100"}, "--constraint a100: no node of low has it; there are: rehearsal"),
    ):
        with pytest.raises(jobs.JobError) as error:
            submit(tmp_path, resources=resources)
        assert message in str(error.value)
    assert not (tmp_path / "jobs").exists()


def test_refusal_by_sbatch_is_reported_in_one_line(slurm, tmp_path):
    with pytest.raises(jobs.JobError, match=r"sbatch refuses the job: .*[Ii]nvalid") as error:
        submit(tmp_path, resources={"slurm": ("licenses=none@nowhere",)})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "event", ["scontrol requeue", *(pytest.param(event, marks=pytest.mark.slow) for event in ("signal", "lost rank"))]
)
def test_array_runs_each_task_in_its_own_folder_and_requeues_one_element_alone(slurm, tmp_path, event):
    homes = [tmp_path / f"run{number}" for number in range(3)]
    for home in homes:
        home.mkdir()
    tasks = [Count(folder=home, end=60 + number, save_every=NEVER) for number, home in enumerate(homes)]

    def sweep() -> list[Submission]:
        return jobs.submit_array(
            tasks,
            task_folders=[home / "jobs" for home in homes],
            folder=tmp_path / "array",
            resources=jobs.Resources(nodes=2, partition="low", timeout_min=10),
            name="sweep",
            code=CODE,
        )

    submissions = sweep()
    ids = [submission.job_id for submission in submissions]
    assert [job_id.partition("_")[2] for job_id in ids] == ["0", "1", "2"]
    wait_until(lambda: starts(homes[1]))
    again = jobs.attach(homes[1] / "jobs")
    assert again is not None
    assert [submission.job_id for submission in sweep()] == ids, "a running element was submitted again"
    if event == "lost rank":
        wait_until(lambda: starts(homes[1], 1))
        os.kill(starts(homes[1], 1)[0][1], signal.SIGKILL)
    else:
        command = "scontrol requeue" if event == "scontrol requeue" else "scancel --signal=USR1"
        slurm.run(*command.split(), again.job_id)
    assert jobs.wait_all(submissions, 0.2) == [jobs.Outcome.FINISHED] * 3
    assert [(home / "step").read_text() for home in homes] == ["60", "61", "62"]
    assert [len(starts(home)) for home in homes] == [1, 2, 1]


def test_rank_that_cannot_reach_rank_0_ends_the_job_and_is_named(slurm, tmp_path):
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$SLURM_PROCID" = 2 ] && exec unshare -n {sys.executable} "$@"\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o700)
    submission = submit(tmp_path, resources={"python": str(python), "meeting_s": 2})
    assert submission.wait(0.2) is jobs.Outcome.FAILED
    failure = submission.failure()
    assert "rank 2" in failure
    assert "did not reach rank 0 at 127.0.0.1:" in failure
    assert not starts(tmp_path)


@pytest.mark.slow
def test_restart_of_the_slurm_controller_ends_neither_launcher_nor_job(slurm, tmp_path):
    submission = submit(tmp_path)
    wait_for_start(tmp_path)
    slurm.stop_controller()
    os.kill(starts(tmp_path)[0][1], signal.SIGUSR1)
    states: list[str] = []

    def record_state(update: jobs.Update) -> None:
        if not states:
            # Rank 0 saves, and then tries to requeue the job while the Slurm controller is down.
            wait_until(lambda: (tmp_path / "step").exists())
            slurm.start_controller()
        states.append(update.state)

    assert submission.wait(0.2, record_state) is jobs.Outcome.FINISHED
    assert states[0] == "NO ANSWER"
    assert assert_resumed(tmp_path)[1][0] > 0
