"""A tracking server with PostgreSQL and S3 holds a run and its model as a local file does."""

import os
import subprocess
import sys

import pytest

from pipeline.register.registration import register
from pipeline.status.sync import sync_run
from pipeline.tracking.client import open_client
from pipeline.tracking.state import load_state
from tests.support.tracking_runs import finished_run
from tests.support.tracking_servers import MlflowServer, answers, free_port, has_postgres, postgres, wait_for

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def bucket(tmp_path):
    """A local S3 server with a bucket: (environment for its clients, client)."""
    port = free_port()
    with open(tmp_path / "s3.log", "wb") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(f"{url}/moto-api/"), 60)
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="models")
        yield {"MLFLOW_S3_ENDPOINT_URL": url, **KEYS}, client
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(bool(has_postgres()), reason=has_postgres() or "-")
def test_postgres_and_s3_hold_a_run_and_its_model(tmp_path, bucket):
    environment, client = bucket
    with (
        postgres() as store,
        MlflowServer(tmp_path / "server", store=store, artifacts="s3://models/all", env=environment) as server,
    ):
        card = finished_run(tmp_path / "run", tmp_path / "shards", server.uri)
        # The client has no access to the database or the bucket: the server forwards the files.
        assert not set(KEYS) & set(os.environ)
        sync_run(tmp_path / "run")
        version = register(tmp_path / "run")
        assert version.aliases == ("latest", "champion")
        run = open_client(server.uri).get_run(load_state(tmp_path / "run").run_id)
        assert run.data.metrics["eval/top1"] == pytest.approx(0.6)
        assert {dataset.dataset.name for dataset in run.inputs.dataset_inputs} == {"digits-train", "digits-validation"}
        digests = {dataset.dataset.digest for dataset in run.inputs.dataset_inputs}
        assert card.validation_digest[:32] in digests
        # The checkpoint is a model of the run without files, the registered model has its files.
        models = [open_client(server.uri).get_logged_model(output.model_id) for output in run.outputs.model_outputs]
        assert {model.name for model in models} == {"step_00000030", "transxnet_n"}
        stored = [entry["Key"] for entry in client.list_objects_v2(Bucket="models")["Contents"]]
        assert sum(key.endswith("model.safetensors") for key in stored) == 1
        assert any(key.endswith("report/training.png") for key in stored)
        assert not any(key.endswith("state.bin") for key in stored)
