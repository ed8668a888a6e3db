"""The local cluster with real processes: no rank is left behind, whatever is killed."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import jobs
from jobs import attempts
from jobs.submission import Submission
from tests.jobs.tasks import Count

REPOSITORY = Path(__file__).parents[2]
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


def starts(folder: Path, rank: int = 0) -> list[list[int]]:
    """First step, pid, restarts and port of each start of a rank."""
    path = folder / f"rank{rank}"
    return [[int(word) for word in line.split()] for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(condition, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.05)


def all_started(folder: Path) -> bool:
    return all(starts(folder, rank) for rank in range(3))


def pids(folder: Path) -> list[int]:
    return [start[1] for rank in range(3) for start in starts(folder, rank)]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_all_ranks_finish_and_only_the_owner_may_read_what_they_leave(tmp_path):
    submission = submit(tmp_path, end=3)
    assert submission.wait(0.05) is jobs.Outcome.FINISHED
    assert [start[0] for rank in range(3) for start in starts(tmp_path, rank)] == [0, 0, 0]
    assert (tmp_path / "ended").read_text() == "FINISHED\n"
    assert submission.failure() == ""
    assert len(submission.log_paths()) == 4
    for path in [tmp_path / "jobs", *(tmp_path / "jobs").glob("*.pkl")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_announced_end_saves_and_goes_on_with_another_port(tmp_path):
    submission = submit(tmp_path, end=60, save_every=1000)
    wait_until(lambda: all_started(tmp_path))
    # One rank hears it; all agree.
    os.kill(starts(tmp_path)[0][1], signal.SIGUSR2)
    assert submission.wait(0.05) is jobs.Outcome.FINISHED
    (first, second) = starts(tmp_path)
    assert first[0] == 0
    assert 0 < second[0] < 60
    assert first[2:] != second[2:]
    assert (tmp_path / "ended").read_text() == "INTERRUPTED\nFINISHED\n"


def test_exception_of_one_rank_ends_all_and_reaches_the_launcher(tmp_path):
    submission = submit(tmp_path, raise_at=(2, 5))
    assert submission.wait(0.05) is jobs.Outcome.FAILED
    assert submission.failure().startswith("rank 2 failed: step 5 cannot be done\n")
    assert not any(is_alive(pid) for pid in pids(tmp_path))
    assert len(starts(tmp_path)) == 1


def test_killed_rank_ends_the_others_and_the_next_launch_goes_on(tmp_path):
    submission = submit(tmp_path, kill_at=(1, 25))
    assert submission.wait(0.05) is jobs.Outcome.FAILED
    assert "rank 1: killed by SIGKILL" in submission.failure()
    assert not any(is_alive(pid) for pid in pids(tmp_path))
    assert submit(tmp_path).wait(0.05) is jobs.Outcome.FINISHED
    assert starts(tmp_path)[-1][0] == 20


def test_unpicklable_import_fails_with_its_own_words(tmp_path):
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
    wait_until(lambda: all_started(folder))
    return process


def test_ctrl_c_of_the_launcher_saves_and_leaves_nothing(tmp_path):
    launcher = launch(tmp_path)
    launcher.send_signal(signal.SIGINT)
    output, _ = launcher.communicate(timeout=60)
    assert "asked the 3 processes to save and stop" in output
    assert output.endswith("Outcome.INTERRUPTED\n")
    assert int((tmp_path / "step").read_text()) > 0
    assert not any(is_alive(pid) for pid in pids(tmp_path))


def test_killed_launcher_leaves_no_orphan_and_a_second_launch_waits_for_the_ranks(tmp_path):
    launcher = launch(tmp_path)
    launcher.kill()
    launcher.communicate()
    submission = submit(tmp_path, end=1)
    assert not any(is_alive(pid) for pid in pids(tmp_path))
    assert submission.wait(0.05) is jobs.Outcome.FINISHED
    assert starts(tmp_path)[-1][0] > 0, "the orphans saved before they ended"


def test_killed_controller_leaves_no_orphan(tmp_path):
    submission = submit(tmp_path, end=1000)
    wait_until(lambda: all_started(tmp_path))
    submission._process.kill()  # pyright: ignore[reportAttributeAccessIssue]
    assert submission.wait(0.05) is jobs.Outcome.FAILED
    wait_until(lambda: not any(is_alive(pid) for pid in pids(tmp_path)))


def test_job_that_gets_nowhere_is_given_up(tmp_path):
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
    assert "3 attempts started at step 0 and got no further" in submission.failure()
    ends = [row.outcome for row in attempts.read(folder, submission.job_id) if row.event == "end"]
    assert ends == ["requeued"] * 3 + ["given up"]


def test_debug_runs_here_and_restores_what_it_changed(tmp_path):
    before = dict(os.environ)
    handler = signal.getsignal(signal.SIGTERM)
    task = Count(folder=tmp_path, end=3)
    submission = jobs.submit(task, cluster="debug", folder=tmp_path / "jobs", resources=jobs.Resources(), name="count")
    assert submission.wait() is jobs.Outcome.FINISHED
    assert starts(tmp_path)[0][1] == os.getpid()
    assert dict(os.environ) == before
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder belong to somebody else")
def test_folder_of_somebody_else_is_refused(tmp_path):
    folder = tmp_path / "jobs"
    folder.mkdir()
    os.chown(folder, 65534, -1)
    with pytest.raises(jobs.JobError, match="belongs to user 65534"):
        submit(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_full_disk_ends_the_job_and_is_named(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("no mount is allowed here")
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
