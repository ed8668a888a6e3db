"""Builds that are killed, interrupted, or run out of disk: nothing half-published, and a second run completes."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sharding.pool import prepare_workers
from tests.sharding.packing import command, contents, flags, pack, start

MANIFEST = "imagenet1k-train.json"


def check_nothing_half_published(output: Path, reference: dict[str, str]) -> None:
    """What is visible is final: every file but `_info.json` is what a quiet run gives, the manifest only beside all."""
    published = {name: digest for name, digest in contents(output).items() if not name.startswith(".")}
    assert published.items() <= reference.items()
    if MANIFEST in published:
        assert published == reference


def kill(build: "subprocess.Popen[str]", *, whole_group: bool) -> None:
    """`kill -9`, of all its processes or of the first alone; the others then end by themselves."""
    children = psutil.Process(build.pid).children(recursive=True) if build.poll() is None else []
    (os.killpg if whole_group else os.kill)(build.pid, signal.SIGKILL)
    build.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


@pytest.mark.parametrize("kills", [4, pytest.param(30, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_killed_at_random_moments_it_goes_on(kills: int, source: str, reference: dict[str, str], tmp_path: Path):
    chance = random.Random(kills)
    begun, quiet_seconds = time.monotonic(), 0.0
    survived = 0
    output = tmp_path / "0"
    for number in range(kills):
        build = start(*flags(source, output, workers=2))
        if not quiet_seconds:  # the first one tells how long a quiet build takes
            assert build.wait() == 0, build.stderr.read()
            quiet_seconds = time.monotonic() - begun
            shutil.rmtree(output)
            build = start(*flags(source, output, workers=2))
        time.sleep(chance.uniform(0.3, 1.0) * quiet_seconds)
        if build.poll() is None:
            kill(build, whole_group=bool(number % 2))
        else:
            survived += 1
        check_nothing_half_published(output, reference)
        if (output / MANIFEST).exists():
            assert contents(output).keys() >= reference.keys()
            output = tmp_path / str(number + 1)
    assert survived < kills
    done = command(*flags(source, output))
    assert done.returncode == 0, done.stderr
    assert contents(output) == reference


def writing(output: Path) -> list[str]:
    """Shards that are open for writing, or were when their writer was killed."""
    return [path.name for path in output.glob(".*.parts/.*.tar.*.tmp")]


def test_killed_twenty_times_within_writes_and_elsewhere(source: str, reference: dict[str, str], tmp_path: Path):
    """Builds without workers, each forked from a process that has imported everything, so that a kill costs little.

    Every second one is killed as soon as it writes a shard, the others at random moments.
    """
    chance = random.Random(0)
    prepare_workers("sharding.writer")
    context = multiprocessing.get_context("forkserver")
    output, seconds, kills, within = tmp_path / "0", [], 0, 0
    for attempt in range(60):
        build = context.Process(target=pack, args=(source, output))
        begun = time.monotonic()
        build.start()
        if attempt < 2:  # the second one tells how long a quiet build takes
            build.join()
            seconds.append(time.monotonic() - begun)
        elif attempt % 2:
            before = set(writing(output))
            while build.is_alive() and set(writing(output)) <= before:
                time.sleep(0.001)
        else:
            build.join(chance.uniform(0.1, 1.0) * seconds[1])
        build.kill()
        build.join()
        if build.exitcode == -signal.SIGKILL:
            kills += 1
            within += bool(writing(output))
        assert len(writing(output)) <= 1  # each build removes what the one before it left
        check_nothing_half_published(output, reference)
        if (output / MANIFEST).exists():
            output = tmp_path / str(attempt + 1)
        if kills == 20:
            break
    assert kills == 20
    assert within >= 8
    pack(source, output)
    assert contents(output) == reference


def test_what_is_published_is_on_the_disk_first(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fsync, replace, done = os.fsync, os.replace, []

    def logged_fsync(descriptor: int) -> None:
        done.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def logged_replace(old: str, new: str) -> None:
        done.append(("replace", old))
        replace(old, new)
        done.append(("appeared", new))

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "replace", logged_replace)
    pack(source, tmp_path)
    published = [position for position, (what, path) in enumerate(done) if what == "appeared" and ".parts" not in path]
    assert len(published) == len(contents(tmp_path))
    for position in published:
        aside = done[position - 1][1]
        assert done[position - 2] == ("fsync", aside)
        assert done[position + 1] == ("fsync", str(tmp_path))


def test_ctrl_c_is_one_line_and_the_next_run_completes(source: str, reference: dict[str, str], tmp_path: Path):
    build = start(*flags(source, tmp_path, workers=2))
    while not list(tmp_path.glob("*.tar")):
        assert build.poll() is None, build.stderr.read()
        time.sleep(0.005)
    os.killpg(build.pid, signal.SIGINT)
    _, errors = build.communicate()
    assert build.returncode == 130
    assert errors.strip().splitlines()[-1].startswith("interrupted: finished shards are kept")
    assert "Traceback" not in errors
    check_nothing_half_published(tmp_path, reference)
    assert command(*flags(source, tmp_path)).returncode == 0
    assert contents(tmp_path) == reference


def test_a_killed_worker_is_one_line(source: str, reference: dict[str, str], tmp_path: Path):
    build = start(*flags(source, tmp_path, workers=2))
    while not list(tmp_path.glob("*.tar")):
        assert build.poll() is None, build.stderr.read()
        time.sleep(0.005)
    descendants = psutil.Process(build.pid).children(recursive=True)
    next(process for process in descendants if process.ppid() != build.pid).kill()  # workers have a parent between
    _, errors = build.communicate()
    assert build.returncode == 1
    assert errors.strip().startswith("error: a worker process was killed")
    assert "Traceback" not in errors
    check_nothing_half_published(tmp_path, reference)
    assert command(*flags(source, tmp_path)).returncode == 0
    assert contents(tmp_path) == reference


def test_a_write_that_fails_in_the_middle_leaves_nothing(source: str, reference: dict[str, str], tmp_path: Path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))"
    done = command(*flags(source, tmp_path), prelude=limit)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}/imagenet1k-train-0000.tar could not be written: File too large")
    assert len(done.stderr.splitlines()) == 1
    assert not [name for name in contents(tmp_path) if name.endswith((".tar", ".tmp", ".part"))]
    assert command(*flags(source, tmp_path)).returncode == 0
    assert contents(tmp_path) == reference


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_keeps_the_finished_shards(
    small_disk: Path, source: str, reference: dict[str, str], tmp_path: Path
):
    done = command(*flags(source, small_disk))
    assert done.returncode == 1
    assert "could not be written: No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    check_nothing_half_published(small_disk, reference)
    tars = sorted(name for name in contents(small_disk) if name.endswith(".tar"))
    assert tars
    larger = tmp_path / "larger"
    shutil.copytree(small_disk, larger)
    kept = (larger / tars[0]).stat().st_ino
    assert command(*flags(source, larger)).returncode == 0
    assert contents(larger) == reference
    assert (larger / tars[0]).stat().st_ino == kept
