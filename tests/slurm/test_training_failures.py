"""A real training that cannot go on: it ends soon, is not requeued, and the launcher reports the reason."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.runs import Run

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(300)]


def assert_ended(run: Run, output: str) -> None:
    """Assert that the launcher reports the failure and that the job was not requeued."""
    assert run.status == 1, output
    assert "requeue" not in output
    assert "error: " in output


def test_failed_import_is_reported(slurm, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif os.environ.get('SLURM_PROCID') == '1':\n    sys.modules['deepspeed'] = None\n"
    )
    run = Run(tmp_path, "import", "--setup", f"export PYTHONPATH={tmp_path}").launch()
    output = run.finish()
    assert_ended(run, output)
    assert "rank 1 failed: " in output
    assert "deepspeed" in output


def test_rank_that_cannot_reach_rank_0_is_named(slurm, tmp_path):
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$SLURM_PROCID" = 1 ] && exec unshare -n {sys.executable} "$@"\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o700)
    run = Run(tmp_path, "cut-off", "--python", str(python), "--meeting-s", "10").launch()
    output = run.finish()
    assert_ended(run, output)
    assert "rank 1" in output
    assert "did not reach rank 0 at 127.0.0.1:" in output
    assert not run.records()


def test_removed_run_directory_is_reported(slurm, tmp_path):
    run = Run(tmp_path, "removed", "--train.steps", "2000").launch()
    run.wait_for_step(3)
    shutil.rmtree(run.path)
    output = run.finish()
    assert_ended(run, output)
    assert "the run directory was removed" in output
    assert not run.path.exists()


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system with room for the code, the logs and a few checkpoints only."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_full_disk_is_reported(slurm, tmp_path, small_disk):
    run = Run(tmp_path, "disk/run").launch()
    run.wait_for_step(2)
    with contextlib.suppress(OSError), (small_disk / "rest").open("wb") as file:
        while True:
            file.write(bytes(65536))
            file.flush()
    output = run.finish()
    assert_ended(run, output)
    assert "No space left" in output or "is full" in output
