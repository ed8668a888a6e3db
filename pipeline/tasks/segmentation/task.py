"""Semantic segmentation as a task."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.processes import PROJECT_ROOT
from pipeline.config.schema import AugmentConfig, ConfigError, TrainConfig
from pipeline.tasks.dense import INPUT_MULTIPLE, DenseTask, describe_input
from pipeline.tasks.metric import Score, Scores
from pipeline.tasks.served import Served
from pipeline.tasks.task import Evaluator, Prepared

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from pipeline.tasks.batch import Batch
    from pipeline.tasks.layout import Layout, SampleAugment, SampleSpec

PREFIX = "semantic_fpn_"
"""Beginning of the names of the networks."""
IGNORED = 255
"""Class of a pixel that belongs to none."""


_SHARE = {"class_name": "string", "share": "double"}


def _agreement(answer: str, truth: NDArray[np.uint8]) -> float:
    """Share of the labelled pixels of `truth` (classes, uint8 [H, W]) that a label map (PNG in base64) has right."""
    from sharding.label_maps import read_label_map

    labelled = truth != IGNORED
    values = read_label_map(base64.b64decode(answer), truth.shape[1], truth.shape[0])
    return float((values == truth)[labelled].mean()) if labelled.any() else 1.0


class Segmentation(DenseTask):
    """A class for each pixel (`pipeline.tasks.Task`)."""

    name = "segmentation"
    source = "images with label maps, such as ADE20K"
    scores = Scores(
        (
            Score(name="miou", label="mIoU"),
            Score(name="aacc", label="aAcc"),
            Score(name="macc", label="mAcc"),
        )
    )
    served = Served(
        kind="a semantic segmentation of images",
        kinds="semantic segmentations",
        model_type="image-segmentation",
        program=Path(__file__).with_name("serve.py"),
        columns={"label_map": "string", "height": "long", "width": "long", "classes": (_SHARE,)},
        compared="label_map",
        score="aacc",
        agreement=_agreement,
        describe_input=describe_input,
        code=(PROJECT_ROOT / "pipeline" / "serve.py",),
        packages=("opencv-python-headless",),
        input_multiple=INPUT_MULTIPLE,
        has_builder=False,
    )
    sorts_by_aspect = False
    size_flag = "--train.segmentation.crop-size"
    classes_compete = "every class of a segmentation competes for a pixel"
    other_heads = frozenset({"bbox_head", "rpn_head", "roi_head"})

    def check(self, config: TrainConfig) -> None:
        """Refuse a network that does not segment, and mixing, which has no meaning for label maps."""
        if not config.model.name.startswith(PREFIX):
            raise ConfigError(
                f"--train.model.name {config.model.name} segments no images: take {PREFIX}t, _s, _b or _n, or "
                "--train.task classification"
            )
        if config.mix.mixup or config.mix.cutmix:
            raise ConfigError("label maps cannot be mixed: --train.mix.mixup 0 --train.mix.cutmix 0")

    def layout(self, spec: SampleSpec, sizes: NDArray[np.int32] | None) -> Layout:
        """Square crops and their classes; in an evaluation room for the largest image and its label map."""
        import numpy as np

        from pipeline.tasks.layout import Layout
        from pipeline.tasks.segmentation import geometry

        options = spec.segmentation
        if spec.training:
            side = options.crop_size
            return Layout(pixels=(side, side, 3), labels=(side, side), dtype="uint8")
        assert sizes is not None
        most = 0
        for height, width in np.unique(sizes[:, :2], axis=0).tolist():
            rows, columns = geometry.stretched(*geometry.fit(height, width, options.scale), options.divisor)
            most = max(most, 3 * rows * columns)
        largest = int(sizes[:, :2].astype(np.int64).prod(axis=1).max())
        return Layout(pixels=(most,), labels=(largest,), dtype="uint8", varies=True)

    def preprocessing(self, config: TrainConfig) -> dict[str, Any]:
        """The size that images are resized to."""
        options = config.segmentation
        return {"evaluation_crop": 1.0, "interpolation": "bilinear", "scale": options.scale, "divisor": options.divisor}

    def truth(self, row: Mapping[str, Any], manifest: Any, read: Callable[[int, int], bytes]) -> NDArray[np.uint8]:
        """The class of each pixel, uint8 [H, W]."""
        import numpy as np

        from sharding.label_maps import read_label_map

        encoded = read(row["target_offset"], row["target_size"])
        values = read_label_map(encoded, row["width"], row["height"])
        return np.frombuffer(manifest.class_of, np.uint8)[values]

    def augment(self, spec: SampleSpec) -> SampleAugment:
        """Random crops, or the whole images of the evaluation."""
        from pipeline.tasks.segmentation.augment import TrainCrops, WholeImages

        return TrainCrops(spec) if spec.training else WholeImages(spec)

    def device_transform(
        self, config: TrainConfig, num_classes: int
    ) -> Callable[[Batch, torch.device | str], tuple[Tensor, ...]]:
        """Normalisation."""
        from pipeline.tasks.segmentation.device import NormalisedCrops

        return NormalisedCrops(config.augment)

    def largest_batch(self, config: TrainConfig, num_classes: int, samples: int) -> Batch:
        """Crops of the one size that there is."""
        from pipeline.tasks.segmentation.device import largest_batch

        return largest_batch(config.segmentation.crop_size, num_classes, samples)

    def network(self, config: TrainConfig, num_classes: int) -> nn.Module:
        """Semantic FPN."""
        from transxnet.dense import semantic_fpn

        return semantic_fpn(
            config.model.name.removeprefix(PREFIX),
            num_classes,
            drop_path_rate=config.model.drop_path_rate,
            image_size=config.model.image_size,
            backend=config.model.backend,
        )

    def losses(self, network: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
        """The cross-entropy of images [N, 3, H, W] against classes [N, H, W]."""
        return network(*inputs)

    def evaluator(self, augment: AugmentConfig, num_classes: int, device: torch.device) -> Evaluator:
        """Counts of pixels."""
        from pipeline.tasks.segmentation.evaluation import ConfusionEvaluator

        return ConfusionEvaluator(augment, num_classes, device)

    def overlay(
        self, network: nn.Module, prepared: Prepared, names: Sequence[str], pixels: NDArray[np.uint8]
    ) -> NDArray[np.uint8] | None:
        """The image, coloured by the class of each pixel."""
        from pipeline.tasks.segmentation.overlay import draw_overlay

        return draw_overlay(network, prepared, names, pixels)

    def build(self, name: str, *, num_classes: int, image_size: int, backend: Any = "auto") -> nn.Module:
        """Semantic FPN without drop path."""
        from transxnet.dense import semantic_fpn

        variant = name.removeprefix(PREFIX)
        return semantic_fpn(variant, num_classes, drop_path_rate=0.0, image_size=image_size, backend=backend)

    def exported(self, network: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
        """The network, which returns logits."""
        return network, ("logits",)
