"""The local database that a first run creates, and what is asked of which server."""

import subprocess
import sys

import pytest

from pipeline.tracking.client import fetch_command, open_client, resolve_tracking_uri
from tests.support import REPOSITORY
from tests.support.tracking_runs import new_store
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


@pytest.mark.thorough
def test_the_command_of_a_version_is_that_of_its_registry_or_else_of_the_tracking_server(tmp_path, monkeypatch):
    registry, store = new_store(tmp_path / "registry"), new_store(tmp_path / "store")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", registry)
    for server, command in ((registry, "launch here"), (store, "launch there")):
        run = open_client(server).create_run("0", tags={"command": command})
        assert fetch_command(run.info.run_id) == command
    assert fetch_command("0" * 32) == ""
