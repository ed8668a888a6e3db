"""Detection and instance segmentation as a task."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.processes import PROJECT_ROOT
from pipeline.config.schema import AugmentConfig, ConfigError, TrainConfig
from pipeline.tasks.dense import INPUT_MULTIPLE, DenseTask, describe_input
from pipeline.tasks.detection.found import corners_of, found_share
from pipeline.tasks.metric import Score, Scores
from pipeline.tasks.served import Column, Maybe, Served
from pipeline.tasks.task import Evaluator, Prepared

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from pipeline.tasks.batch import Batch
    from pipeline.tasks.layout import Layout, SampleAugment, SampleSpec

RETINANET, MASK_RCNN = "retinanet_", "mask_rcnn_"
"""Beginnings of the names of the networks."""
_DETECTION: dict[str, Column | Maybe] = {
    "box": ("double",),
    "score": "double",
    "class_name": "string",
    "mask": Maybe({"size": ("long",), "counts": "string"}),
}


def _agreement(answer: Any, truth: list[tuple[str, list[float]]]) -> float:
    """Share of the true objects (class name, x1, y1, x2, y2) that an answer has found."""
    return found_share([(entry["class_name"], entry["box"]) for entry in answer], truth)


class Detection(DenseTask):
    """The objects in each image (`pipeline.tasks.Task`)."""

    name = "detection"
    source = "images with objects, such as COCO"
    scores = Scores(
        (
            Score(name="box_ap", label="box AP"),
            Score(name="box_ap50", label="box AP50"),
            Score(name="box_ap75", label="box AP75"),
            Score(name="mask_ap", label="mask AP"),
            Score(name="mask_ap50", label="mask AP50"),
            Score(name="box_found", label="objects found"),
        ),
        preferred="mask_ap",
    )
    served = Served(
        kind="a detector of objects in images",
        kinds="detectors of objects",
        model_type="object-detection",
        program=Path(__file__).with_name("serve.py"),
        columns={"detections": (_DETECTION,), "height": "long", "width": "long"},
        compared="detections",
        score="box_found",
        agreement=_agreement,
        describe_input=describe_input,
        code=(PROJECT_ROOT / "pipeline" / "serve.py",),
        packages=("opencv-python-headless", "faster-coco-eval"),
        input_multiple=INPUT_MULTIPLE,
        input_from=5,
        has_builder=False,
    )
    sorts_by_aspect = True
    size_flag = "--train.detection.scale"
    classes_compete = "an object of any class may be in an image"
    other_heads = frozenset({"decode_head", "auxiliary_head"})

    def check(self, config: TrainConfig) -> None:
        """Refuse a network that does not detect, mixing, which has no meaning for boxes, and CUDA graphs."""
        if not config.model.name.startswith((RETINANET, MASK_RCNN)):
            raise ConfigError(
                f"--train.model.name {config.model.name} detects no objects: take {RETINANET}t or {MASK_RCNN}t (_s, "
                "_b, _n), or another --train.task"
            )
        if config.mix.mixup or config.mix.cutmix:
            raise ConfigError("boxes cannot be mixed: --train.mix.mixup 0 --train.mix.cutmix 0")
        if config.cuda_graphs:
            raise ConfigError("cuda_graphs needs batches of one size, and those of a detection differ: leave it out")

    def layout(self, spec: SampleSpec, sizes: NDArray[np.int32] | None) -> Layout:
        """Room for the largest resized image, and for its objects."""
        import numpy as np

        from pipeline.tasks.layout import Layout
        from pipeline.tasks.sizes import fit

        assert sizes is not None
        most = 0
        for height, width in np.unique(sizes[:, :2], axis=0).tolist():
            rows, columns = fit(height, width, spec.detection.scale)
            most = max(most, 3 * rows * columns)
        target = 1024 * spec.detection.target_kb if spec.training else int(sizes[:, 2].max())
        return Layout(pixels=(most,), labels=(target,), dtype="uint8", is_raw=True)

    def preprocessing(self, config: TrainConfig) -> dict[str, Any]:
        """The size that images are resized to."""
        return {"evaluation_crop": 1.0, "interpolation": "bilinear", "scale": config.detection.scale}

    def truth(
        self, row: Mapping[str, Any], manifest: Any, read: Callable[[int, int], bytes]
    ) -> list[tuple[str, list[float]]]:
        """Class name and box (x1, y1, x2, y2) of each object that is no crowd."""
        content = json.loads(read(row["target_offset"], row["target_size"]))
        objects = []
        for found in content["objects"]:
            if not found["iscrowd"]:
                objects.append((manifest.classes[found["category"]].name, corners_of(found["bbox"])))
        return objects

    def augment(self, spec: SampleSpec) -> SampleAugment:
        """Resized and flipped images, or the whole images of the evaluation."""
        from pipeline.tasks.detection.augment import TrainImages, WholeImages

        return TrainImages(spec) if spec.training else WholeImages(spec)

    def device_transform(
        self, config: TrainConfig, num_classes: int
    ) -> Callable[[Batch, torch.device | str], tuple[Tensor, ...]]:
        """Normalisation, padding, and the objects."""
        from pipeline.tasks.detection.device import TrainBatch

        return TrainBatch(config, config.model.name.startswith(MASK_RCNN))

    def largest_batch(self, config: TrainConfig, num_classes: int, samples: int) -> Batch:
        """Upright and lying images, padded to each other's sides, one of them with many objects."""
        from pipeline.tasks.detection.device import largest_batch

        has_masks = config.model.name.startswith(MASK_RCNN)
        return largest_batch(config.detection.scale, num_classes, samples, has_masks=has_masks)

    def network(self, config: TrainConfig, num_classes: int) -> nn.Module:
        """RetinaNet or Mask R-CNN."""
        model = config.model
        return _build(model.name, num_classes, model.drop_path_rate, model.image_size, model.backend)

    def losses(self, network: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
        """The losses of a batch as `TrainBatch` gives it."""
        from pipeline.tasks.detection.device import split_truths

        images, sizes, counts, drawn, *per_object = inputs
        shapes, keys, truths = split_truths(sizes, counts, drawn, per_object)
        if len(truths) == 2:
            return network(images, shapes, *truths)
        return network(images, shapes, *truths, keys)

    def evaluator(self, augment: AugmentConfig, num_classes: int, device: torch.device) -> Evaluator:
        """Average precision."""
        from pipeline.tasks.detection.evaluation import PrecisionEvaluator

        return PrecisionEvaluator(augment, num_classes, device)

    def overlay(
        self, network: nn.Module, prepared: Prepared, names: Sequence[str], pixels: NDArray[np.uint8]
    ) -> NDArray[np.uint8] | None:
        """The image with boxes, classes and masks."""
        from pipeline.tasks.detection.overlay import draw_overlay

        return draw_overlay(network, prepared, names, pixels)

    def build(self, name: str, *, num_classes: int, image_size: int, backend: Any = "auto") -> nn.Module:
        """RetinaNet or Mask R-CNN without drop path."""
        return _build(name, num_classes, 0.0, image_size, backend)

    def exported(self, network: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
        """The network up to its raw heads; choosing boxes among them is left to who uses the file."""
        from transxnet.dense import MaskRCNN, RawHeads, RetinaNet

        assert isinstance(network, RetinaNet | MaskRCNN)
        raw = RawHeads(network)
        return raw, raw.outputs


def _build(name: str, num_classes: int, drop_path_rate: float | None, image_size: int, backend: Any) -> nn.Module:
    from transxnet import dense

    build = dense.mask_rcnn if name.startswith(MASK_RCNN) else dense.retinanet
    return build(name[-1], num_classes, drop_path_rate=drop_path_rate, image_size=image_size, backend=backend)
