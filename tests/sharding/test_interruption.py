"""Builds that are killed or interrupted: no incomplete file is published, and a second build completes."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from sharding.pool import prepare_workers
from tests.sharding.builds import check_only_final_files, digests, flags, pack, start_build

MANIFEST = "imagenet1k-train.json"
KILLS = 20


def temporary_shards(output: Path) -> list[str]:
    """Shards that are open for writing, or were when their writer was killed."""
    return [path.name for path in output.glob(".*.parts/.*.tar.*.tmp")]


def start_and_wait_until_writing(source: str, output: Path) -> "subprocess.Popen[str]":
    """Start a build with two workers and wait until one of them writes a shard."""
    build = start_build(*flags(source, output, workers=2))
    while not temporary_shards(output):
        assert build.poll() is None, build.stderr.read()
        time.sleep(0.002)
    return build


def kill(build: "subprocess.Popen[str]", *, whole_group: bool) -> None:
    """Send SIGKILL to all processes of a build, or only to the first: the others must then exit on their own."""
    children = psutil.Process(build.pid).children(recursive=True) if build.poll() is None else []
    (os.killpg if whole_group else os.kill)(build.pid, signal.SIGKILL)
    build.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_workers_exit_when_the_build_process_is_killed_and_the_next_build_completes(
    source: str, reference: dict[str, str], tmp_path: Path
):
    kill(start_and_wait_until_writing(source, tmp_path), whole_group=False)
    check_only_final_files(tmp_path, reference)
    pack(source, tmp_path)
    assert digests(tmp_path) == reference


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_build_with_workers_killed_thirty_times_resumes(source: str, reference: dict[str, str], tmp_path: Path):
    chance = random.Random(30)
    output = tmp_path / "0"
    begun = time.monotonic()
    assert start_build(*flags(source, output, workers=2)).wait() == 0
    undisturbed_seconds = time.monotonic() - begun
    shutil.rmtree(output)
    survived = 0
    for number in range(30):
        build = start_build(*flags(source, output, workers=2))
        time.sleep(chance.uniform(0.3, 1.0) * undisturbed_seconds)
        if build.poll() is None:
            kill(build, whole_group=bool(number % 2))
        else:
            survived += 1
        check_only_final_files(output, reference)
        if (output / MANIFEST).exists():
            assert digests(output).keys() >= reference.keys()
            output = tmp_path / str(number + 1)
    assert survived < 30
    pack(source, output)
    assert digests(output) == reference


@pytest.mark.thorough
def test_a_build_killed_twenty_times_resumes(source: str, reference: dict[str, str], tmp_path: Path):
    """Builds without workers, each forked from a process that has imported everything, so that a kill costs little.

    Every second build is killed as soon as it writes a shard, the others at random moments.
    """
    chance = random.Random(0)
    prepare_workers("sharding.writer")
    context = multiprocessing.get_context("forkserver")
    output, seconds, kills, kills_while_writing = tmp_path / "0", [], 0, 0
    for attempt in range(3 * KILLS):
        build = context.Process(target=pack, args=(source, output))
        begun = time.monotonic()
        build.start()
        if attempt < 2:  # the second build measures the duration of an undisturbed one
            build.join()
            seconds.append(time.monotonic() - begun)
        elif attempt % 2:
            before = set(temporary_shards(output))
            while build.is_alive() and set(temporary_shards(output)) <= before:
                time.sleep(0.001)
        else:
            build.join(chance.uniform(0.1, 1.0) * seconds[1])
        build.kill()
        build.join()
        if build.exitcode == -signal.SIGKILL:
            kills += 1
            kills_while_writing += bool(temporary_shards(output))
        assert len(temporary_shards(output)) <= 1  # each build removes the temporary file of the killed one before it
        check_only_final_files(output, reference)
        if (output / MANIFEST).exists():
            output = tmp_path / str(attempt + 1)
        if kills == KILLS:
            break
    assert kills == KILLS
    assert kills_while_writing >= 8
    pack(source, output)
    assert digests(output) == reference


def test_ctrl_c_is_one_line_and_the_next_build_completes(source: str, reference: dict[str, str], tmp_path: Path):
    build = start_and_wait_until_writing(source, tmp_path)
    os.killpg(build.pid, signal.SIGINT)
    _, errors = build.communicate()
    assert build.returncode == 130
    assert errors.strip().splitlines()[-1].startswith("interrupted: finished shards are kept")
    assert "Traceback" not in errors
    check_only_final_files(tmp_path, reference)
    pack(source, tmp_path)
    assert digests(tmp_path) == reference


@pytest.mark.thorough
def test_a_killed_worker_is_one_line_and_the_next_build_completes(
    source: str, reference: dict[str, str], tmp_path: Path
):
    build = start_and_wait_until_writing(source, tmp_path)
    descendants = psutil.Process(build.pid).children(recursive=True)
    next(process for process in descendants if process.ppid() != build.pid).kill()  # the fork server is in between
    _, errors = build.communicate()
    assert build.returncode == 1
    assert errors.strip().startswith("error: a worker process was killed")
    assert "Traceback" not in errors
    check_only_final_files(tmp_path, reference)
    pack(source, tmp_path)
    assert digests(tmp_path) == reference
