"""Named trainings: `RECIPES` holds each by the name that `--recipe` takes."""

from typing import TYPE_CHECKING, Literal

from jobs import Resources
from pipeline.recipes import ade20k, coco, digits, fine_tune, imagenet, object_scenes, scenes
from pipeline.recipes.recipe import ClusterChoice, OwnData, Recipe

__all__ = ["RECIPES", "ClusterChoice", "OwnData", "Recipe", "RecipeName"]

RECIPES: dict[str, Recipe] = {
    "demo": Recipe(
        train=digits.demo, resources=Resources(tasks_per_node=2), cluster="local", own_data=digits.HANDWRITTEN_DIGITS
    ),
    "demo_segmentation": Recipe(
        train=scenes.demo_segmentation,
        resources=Resources(tasks_per_node=2),
        cluster="local",
        starts_from="models:/transxnet_n@champion",
        own_data=scenes.SCENES_OF_DIGITS,
    ),
    "demo_detection": Recipe(
        train=object_scenes.demo_detection,
        resources=Resources(tasks_per_node=2),
        cluster="local",
        starts_from="models:/transxnet_n@champion",
        own_data=object_scenes.OBJECTS_OF_SCENES,
    ),
    "fine_tune": Recipe(train=fine_tune.fine_tune, needs_weights=True),
    "tiny": Recipe(train=imagenet.tiny, published=imagenet.TINY),
    "small": Recipe(train=imagenet.small, published=imagenet.SMALL),
    "base": Recipe(train=imagenet.base, published=imagenet.BASE),
    "base_384": Recipe(train=imagenet.base_384, published=imagenet.BASE_384, needs_weights=True),
    "ade20k_tiny": Recipe(train=ade20k.ade20k_tiny, needs_weights=True),
    "ade20k_small": Recipe(train=ade20k.ade20k_small, needs_weights=True),
    "ade20k_base": Recipe(train=ade20k.ade20k_base, needs_weights=True),
    "coco_retinanet_tiny": Recipe(train=coco.coco_retinanet_tiny, needs_weights=True),
    "coco_retinanet_small": Recipe(train=coco.coco_retinanet_small, needs_weights=True),
    "coco_retinanet_base": Recipe(train=coco.coco_retinanet_base, needs_weights=True),
    "coco_mask_rcnn_tiny": Recipe(train=coco.coco_mask_rcnn_tiny, needs_weights=True),
    "coco_mask_rcnn_small": Recipe(train=coco.coco_mask_rcnn_small, needs_weights=True),
    "coco_mask_rcnn_base": Recipe(train=coco.coco_mask_rcnn_base, needs_weights=True),
}

if TYPE_CHECKING:
    RecipeName = str
else:
    RecipeName = Literal[tuple(RECIPES)]
    """Values of `--recipe`, which `--help` lists."""
