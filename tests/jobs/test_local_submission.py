"""The local cluster and the debug cluster with real processes: no rank is left behind, whichever process is killed."""

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import jobs
from jobs import attempt_log
from jobs.folder_lock import lock_folder
from jobs.submission import Submission
from tests.jobs.support import REPOSITORY, is_alive, starts, steps, wait_until
from tests.jobs.tasks import Count

CODE = jobs.Code(root=REPOSITORY)


def submit(folder: Path, **changes) -> Submission:
    task = Count(folder=folder, **{"end": 40, "pause_s": 0.02, **changes})
    return jobs.submit(
        task,
        cluster="local",
        folder=folder / "jobs",
        resources=jobs.Resources(nodes=3),
        name="count",
        code=CODE,
    )


def all_started(folder: Path) -> bool:
    return all(starts(folder, rank) for rank in range(3))


def all_count(folder: Path) -> bool:
    """Whether all ranks have started, and done a step: a stop request before the first step leaves nothing to save."""
    return all_started(folder) and bool(steps(folder))


def pids(folder: Path) -> list[int]:
    return [start[1] for rank in range(3) for start in starts(folder, rank)]


def test_all_ranks_finish_and_only_the_owner_can_read_their_files(tmp_path):
    submission = submit(tmp_path, end=3)
    assert submission.wait(0.05) is jobs.Outcome.FINISHED
    assert [start[0] for rank in range(3) for start in starts(tmp_path, rank)] == [0, 0, 0]
    assert (tmp_path / "ended").read_text() == "FINISHED\n"
    assert submission.failure() == ""
    assert len(list((tmp_path / "jobs").glob("*_log.out"))) == 3
    for path in [tmp_path / "jobs", *(tmp_path / "jobs").glob("*.pkl")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@pytest.mark.thorough
def test_usr2_to_one_rank_saves_on_all_ranks_and_restarts_the_job_on_another_port(tmp_path):
    submission = submit(tmp_path, end=60, save_every=1000)
    wait_until(lambda: all_count(tmp_path))
    # One rank receives the signal, and all ranks agree to stop.
    os.kill(starts(tmp_path)[0][1], signal.SIGUSR2)
    assert submission.wait(0.05) is jobs.Outcome.FINISHED
    (first, second) = starts(tmp_path)
    assert first[0] == 0
    assert 0 < second[0] < 60
    assert steps(tmp_path) == list(range(60))
    assert first[2:] != second[2:]
    assert (tmp_path / "ended").read_text() == "INTERRUPTED\nFINISHED\n"


@pytest.mark.thorough
def test_exception_in_one_rank_ends_all_ranks_and_is_reported_to_the_launcher(tmp_path):
    submission = submit(tmp_path, raise_at=(2, 5))
    assert submission.wait(0.05) is jobs.Outcome.FAILED
    assert submission.failure().startswith("rank 2 failed: step 5 cannot be done\n")
    assert not any(is_alive(pid) for pid in pids(tmp_path))
    assert len(starts(tmp_path)) == 1


def test_killed_rank_ends_the_others_and_the_next_launch_resumes(tmp_path):
    submission = submit(tmp_path, kill_at=(1, 25))
    assert submission.wait(0.05) is jobs.Outcome.FAILED
    assert "rank 1: killed by SIGKILL" in submission.failure()
    assert not any(is_alive(pid) for pid in pids(tmp_path))
    assert submit(tmp_path).wait(0.05) is jobs.Outcome.FINISHED
    assert starts(tmp_path)[-1][0] == 20


def test_task_whose_module_cannot_be_imported_fails_with_the_import_error(tmp_path):
    module = tmp_path / "breaks.py"
    module.write_text("def task(stop_requested):\n    pass\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import breaks  # pyright: ignore[reportMissingImports]

        module.write_text("import no_such_module\n")
        folder = tmp_path / "jobs"
        submission = jobs.submit(
            breaks.task,
            cluster="local",
            folder=folder,
            resources=jobs.Resources(),
            name="x",
            code=jobs.Code(root=tmp_path),
        )
    finally:
        sys.path.remove(str(tmp_path))
    assert submission.wait(0.05) is jobs.Outcome.FAILED
    assert "ModuleNotFoundError" in submission.failure()


LAUNCH = """
import sys
from pathlib import Path
import jobs
from tests.jobs.tasks import Count
folder = Path(sys.argv[1])
submission = jobs.submit(Count(folder=folder, end=1000, save_every=1000), cluster="local", folder=folder / "jobs",
                         resources=jobs.Resources(nodes=3), name="count")
print(submission.wait(0.05), flush=True)
"""


def launch(folder: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(folder)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    wait_until(lambda: all_count(folder))
    return process


def test_ctrl_c_at_the_launcher_saves_and_ends_all_processes(tmp_path):
    launcher = launch(tmp_path)
    launcher.send_signal(signal.SIGINT)
    output, _ = launcher.communicate(timeout=60)
    assert "asked the 3 processes to save and stop" in output
    assert output.endswith("Outcome.INTERRUPTED\n")
    assert int((tmp_path / "step").read_text()) > 0
    assert not any(is_alive(pid) for pid in pids(tmp_path))


@pytest.mark.thorough
def test_ranks_of_a_killed_launcher_save_and_end_before_a_second_launch_starts(tmp_path):
    launcher = launch(tmp_path)
    launcher.kill()
    launcher.communicate()
    submission = submit(tmp_path, end=1)
    assert not any(is_alive(pid) for pid in pids(tmp_path))
    assert submission.wait(0.05) is jobs.Outcome.FINISHED
    assert starts(tmp_path)[-1][0] > 0, "the ranks of the killed launcher did not save before they ended"


def test_second_launch_says_at_once_whom_it_waits_for_and_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "jobs"
    folder.mkdir(mode=0o700)
    held = lock_folder(folder)
    monkeypatch.setattr("jobs.folder_lock.lock_folder.__defaults__", (1.5,))
    with pytest.raises(jobs.JobError) as refused:
        submit(tmp_path)
    os.close(held)
    holder = f"another launch (process {os.getpid()} on {os.uname().nodename})"
    assert capsys.readouterr().out == f"{holder} works in {folder}: waiting up to 2 s for its end\n"
    assert str(refused.value).startswith(f"the processes of {holder} still run in {folder}; wait until they end")
    assert "\n" not in str(refused.value)


def test_ranks_of_a_killed_controller_end(tmp_path):
    submission = submit(tmp_path, end=1000)
    wait_until(lambda: all_started(tmp_path))
    submission._process.kill()  # pyright: ignore[reportAttributeAccessIssue]
    assert submission.wait(0.05) is jobs.Outcome.FAILED
    wait_until(lambda: not any(is_alive(pid) for pid in pids(tmp_path)))


@pytest.mark.thorough
def test_job_without_progress_is_ended_after_max_stalls_attempts(tmp_path):
    folder = tmp_path / "jobs"
    task = Count(folder=tmp_path, end=1000, pause_s=0.02, stuck=True)
    submission = jobs.submit(
        task,
        cluster="local",
        folder=folder,
        resources=jobs.Resources(max_stalls=3),
        name="x",
        code=CODE,
    )
    done = threading.Event()

    def preempt() -> None:
        seen = 0
        while not done.is_set():
            rows = starts(tmp_path)
            if len(rows) > seen:
                seen = len(rows)
                os.kill(rows[-1][1], signal.SIGUSR2)
            time.sleep(0.05)

    thread = threading.Thread(target=preempt)
    thread.start()
    try:
        assert submission.wait(0.05) is jobs.Outcome.FAILED
    finally:
        done.set()
        thread.join()
    assert "3 attempts started at step 0 and made no progress" in submission.failure()
    ends = [row.outcome for row in attempt_log.read(folder, submission.job_id) if row.event == "end"]
    assert ends == ["requeued"] * 3 + ["given up"]


def test_debug_cluster_runs_in_this_process_and_restores_environment_and_handlers(tmp_path):
    before = dict(os.environ)
    handler = signal.getsignal(signal.SIGTERM)
    task = Count(folder=tmp_path, end=3)
    submission = jobs.submit(task, cluster="debug", folder=tmp_path / "jobs", resources=jobs.Resources(), name="count")
    assert submission.wait() is jobs.Outcome.FINISHED
    assert starts(tmp_path)[0][1] == os.getpid()
    assert dict(os.environ) == before
    assert signal.getsignal(signal.SIGTERM) is handler


class TakesPort:
    """A task that takes the socket on MASTER_PORT, as `Task` says."""

    takes_port = True

    def __call__(self, stop_requested: jobs.StopRequested) -> jobs.Outcome:
        """Take it, and see that it is the one."""
        with socket.socket(fileno=int(os.environ["MASTER_SOCKET"])) as holder:
            is_it = holder.getsockname()[1] == int(os.environ["MASTER_PORT"])
            holder.listen()
        return jobs.Outcome.FINISHED if is_it else jobs.Outcome.FAILED


def test_a_task_gets_the_socket_that_holds_its_port(tmp_path):
    submission = jobs.submit(TakesPort(), cluster="debug", folder=tmp_path, resources=jobs.Resources(), name="port")
    assert submission.wait() is jobs.Outcome.FINISHED


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_full_disk_ends_the_job_and_is_reported(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        submission = submit(disk, end=1000)
        wait_until(lambda: all_started(disk))
        with contextlib.suppress(OSError), (disk / "rest").open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        assert submission.wait(0.05) is jobs.Outcome.FAILED
        assert "No space left" in submission.failure() or "is full" in submission.failure()
        assert not any(is_alive(pid) for pid in pids(disk))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
