"""Exported models give PyTorch's outputs, also for batch sizes other than at the export."""

import importlib.util

import pytest

from pipeline.register.formats import export
from pipeline.status.sync import sync_run
from pipeline.tracking.client import open_client, resolve_tracking_uri
from pipeline.tracking.state import load_state
from tests.support.tracking_runs import finished_run

MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_exports_are_checked_and_kept_with_the_run(tmp_path):
    uri = resolve_tracking_uri(tmp_path)
    finished_run(tmp_path / "run", tmp_path / "shards", uri)
    sync_run(tmp_path / "run")
    formats = ["torch_export"] if MISSING else ["torch_export", "onnx"]
    made = export(tmp_path / "run", formats)
    listed = {item.path for item in open_client(uri).list_artifacts(load_state(tmp_path / "run").run_id, "exports")}
    assert listed == set(made)
    if MISSING:
        pytest.skip(f"torch.export is fine; ONNX needs {' '.join(MISSING)}")
