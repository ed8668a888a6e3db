"""Builds that are killed, interrupted, or run out of disk: nothing half-published, and a second run completes."""

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

from tests.sharding.packing import command, contents, flags, start

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
