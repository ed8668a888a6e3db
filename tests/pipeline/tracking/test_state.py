"""The tracking server that a run stays on."""

import dataclasses

import pytest

from pipeline.config.schema import TrainConfig
from pipeline.run.directory import prepare
from pipeline.tracking.state import TrackingState, save_state, tracking_uri_of


def test_a_run_stays_on_the_tracking_server_it_began_on(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    first, here = tmp_path / "first.db", f"sqlite:///{tmp_path}/other.db"
    first.touch()
    run = tmp_path / "run"
    prepare(run, TrainConfig(), {"tracking_uri": here})
    state = TrackingState(key="k", run_id="r", tracking_uri=f"sqlite:///{first}")
    save_state(run, state)
    assert tracking_uri_of(run) == f"sqlite:///{first}"
    first.unlink()
    assert tracking_uri_of(run) == here
    save_state(run, dataclasses.replace(state, tracking_uri="http://bob:***@host"))
    with pytest.raises(ValueError, match=r"tracked in MLflow at http://bob:\*\*\*@host: set MLFLOW_TRACKING_URI"):
        tracking_uri_of(run)
    # A server that never answered has nothing of the run; the run keeps it unless the user names another.
    prepare(run, TrainConfig(), {"tracking_uri": None})
    save_state(run, TrackingState(key="k", tracking_uri="http://host"))
    with pytest.raises(ValueError, match="set MLFLOW_TRACKING_URI to that address, or, since nothing was sent there"):
        tracking_uri_of(run)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other")
    assert tracking_uri_of(run) == "http://other"
    save_state(run, dataclasses.replace(state, tracking_uri="http://bob:***@host"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://bob:pw@host")
    prepare(run, TrainConfig(), {"tracking_uri": None})
    assert tracking_uri_of(run) == "http://bob:pw@host"
