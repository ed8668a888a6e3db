"""Images that a detection meets now and then: each is trained through, with finite losses and gradients."""

import json

import pytest
import torch

from pipeline.config.schema import DetectionConfig, ModelConfig
from pipeline.data.loader import build_train_loader
from pipeline.tasks import find_task
from pipeline.tasks.detection.augment import learned
from sharding.build import BuildOptions, build
from tests.support.detections import training
from tests.support.objects import CATEGORIES
from tests.support.small_shards import photograph

TASK = find_task("detection")
WIDTH, HEIGHT = 96, 64


def of(*boxes: list[float], iscrowd: int = 0) -> list[dict]:
    return [{"category_id": 3, "bbox": box, "area": box[2] * box[3], "iscrowd": iscrowd} for box in boxes]


IMAGES = {
    "none": [],
    "crowds": of([3, 4, 50, 40], [20, 20, 30, 30], iscrowd=1),
    "pixels": of([0, 0, 1, 1], [WIDTH - 1, HEIGHT - 1, 1, 1], [40, 30, 1, 20]),
    "slivers": of([10, 10, 0.25, 30], [WIDTH - 0.001, 5, 40, 30], [-30, 5, 30.001, 30]),
    "thousand": of(*([k % 80, k // 20, 5 + k % 11, 4 + k % 7] for k in range(1000))),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("unusual")
    content: dict = {
        "images": [],
        "annotations": [],
        "categories": [{"id": k, "name": v} for k, v in CATEGORIES.items()],
    }
    (folder / "images/train").mkdir(parents=True)
    for number, (name, objects) in enumerate(IMAGES.items()):
        (folder / f"images/train/{name}.jpg").write_bytes(photograph(number, HEIGHT, WIDTH))
        content["images"].append({"id": number, "file_name": f"{name}.jpg", "width": WIDTH, "height": HEIGHT})
        for entry in objects:
            content["annotations"].append({**entry, "id": len(content["annotations"]), "image_id": number})
    (folder / "train.json").write_text(json.dumps(content))
    build(BuildOptions(source=str(folder), output=str(folder / "shards"), name="unusual", split="train", workers=1))
    return str(folder / "shards")


@pytest.mark.parametrize("name", ["mask_rcnn_n", pytest.param("retinanet_n", marks=pytest.mark.thorough)])
def test_unusual_images_are_trained_through(shards, tmp_path, name):
    count = len(IMAGES)
    config = training(
        shards,
        tmp_path,
        global_batch_size=count,
        micro_batch_size=count,
        model=ModelConfig(name=name, image_size=32),
        detection=DetectionConfig(scale=(WIDTH, HEIGHT), target_kb=256),
    )
    torch.manual_seed(0)
    network, transform = TASK.network(config, 3).train(), TASK.device_transform(config, 3)
    with build_train_loader(config, world_size=1, rank=0, start_step=0, total_steps=1, device="cpu") as loader:
        [inputs] = [transform(batch, "cpu") for step in loader for batch in step]
    assert sorted(inputs[2].tolist()) == [0, 0, 0, 3, 1000]
    losses = TASK.losses(network, *inputs)
    assert all(torch.isfinite(loss) for loss in losses.values()), losses
    torch.stack(list(losses.values())).sum().backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), parameter_name


def test_a_box_that_resizing_leaves_nothing_of_is_not_learned():
    objects = [{"bbox": [99.99999, 5, 9, 30], "area": 270.0, "iscrowd": 0, "category": 0}]
    assert not learned(objects, (60, 100))
