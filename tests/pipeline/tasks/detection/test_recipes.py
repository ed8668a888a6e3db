"""The recipes for COCO have the authors' schedules and decay groups, as recorded from their configurations."""

import pytest
import torch

from pipeline.config.checks import check
from pipeline.engine.engine import published_names
from pipeline.engine.optimizer import parameter_groups
from pipeline.recipes import RECIPES
from pipeline.tasks import find_task
from pipeline.train.schedule import build_schedule

STEPS_OF_AN_EPOCH = 7330
# Learning rates by step.
RATES = {0: 1e-7, 1: 2.998e-7, 2: 4.996e-7, 19: 3.8962e-6, 500: 1e-4, 51310: 1e-4, 58639: 1e-4, 58640: 1e-5}
RATES |= {80629: 1e-5, 80630: 1e-6, 87959: 1e-6}
# Mean and deviation of the channels.
PIXELS = (123.675, 116.28, 103.53, 58.395, 57.12, 57.375)
# Weight decay: number of parameters, and of their elements.
DECAY = {
    "coco_mask_rcnn_tiny": {0.05: (958, 32453568), 0.0: (116, 47136)},
    "coco_mask_rcnn_small": {0.05: (1258, 46434508), 0.0: (152, 84992)},
    "coco_mask_rcnn_base": {0.05: (1717, 67421170), 0.0: (206, 137640)},
    "coco_retinanet_tiny": {0.0001: (1066, 22439812)},
    "coco_retinanet_small": {0.0001: (1402, 36601936)},
    "coco_retinanet_base": {0.0001: (1915, 58006790)},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name.endswith("tiny") else pytest.mark.thorough) for name in DECAY]
)
def test_recipes_are_the_authors(name):
    config = check(RECIPES[name].train(), 8)
    task = find_task("detection")
    task.check(config)
    assert (config.micro_batch(8), config.gradient_accumulation_steps(8)) == (2, 1)
    assert (config.detection.scale, config.augment.horizontal_flip) == ((1333, 800), 0.5)
    assert [255 * value for value in (*config.augment.mean, *config.augment.std)] == pytest.approx(PIXELS)
    assert config.model.drop_path_rate == {"tiny": 0.1, "small": 0.2, "base": 0.3}[name.rpartition("_")[2]]
    assert (config.precision, config.batch_norm, config.ema_decay) == ("fp32", "sync", 0.0)
    assert (config.optimizer.clip_grad_norm, config.optimizer.layer_decay) == (None, 1.0)
    schedule = build_schedule(config, 16 * STEPS_OF_AN_EPOCH)
    assert schedule.total_steps == 12 * STEPS_OF_AN_EPOCH
    assert {step: schedule.lr_at(step) for step in RATES} == pytest.approx(RATES, rel=1e-9)
    with torch.device("meta"):
        network = task.network(config, 80)
    groups = parameter_groups(network, config.optimizer, published_names(network, config))
    found = {
        group.weight_decay: (len(group.names), sum(network.get_parameter(n).numel() for n in group.names))
        for group in groups.values()
    }
    assert found == DECAY[name]
