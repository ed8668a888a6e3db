"""The dense recipes for `tests.benchmarks.scaling`, from counts.

Parameters, buffers and BatchNorms were counted in the modules, and the multiplications and additions of a forward pass
with torch's `FlopCounterMode`, on the meta device: at 512 x 512 for a segmentation, 800 x 1344 for a detection, with
512 regions of the box head and 128 of the mask head, those of an image in training. Two simplifications: an operation
is taken to last as long as one of the classifier in bf16, which is too kind to recipes in fp32; and launches are the
classifier's, without those of the heads.
"""

from dataclasses import dataclass

from tests.benchmarks.scaling import MODELS, Model

PYRAMID_GFLOP = {"T": 108.5, "S": 109.5, "B": 110.3}
BACKBONE_GFLOP = {"T": 132.8, "S": 294.3, "B": 504.6}
MASK_HEADS_GFLOP = 106.3 + 14.6 + 135.6
"""Region proposals, box head and mask head."""
RETINANET_GFLOP = {"T": 132.8 + 28.2 + 289.4, "S": 294.3 + 28.8 + 289.4, "B": 504.6 + 29.3 + 289.4}
SEGMENTATION_GFLOP = {"T": 64.8, "S": 96.5, "B": 139.2}
CLASSIFIER_GFLOP = {"T": 3.61, "S": 9.21, "B": 16.69}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the variants of a recipe share.

    Attributes:
        global_batch: images of a step.
        images_per_core_s: loader's rate on one core; measured by `segmentation_loading` and `detection_loading`.
        image_kb: mean size of an image with its target, from the sizes of the released archives (ADE20K: 923 MB for
            22,210; COCO: 19.3 GB for 118,287).
    """

    global_batch: int
    images_per_core_s: float
    image_kb: float


ADE20K = Recipe(global_batch=32, images_per_core_s=107.0, image_kb=42.0)
COCO_BOXES = Recipe(global_batch=16, images_per_core_s=83.2, image_kb=163.0)
COCO_MASKS = Recipe(global_batch=16, images_per_core_s=23.4, image_kb=163.0)


def _model(recipe: Recipe, variant: str, parameters: int, buffers: int, batchnorms: int, gflop: float) -> Model:
    classifier = MODELS[variant]
    return Model(
        parameters=parameters,
        buffers=buffers,
        images_per_s=classifier.images_per_s * CLASSIFIER_GFLOP[variant] / gflop,
        kernels=classifier.kernels,
        global_batch=recipe.global_batch,
        batchnorms=2 * batchnorms,
        images_per_core_s=recipe.images_per_core_s,
        image_kb=recipe.image_kb,
    )


def _mask_rcnn_gflop(variant: str) -> float:
    return BACKBONE_GFLOP[variant] + PYRAMID_GFLOP[variant] + MASK_HEADS_GFLOP


DENSE = {
    "Semantic FPN T": _model(ADE20K, "T", 16_599_942, 93_891, 167, SEGMENTATION_GFLOP["T"]),
    "Semantic FPN S": _model(ADE20K, "S", 30_618_738, 169_243, 219, SEGMENTATION_GFLOP["S"]),
    "Semantic FPN B": _model(ADE20K, "B", 51_658_048, 274_900, 300, SEGMENTATION_GFLOP["B"]),
    "RetinaNet T": _model(COCO_BOXES, "T", 22_439_812, 92_092, 160, RETINANET_GFLOP["T"]),
    "RetinaNet S": _model(COCO_BOXES, "S", 36_601_936, 167_444, 212, RETINANET_GFLOP["S"]),
    "RetinaNet B": _model(COCO_BOXES, "B", 58_006_790, 273_101, 293, RETINANET_GFLOP["B"]),
    "Mask R-CNN T": _model(COCO_MASKS, "T", 32_500_704, 92_092, 160, _mask_rcnn_gflop("T")),
    "Mask R-CNN S": _model(COCO_MASKS, "S", 46_519_500, 167_444, 212, _mask_rcnn_gflop("S")),
    "Mask R-CNN B": _model(COCO_MASKS, "B", 67_558_810, 273_101, 293, _mask_rcnn_gflop("B")),
}
"""Network by the name that the table shows."""
