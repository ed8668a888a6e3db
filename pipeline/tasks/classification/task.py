"""Classification as a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.common.processes import PROJECT_ROOT
from pipeline.config.schema import AugmentConfig, ConfigError, TrainConfig
from pipeline.tasks.metric import Score, Scores
from pipeline.tasks.served import Served
from pipeline.tasks.task import Described, Distillation, Evaluator, Measurement, Prepared

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from pipeline.tasks.batch import Batch
    from pipeline.tasks.layout import Layout, SampleAugment, SampleSpec

PREFIX = "transxnet_"
"""Beginning of the names of the networks."""


_GUESS = {"class_name": "string", "wnid": "string", "probability": "double"}


def _is_right(answer: str, truth: str) -> float:
    return float(answer == truth)


def _describe_input(image_size: int, preprocessing: Any) -> str:
    return f"{image_size} px, centre crop {preprocessing.evaluation_crop}"


class Classification:
    """One label for each image (`pipeline.tasks.Task`)."""

    name = "classification"
    source = "ImageNet, or a folder of images for each class"
    scores = Scores(
        (
            Score(name="top1", label="top-1"),
            Score(name="top5", label="top-5"),
            Score(name="loss", label="loss", higher_is_better=False, is_share=False),
        )
    )
    served = Served(
        kind="an image classifier",
        kinds="image classifiers",
        model_type="image-classification",
        program=PROJECT_ROOT / "pipeline" / "serve.py",
        columns={**_GUESS, "top5": (_GUESS,)},
        compared="wnid",
        score="top1",
        agreement=_is_right,
        describe_input=_describe_input,
    )
    evaluation_batch = 128
    size_flag = "--train.model.image-size"
    reads_target = False
    sorts_by_aspect = False
    other_heads = frozenset[str]()

    @property
    def distillation(self) -> Distillation:
        """The teacher's logits, softened or as a label."""
        from pipeline.tasks.classification.distillation import ClassifierDistillation

        return ClassifierDistillation()

    def check(self, config: TrainConfig) -> None:
        """Refuse a network that classifies no images."""
        if not config.model.name.startswith(PREFIX):
            raise ConfigError(
                f"--train.model.name {config.model.name} classifies no images: take a transxnet, or --train.task "
                "segmentation"
            )

    def layout(self, spec: SampleSpec, sizes: NDArray[np.int32] | None) -> Layout:
        """Square pixels, and an integer for each sample."""
        from pipeline.tasks.layout import Layout

        return Layout(pixels=(spec.image_size, spec.image_size, 3), labels=(), dtype="int64")

    def preprocessing(self, config: TrainConfig) -> dict[str, Any]:
        """The centre crop."""
        return {"evaluation_crop": config.augment.evaluation_crop}

    def truth(self, row: Mapping[str, Any], manifest: Any, read: Callable[[int, int], bytes]) -> str:
        """The id of the sample's class."""
        return manifest.classes[row["label"]].wnid

    def augment(self, spec: SampleSpec) -> SampleAugment:
        """The training augmentation, or the centre crop of the evaluation."""
        from pipeline.tasks.classification.augment import LabelledAugment

        return LabelledAugment(spec)

    def device_transform(
        self, config: TrainConfig, num_classes: int
    ) -> Callable[[Batch, torch.device | str], tuple[Tensor, ...]]:
        """Flip, mix, normalise, erase; targets are smoothed distributions."""
        from pipeline.tasks.classification.device import DeviceTransform

        return DeviceTransform(config.augment, config.mix, num_classes, config.seed)

    def largest_batch(self, config: TrainConfig, num_classes: int, samples: int) -> Batch:
        """Images of the one size that there is."""
        from pipeline.tasks.classification.device import largest_batch

        return largest_batch(config.model.image_size, num_classes, samples)

    def network(self, config: TrainConfig, num_classes: int) -> nn.Module:
        """A TransXNet."""
        import transxnet

        settings: dict[str, Any] = {
            "num_classes": num_classes,
            "image_size": config.model.image_size,
            "backend": config.model.backend,
        }
        if config.model.drop_path_rate is not None:
            settings["drop_path_rate"] = config.model.drop_path_rate
        return transxnet.build(config.model.name, **settings)

    def losses(self, network: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
        """The cross-entropy of images [N, 3, H, W] against target distributions [N, classes]."""
        from pipeline.tasks.classification.losses import soft_cross_entropy

        images, targets = inputs
        return {"loss_ce": soft_cross_entropy(network(images), targets)}

    def evaluator(self, augment: AugmentConfig, num_classes: int, device: torch.device) -> Evaluator:
        """Counts of correct guesses."""
        from pipeline.tasks.classification.accuracy import AccuracyEvaluator

        return AccuracyEvaluator(augment, num_classes, device)

    def measurement(
        self, model: Described, manifest: Any, augment: AugmentConfig, device: torch.device, *, subset: bool
    ) -> Measurement:
        """Accuracy, confusion and calibration, among the model's classes or the split's."""
        from pipeline.tasks.classification.classes import match_classes
        from pipeline.tasks.classification.measure import ClassifierMeasurement

        return ClassifierMeasurement(match_classes(model, manifest, subset=subset), augment, device)

    def overlay(
        self, network: nn.Module, prepared: Prepared, names: Sequence[str], pixels: NDArray[np.uint8]
    ) -> NDArray[np.uint8] | None:
        """Nothing: a label has no place."""
        return None

    def build(self, name: str, *, num_classes: int, image_size: int, backend: Any = "auto") -> nn.Module:
        """A TransXNet without drop path."""
        import transxnet

        return transxnet.build(
            name, num_classes=num_classes, image_size=image_size, drop_path_rate=0.0, backend=backend
        )

    def exported(self, network: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
        """The network, which returns logits."""
        return network, ("logits",)

    def to_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Upstream's names."""
        import transxnet

        return transxnet.to_upstream(state)

    def from_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names of this project."""
        import transxnet

        return transxnet.from_upstream(state)

    def backbone(self, name: str) -> str:
        """The network itself."""
        return name

    def initialise(self, network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
        """Load a classifier's weights; a classifier of other classes is initialised afresh."""
        import transxnet

        return transxnet.load_weights(network, state)
