"""A registered segmentation: verified, served over HTTP, exported for images of any size."""

import base64
import io
import json
import urllib.error
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config.schema import ModelConfig
from pipeline.evaluate.command import main
from pipeline.launch.checks import check_weights
from pipeline.launch.options import LaunchError, parse
from pipeline.launch.plan import build_plan
from pipeline.register.formats import export
from pipeline.register.registration import RegisteredVersion, register
from pipeline.register.verify import sample_images
from pipeline.tracking.client import open_client, resolve_tracking_uri
from pipeline.tracking.state import load_state
from tests.support.label_maps import NAMES, pack_masks
from tests.support.model_servers import model_server, post
from tests.support.segmentations import TASK, finished_segmentation
from tests.support.tracking_runs import finished_run, new_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    pack_masks(folder)
    return folder


@pytest.fixture(scope="module")
def version(home) -> RegisteredVersion:
    finished_segmentation(home / "runs/fpn", home / "shards", new_store(home))
    return register(home / "runs/fpn")


def test_the_version_is_champion_by_its_miou_and_gets_an_evaluation_with_pictures(home, version, monkeypatch, capsys):
    assert version.uri == "models:/semantic_fpn_n@champion"
    assert version.metric is not None
    assert version.metric.name == "miou"
    uri = resolve_tracking_uri(home)
    client = open_client(uri)
    stored = client.get_model_version("semantic_fpn_n", version.version)
    assert (stored.tags["metric"], float(stored.tags["metric_value"])) == ("miou", version.metric.value)
    assert "images in a clean process" in stored.tags["verified"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main(version.uri, shards=str(home / "shards"), workers=0) == 0
    assert f"mIoU               {100 * version.metric.value:.2f} %" in capsys.readouterr().out
    run_id = load_state(home / "runs/fpn").run_id
    assert client.get_run(run_id).data.metrics["eval/small-validation/miou"] == version.metric.value
    listed = {Path(item.path).name for item in client.list_artifacts(run_id, "evaluation/small-validation")}
    assert listed == {"classes.csv", "report.json", "samples.png"}


def test_a_segmentation_begins_from_the_champion_of_the_classifiers_by_its_number(
    home, version, tmp_path, digits, monkeypatch
):
    uri = resolve_tracking_uri(home)
    finished_run(home / "runs/digits", digits, uri)
    assert register(home / "runs/digits").uri == "models:/transxnet_n@champion"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    for flags in ([], ["--train.initialise-from", "models:/transxnet_n@champion"]):
        plan = build_plan(parse(["--recipe", "demo_segmentation", "--run-dir", str(tmp_path / "run"), *flags]))
        assert plan.runs[0].config.initialise_from == "models:/transxnet_n/1"
    # Its own network has such a backbone too; that of another variant has not.
    check_weights(replace(plan.runs[0].config, initialise_from=f"models:/semantic_fpn_n/{version.version}"))
    with pytest.raises(LaunchError, match="weights of transxnet_n, and this run trains semantic_fpn_t"):
        check_weights(replace(plan.runs[0].config, model=ModelConfig(name="semantic_fpn_t")))
    # The run, its page and its version say where the weights came from.
    began = home / "runs/began"
    finished_segmentation(began, home / "shards", uri, initialise_from="models:/transxnet_n/1")
    register(began)
    client = open_client(uri)
    run = client.get_run(load_state(began).run_id)
    assert run.data.tags["initialised_from"] == "models:/transxnet_n/1"
    [entry] = run.inputs.model_inputs
    source = client.get_logged_model(entry.model_id)
    assert (source.name, source.source_run_id) == ("transxnet_n", load_state(home / "runs/digits").run_id)
    stored = client.get_model_version("semantic_fpn_n", "2")
    assert stored.tags["initialised_from"] == "models:/transxnet_n/1"
    assert "| began from&emsp; | models:/transxnet_n/1 |" in stored.description


def test_the_served_model_answers_over_http_with_a_label_map(home, version, tmp_path):
    with model_server(version.uri, resolve_tracking_uri(home), tmp_path) as url:
        images = sample_images(str(home / "shards"), "validation")[1]
        shares = []
        for content, truth in images:
            text = base64.b64encode(content).decode()
            [answer] = post(url, {"inputs": [text]})["predictions"]
            labels = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["label_map"]))))
            assert labels.shape == truth.shape == (answer["height"], answer["width"])
            assert sum(entry["share"] for entry in answer["classes"]) == pytest.approx(1)
            assert {entry["class_name"] for entry in answer["classes"]} <= set(NAMES.values())
            shares.append(TASK.served.agreement(answer["label_map"], truth))
        assert len(shares) == 5
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(url, {"inputs": ["bm8gaW1hZ2U="]})
        assert refused.value.code == 400
        assert "input 0 is not an image" in json.loads(refused.value.read())["message"]


def test_exports_take_images_of_any_size_and_are_kept_with_the_run(home, version):
    made = export(home / "runs/fpn", ["torch_export", "onnx"])
    client = open_client(resolve_tracking_uri(home))
    listed = {item.path for item in client.list_artifacts(load_state(home / "runs/fpn").run_id, "exports")}
    assert listed == set(made) == {"exports/model.pt2", "exports/model.onnx"}
