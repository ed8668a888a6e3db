"""What is measured of a detection: each class, pictures, the run's report, its status."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config.schema import ConfigError
from pipeline.evaluate.command import main
from pipeline.evaluate.measure import evaluate
from pipeline.run.config import read_config
from pipeline.run.files import read_timed_metrics
from pipeline.run.report import markdown
from pipeline.run.status import read_status
from pipeline.tasks.detection.picture import GAP, LINE, SIDE, Shown, draw
from pipeline.weights.load import load_model
from tests.support.detections import finished_detection
from tests.support.objects import CATEGORIES, pack_objects


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("objects")
    pack_objects(folder)
    finished_detection(folder / "rcnn", folder / "shards", None)
    return folder


@pytest.mark.thorough
def test_the_evaluation_prints_every_class_and_draws_images(home, tmp_path, capsys):
    options = {"shards": str(home / "shards"), "workers": 0, "no_log": True}
    assert main(str(home / "rcnn"), output=tmp_path / "out.json", **options) == 0
    said = capsys.readouterr().out
    result, card = json.loads((tmp_path / "out.json").read_text()), load_model(str(home / "rcnn")).card
    assert {name: result[name] for name in card.scores} == card.scores
    assert [entry["name"] for entry in result["classes"]] == list(CATEGORIES.values())
    for entry in result["classes"]:
        [line] = [line for line in said.splitlines() if line.startswith(f"  {entry['name']} ")]
        assert f"{100 * entry['mask AP']:.2f} %" in line
    report, _ = evaluate(load_model(str(home / "rcnn")), options["shards"], workers=0)
    report.write(tmp_path)
    assert {"classes.csv", "report.json", "samples.png"} <= {path.name for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match="--subset is for classifiers"):
        evaluate(load_model(str(home / "rcnn")), options["shards"], workers=0, subset=True)


@pytest.mark.thorough
def test_the_report_and_the_status_go_by_the_mask_ap(home):
    status = read_status(home / "rcnn")
    assert status.metric is not None
    assert (status.metric.name, status.metric_label) == ("mask_ap", "mask AP")
    text = markdown(status, read_timed_metrics(home / "rcnn"), read_config(home / "rcnn"), {})
    assert f"mask_rcnn_n: mask AP {100 * status.metric.value:.2f} %" in text
    listed = text.partition("Classes at step 30")[2].splitlines()
    assert listed[3].split() == ["box", "AP", "mask", "AP"]


def test_true_and_found_objects_are_drawn_with_boxes_and_masks(tmp_path):
    gray, mask = np.full((32, 32, 3), 90, np.uint8), np.zeros((1, 64, 64), bool)
    mask[0, 32:48, 32:48] = True
    true = {"bbox": [8, 8, 16, 16], "category": 0, "iscrowd": 0, "segmentation": [[8, 8, 24, 8, 24, 24, 8, 24]]}
    crowd = {"bbox": [40, 40, 20, 20], "category": 1, "iscrowd": 1}
    found = [{"bbox": [32, 32, 16, 16], "category_id": 1, "score": 0.9}]
    draw(tmp_path / "p.png", [Shown(gray, (64, 64), [true, crowd], found, mask)], ["cat", "dog"])
    pixels = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    factor, right = SIDE // 64, SIDE + GAP

    def at(x: int, y: int, left: int = 0) -> list[int]:
        return pixels[LINE + y * factor, left + x * factor].tolist()

    assert at(4, 4) == at(50, 50) == at(50, 50, right) == at(16, 16, right) == [90, 90, 90]
    assert at(20, 20)[0] > 110  # red over gray
    assert at(42, 44, right)[1] > 110  # green over gray
    assert at(8, 20) == [230, 25, 75]
    assert at(32, 44, right) == [60, 180, 75]
