"""The local database that a first run creates."""

import subprocess
import sys

import pytest

from pipeline.tracking.client import open_client, resolve_tracking_uri
from tests.support import REPOSITORY
from tests.support.tracking_servers import wait_for


@pytest.mark.slow
def test_a_database_creation_that_was_killed_is_repeated_by_the_next_two_processes(tmp_path):
    """MLflow creates the database table by table and could not open an incomplete one."""
    uri, folder = resolve_tracking_uri(tmp_path), tmp_path / "runs"
    command = [sys.executable, "-c", f"from pipeline.tracking.client import open_client; open_client({uri!r})"]
    killed = subprocess.Popen(command, cwd=REPOSITORY)
    wait_for(lambda: any(path.stat().st_size > 50_000 for path in folder.glob(".mlflow.db.*[!l]")), 120)
    killed.kill()
    killed.wait()
    assert not (folder / "mlflow.db").exists()
    both = [subprocess.Popen(command, cwd=REPOSITORY) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert open_client(uri).get_experiment("0").name == "Default"
