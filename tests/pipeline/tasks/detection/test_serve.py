"""A registered detector answers with the objects that the evaluation finds."""

import io
import itertools
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coding
from PIL import Image
from safetensors.torch import save_file

import pipeline.serve
from pipeline.config.schema import AugmentConfig, DataConfig, DetectionConfig
from pipeline.data.loader import build_evaluation_loader
from pipeline.tasks import find_task
from pipeline.tasks.detection.serve import ObjectDetector
from pipeline.weights.card import ModelCard, Preprocessing
from sharding import load_index, load_manifest
from tests.support.objects import CATEGORIES, pack_objects

TASK, OPTIONS = find_task("detection"), DetectionConfig(scale=(96, 64))


def detector(folder, name: str) -> tuple[torch.nn.Module, ObjectDetector]:
    """A network of random weights, and the same as it is served."""
    torch.manual_seed(0)
    network = TASK.build(name, num_classes=3, image_size=32).eval()
    if name.startswith("mask"):
        torch.nn.init.normal_(network.box_head.class_logits.weight, std=0.3)
    else:
        torch.nn.init.normal_(network.head.class_logits.weight, std=0.3)
        torch.nn.init.zeros_(network.head.class_logits.bias)
    weights = {key: value.contiguous() for key, value in TASK.to_published(network.state_dict()).items()}
    save_file(weights, folder / "weights")
    augment = AugmentConfig()
    card = ModelCard(
        name=name,
        task="detection",
        num_classes=3,
        image_size=32,
        classes=tuple((str(key), value) for key, value in CATEGORIES.items()),
        preprocessing=Preprocessing(evaluation_crop=1.0, mean=augment.mean, std=augment.std, scale=OPTIONS.scale),
        step=1,
        epoch=1.0,
        scores={"box_ap": 0.5, "box_ap50": 0.6, "box_ap75": 0.4},
    )
    (folder / "card").write_text(json.dumps(card.to_dict()))
    served = ObjectDetector()
    served.load_context(SimpleNamespace(artifacts={"card": folder / "card", "weights": folder / "weights"}))
    return network, served


@pytest.mark.parametrize("name", ["mask_rcnn_n", pytest.param("retinanet_n", marks=pytest.mark.thorough)])
def test_the_objects_are_the_evaluations(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "serve", pipeline.serve)
    pack_objects(tmp_path)
    network, served = detector(tmp_path, name)
    shards = str(tmp_path / "shards")
    manifest = load_manifest(shards, "validation")
    evaluator = TASK.evaluator(AugmentConfig(), 3, torch.device("cpu"))
    data = DataConfig(shards=shards, workers=0, cache_dir=str(tmp_path / "cache"))
    with build_evaluation_loader(
        data,
        AugmentConfig(),
        32,
        world_size=1,
        rank=0,
        device="cpu",
        task="detection",
        detection=OPTIONS,
        model=name,
    ) as loader:
        for batch in itertools.islice(loader, 2):
            evaluator.add(network, batch)
    images = []
    with open(f"{shards}/{manifest.shards[0].name}", "rb") as tar:
        for row in load_index(shards, manifest).to_pylist()[:2]:
            tar.seek(row["offset"])
            images.append(tar.read(row["size"]))
    answer = served.predict(None, images)
    assert list(answer.columns) == ["detections", "height", "width"]
    seen = 0
    for entry, found, height, width in zip(
        evaluator.sums(), answer["detections"], answer["height"], answer["width"], strict=True
    ):
        assert (height, width) == tuple(entry["size"])
        assert len(found) == len(entry["detections"])
        for mine, theirs in zip(found, entry["detections"], strict=True):
            x, y, w, h = theirs["bbox"]
            assert mine["box"] == pytest.approx([x, y, x + w, y + h], abs=0.05)
            assert mine["score"] == pytest.approx(theirs["score"], abs=1e-4)
            assert mine["class_name"] == list(CATEGORIES.values())[theirs["category_id"]]
            if name.startswith("mask"):
                mask = coding.decode(mine["mask"])
                assert mask.shape == (height, width)
                assert np.mean(mask != coding.decode(theirs["segmentation"])) < 0.01
            else:
                assert "mask" not in mine
            seen += 1
    assert seen > 10


def test_what_is_no_image_is_refused_with_its_position(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "serve", pipeline.serve)
    _, served = detector(tmp_path, "mask_rcnn_n")
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "PNG")
    with pytest.raises(pipeline.serve.RefusedInput, match="input 1 is not an image"):
        served.predict(None, [file.getvalue(), b"no image"])
