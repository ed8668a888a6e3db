"""A registered detection: verified, served over HTTP, measured, exported up to its raw heads."""

import base64
import json
import urllib.error
from pathlib import Path

import pytest
from faster_coco_eval.core import mask as coding

from pipeline.config.schema import ModelConfig
from pipeline.evaluate.command import main
from pipeline.register.formats import export
from pipeline.register.registration import RegisteredVersion, register
from pipeline.register.verify import sample_images
from pipeline.tracking.client import open_client, resolve_tracking_uri
from pipeline.tracking.state import load_state
from tests.support.detections import TASK, finished_detection
from tests.support.model_servers import model_server, post
from tests.support.objects import CATEGORIES, pack_objects
from tests.support.tracking_runs import new_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    pack_objects(folder)
    return folder


@pytest.fixture(scope="module")
def version(home) -> RegisteredVersion:
    finished_detection(home / "runs/rcnn", home / "shards", new_store(home))
    return register(home / "runs/rcnn")


def test_the_version_is_champion_by_its_mask_ap_and_gets_an_evaluation_with_pictures(
    home, version, monkeypatch, capsys
):
    assert version.uri == "models:/mask_rcnn_n@champion"
    assert version.metric is not None
    assert version.metric.name == "mask_ap"
    uri = resolve_tracking_uri(home)
    client = open_client(uri)
    stored = client.get_model_version("mask_rcnn_n", version.version)
    assert (stored.tags["metric"], float(stored.tags["metric_value"])) == ("mask_ap", version.metric.value)
    assert "images in a clean process" in stored.tags["verified"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main(version.uri, shards=str(home / "shards"), workers=0) == 0
    said = capsys.readouterr().out
    assert f"{100 * version.metric.value:.2f} %" in said
    assert all(name in said for name in CATEGORIES.values())
    run_id = load_state(home / "runs/rcnn").run_id
    assert client.get_run(run_id).data.metrics["eval/small-validation/mask_ap"] == version.metric.value
    listed = {Path(item.path).name for item in client.list_artifacts(run_id, "evaluation/small-validation")}
    assert listed == {"classes.csv", "report.json", "samples.png"}


def test_a_network_without_masks_is_champion_by_its_box_ap(home, version):
    run_dir, uri = home / "runs/retina", resolve_tracking_uri(home)
    finished_detection(run_dir, home / "shards", uri, model=ModelConfig(name="retinanet_n", image_size=32))
    found = register(run_dir)
    assert found.uri == "models:/retinanet_n@champion"
    assert found.metric is not None
    assert found.metric.name == "box_ap"


def test_the_served_model_answers_over_http_with_boxes_and_masks(home, version, tmp_path):
    images = sample_images(str(home / "shards"), "validation")[1]
    with model_server(version.uri, resolve_tracking_uri(home), tmp_path) as url:
        seen, shares = 0, []
        for content, truth in images:
            [answer] = post(url, {"inputs": [base64.b64encode(content).decode()]})["predictions"]
            assert set(answer) == {"detections", "height", "width"}
            scores = [entry["score"] for entry in answer["detections"]]
            assert scores == sorted(scores, reverse=True)
            for entry in answer["detections"]:
                left, top, right, bottom = entry["box"]
                assert 0 <= left <= right <= answer["width"]
                assert 0 <= top <= bottom <= answer["height"]
                assert entry["class_name"] in CATEGORIES.values()
                assert coding.decode(entry["mask"]).shape == (answer["height"], answer["width"])
                seen += 1
            shares.append(TASK.served.agreement(answer["detections"], truth))
        assert len(shares) == 5
        assert seen > 20
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(url, {"inputs": ["bm8gaW1hZ2U="]})
        assert refused.value.code == 400
        assert "input 0 is not an image" in json.loads(refused.value.read())["message"]


def test_exports_give_the_raw_heads_for_images_of_any_size(home, version):
    made = export(home / "runs/rcnn", ["torch_export", "onnx"])
    client = open_client(resolve_tracking_uri(home))
    listed = {item.path for item in client.list_artifacts(load_state(home / "runs/rcnn").run_id, "exports")}
    assert listed == set(made) == {"exports/model.pt2", "exports/model.onnx"}
