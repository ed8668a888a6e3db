"""What is measured of a segmentation: each class, pictures, the run's report, its status."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config.schema import ConfigError
from pipeline.evaluate.command import main
from pipeline.evaluate.measure import evaluate
from pipeline.run.config import read_config
from pipeline.run.files import read_timed_metrics
from pipeline.run.report import markdown, write_evaluation
from pipeline.run.status import read_status
from pipeline.status.show import format_run
from pipeline.tasks.segmentation.picture import UNLABELLED, Shown, draw, palette
from pipeline.weights.load import load_model
from sharding.build import BuildOptions, build
from tests.support.label_maps import NAMES, pack_masks, write_masks
from tests.support.segmentations import finished_segmentation
from tests.support.small_shards import pack
from tests.support.tracking_runs import START


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("label-maps")
    pack_masks(folder)
    return folder / "shards"


@pytest.fixture(scope="module")
def run_dir(shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "fpn"
    finished_segmentation(folder, shards, None)
    return folder


def test_the_evaluation_prints_every_class_and_draws_images(run_dir, shards, tmp_path, capsys):
    assert main(str(run_dir), shards=str(shards), workers=0, output=tmp_path / "out.json", no_log=True) == 0
    said = capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text())
    card = load_model(str(run_dir)).card
    assert {name: result[name] for name in ("miou", "aacc", "macc")} == card.scores
    assert [entry["name"] for entry in result["classes"]] == list(NAMES.values())
    assert math.isclose(np.mean([entry["IoU"] for entry in result["classes"]]), result["miou"])
    for entry in result["classes"]:
        [line] = [line for line in said.splitlines() if line.startswith(f"  {entry['name']} ")]
        assert f"{100 * entry['IoU']:.2f} %" in line
    assert f"mIoU               {100 * result['miou']:.2f} %" in said
    report, _ = evaluate(load_model(str(run_dir)), str(shards), workers=0)
    report.write(tmp_path)
    assert {"classes.csv", "report.json", "samples.png"} <= {path.name for path in tmp_path.iterdir()}
    assert Image.open(tmp_path / "samples.png").width > 600


def test_truth_and_prediction_are_drawn_in_the_classes_colours(tmp_path):
    truth = np.array([[0, 1], [255, 1]], np.uint8).repeat(128, 0).repeat(128, 1)
    predicted = np.full_like(truth, 1)
    draw(tmp_path / "p.png", [Shown(np.full((64, 64, 3), 90, np.uint8), truth, predicted)], ["ground", "thing"])
    pixels = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    colours = palette(2)
    assert pixels[18 + 64, 64].tolist() == [90, 90, 90]
    assert pixels[18 + 64, 260 + 64].tolist() == colours[0].tolist()
    assert pixels[18 + 64, 260 + 192].tolist() == colours[1].tolist()
    assert pixels[18 + 192, 260 + 64].tolist() == list(UNLABELLED)
    assert pixels[18 + 192, 520 + 64].tolist() == colours[1].tolist()


def test_the_report_lists_the_weakest_classes_and_status_shows_the_metric(run_dir):
    write_evaluation(
        run_dir, 30, ["ground", "thing", "sky"], {"IoU": [0.5, 0.25, math.nan], "accuracy": [0.75, 0.5, 1]}
    )
    status = read_status(run_dir)
    text = markdown(status, read_timed_metrics(run_dir), read_config(run_dir), {})
    listed = text.partition("Classes at step 30")[2].splitlines()
    assert [line.split() for line in listed[3:6]] == [
        ["IoU", "accuracy"], ["thing", "25.00", "%", "50.00", "%"], ["ground", "50.00", "%", "75.00", "%"]
    ]  # fmt: skip
    [rows] = re.findall(r"\| score \| step 30 \| best mIoU: step \d+ \|\n\|---\|---\|---\|\n((?:\|.+\n)+)", text)
    assert [row.split(" | ")[0] for row in rows.splitlines()] == ["| mIoU", "| aAcc", "| mAcc"]
    shown = "\n".join(format_run(status, START))
    assert "mIoU" in shown
    assert "semantic_fpn_n" in shown


def test_shards_of_another_task_or_of_other_classes_are_refused(run_dir, shards, tmp_path):
    model = load_model(str(run_dir))
    pack(tmp_path, (5,), split="validation")
    with pytest.raises(ConfigError, match=r"packed for classification, and semantic_fpn_n has learned segmentation"):
        evaluate(model, str(tmp_path), workers=0)
    with pytest.raises(ConfigError, match="--subset is for classifiers"):
        evaluate(model, str(shards), workers=0, subset=True)
    source = write_masks(tmp_path / "more", {"validation": 2})
    (source / "classes.json").write_text(json.dumps({**NAMES, 6: "sea"}), encoding="utf-8")
    build(BuildOptions(source=str(source), output=str(tmp_path / "four"), split="validation", workers=1))
    with pytest.raises(ConfigError, match=r"has 4 classes that are not the 3 of semantic_fpn_n"):
        evaluate(model, str(tmp_path / "four"), workers=0)
