"""Where a run is tracked: relative addresses, experiments from the environment, runs that were deleted, no user."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipeline.launch.options import parse
from pipeline.launch.plan import build_plan
from pipeline.run.config import read_config
from pipeline.status.sync import sync_run
from pipeline.tracking.address import resolve_tracking_uri
from pipeline.tracking.client import TrackingError, describe_failure, fetch_command, find_version, open_client
from pipeline.tracking.state import load_state
from tests.pipeline.tracking.runs import new_run
from tests.support import REPOSITORY
from tests.support.ranks import free_port
from tests.support.tracking_runs import append_records, new_store, write_checkpoint


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return new_store(tmp_path)


def test_a_relative_database_is_made_absolute_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "sqlite:///~/registry.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///my.db?timeout=9")
    expected = f"sqlite:///{tmp_path}/my.db?timeout=9"
    assert resolve_tracking_uri(tmp_path) == expected
    plan = build_plan(parse(["--recipe", "demo", "--cluster", "debug", "--run-dir", "run"]))
    assert plan.run_facts(plan.runs[0].config)["tracking_uri"] == expected
    # The processes of the job inherit the environment, and run in other folders.
    assert os.environ["MLFLOW_TRACKING_URI"] == expected
    assert os.environ["MLFLOW_REGISTRY_URI"] == "sqlite:////home/me/registry.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://bob:pw@host")
    assert plan.run_facts(plan.runs[0].config)["tracking_uri"] is None


def test_the_experiment_is_the_one_of_the_environment(tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch):
    client = open_client(uri)
    mine = client.create_experiment("mine", artifact_location=str(tmp_path / "artifacts"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", mine)
    run_dir, _ = new_run(tmp_path, uri)
    sync_run(run_dir)
    assert load_state(run_dir).experiment_id == mine
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "transxnet")
    with pytest.raises(TrackingError, match=f"{mine} and MLFLOW_EXPERIMENT_NAME transxnet name two experiments"):
        sync_run(new_run(tmp_path, uri, "second")[0])
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    with pytest.raises(TrackingError, match=r"MLFLOW_EXPERIMENT_ID 77: MLflow at .* has no experiment with this id"):
        sync_run(new_run(tmp_path, uri, "third")[0])
    # The launch keeps the choice: later commands run in other environments.
    plan = build_plan(parse(["--recipe", "demo", "--cluster", "debug", "--run-dir", f"{tmp_path}/run"]))
    assert plan.run_facts(plan.runs[0].config)["experiment_id"] == "77"


def test_what_was_deleted_is_restored_by_the_command_that_is_named(tmp_path: Path, uri: str):
    run_dir, _ = new_run(tmp_path, uri)
    sync_run(run_dir)
    client, state = open_client(uri), load_state(run_dir)
    client.delete_run(state.run_id)
    restore = f"was deleted: restore it \\(MLFLOW_TRACKING_URI={uri} mlflow runs restore --run-id {state.run_id}\\)"
    with pytest.raises(TrackingError, match=restore):
        sync_run(run_dir)
    client.restore_run(state.run_id)
    client.delete_experiment(state.experiment_id)
    restore = f"'transxnet' was deleted: .* mlflow experiments restore --experiment-id {state.experiment_id}\\)"
    for folder in (run_dir, new_run(tmp_path, uri, "second")[0]):
        with pytest.raises(TrackingError, match=restore):
            sync_run(folder)
    client.restore_experiment(state.experiment_id)
    sync_run(run_dir)


@pytest.mark.thorough
def test_a_user_without_a_name_and_a_home_is_left_out(tmp_path: Path, uri: str):
    """In a container that runs under a number of its own, no file knows that user."""
    run_dir, _ = new_run(tmp_path, uri)
    append_records(run_dir, range(1, 3))
    write_checkpoint(run_dir, 2)
    program = f"""
        import pwd
        pwd.getpwuid = pwd.getpwnam = {{}}.__getitem__
        from pathlib import Path
        from pipeline.tracking.settle import settle
        settle(Path({str(run_dir)!r}))
    """
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, env=environment, check=True)
    run = open_client(uri).get_run(load_state(run_dir).run_id)
    assert "mlflow.user" not in run.data.tags
    assert run.data.metrics["train/lr"] == 1e-3


def test_an_error_of_this_machine_is_not_worded_as_the_servers(tmp_path: Path, uri: str):
    run_dir, _ = new_run(tmp_path, uri)
    append_records(run_dir, range(1, 3))
    (run_dir / "uncommitted.patch").mkdir()
    with pytest.raises(TrackingError, match=r"^an error of this machine, not of the server \(IsADirectoryError: "):
        sync_run(run_dir)
    assert describe_failure(ConnectionError("refused"), "MLflow does not answer") == "MLflow does not answer: refused"


def test_a_registry_without_the_version_differs_from_one_that_does_not_answer(uri: str, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client, start = open_client(uri), "models:/transxnet_n@champion"
    assert find_version(start) is None
    client.create_registered_model("transxnet_n")
    assert find_version(start) is None
    client.create_model_version("transxnet_n", "/nowhere")
    client.set_registered_model_alias("transxnet_n", "champion", "1")
    assert find_version(start) == "models:/transxnet_n/1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(TrackingError, match="does not say whether it has models:/transxnet_n@champion"):
        find_version(start)


def test_the_command_of_a_registered_models_training_is_read_from_its_run(tmp_path: Path, uri: str, monkeypatch):
    run_dir, _ = new_run(tmp_path, uri)
    append_records(run_dir, range(1, 3))
    sync_run(run_dir)
    run_id = load_state(run_dir).run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert fetch_command(run_id) == read_config(run_dir).command != ""
    assert fetch_command("f" * 32) == ""
