"""Worker processes: they do not run the main module of the program, and end quietly with it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.sharding.builds import REPOSITORY, digests, environment, flags


@pytest.mark.thorough
def test_a_script_without_a_main_guard_may_use_workers(source: str, reference: dict[str, str], tmp_path: Path):
    script = tmp_path / "script.py"
    output = tmp_path / "out"
    options = f"source={source!r}, output={str(output)!r}, split='train', shard_mb=1, workers=2"
    script.write_text(f"from sharding.build import BuildOptions, build\nbuild(BuildOptions({options}))\n")
    paths = environment(PYTHONPATH=str(REPOSITORY))
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=paths, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert digests(output) == reference


INTERRUPTED_WHILE_A_WORKER_STARTS = """
import os, signal, sys
from multiprocessing import popen_forkserver
from sharding.build import main

launch, launched = popen_forkserver.Popen._launch, []

def launch_and_interrupt(popen, process):
    launch(popen, process)
    launched.append(popen.pid)
    if len(launched) == 2:
        os.killpg(0, signal.SIGINT)

popen_forkserver.Popen._launch = launch_and_interrupt
sys.argv[0] = "build"
code = main()
assert len(launched) == 2
sys.exit(code)
"""


def test_ctrl_c_while_a_worker_starts_is_one_line_too(source: str, tmp_path: Path):
    """The second worker runs already, but its executor does not know it yet."""
    command = [sys.executable, "-c", INTERRUPTED_WHILE_A_WORKER_STARTS, *flags(source, tmp_path, workers=2)]
    paths = environment(PYTHONPATH=str(REPOSITORY))
    done = subprocess.run(command, env=paths, capture_output=True, text=True, start_new_session=True)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("interrupted: finished shards are kept")
