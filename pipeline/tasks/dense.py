"""What a segmentation and a detection share: a TransXNet as the backbone of a network, and images of any size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.config.schema import AugmentConfig, ConfigError
from pipeline.tasks.metric import Scores
from pipeline.tasks.task import Described, Evaluator, Measurement

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

INPUT_MULTIPLE = 32
"""Number whose multiples the sides of a network's input are."""


def describe_input(image_size: int, preprocessing: Any) -> str:
    """Return the preparation of an image in words (`Served.describe_input`)."""
    longest, shortest = max(preprocessing.scale), min(preprocessing.scale)
    return f"any size, resized to {shortest} px on the shorter side and at most {longest} px on the longer one"


class DenseTask:
    """The common part of both tasks (`pipeline.tasks.Task`)."""

    scores: Scores
    evaluation_batch = 1
    reads_target = True
    distillation = None
    classes_compete: str
    """Why no part of the classes can be measured alone."""

    def evaluator(self, augment: AugmentConfig, num_classes: int, device: torch.device) -> Evaluator:
        """Build what evaluates a network."""
        raise NotImplementedError

    def measurement(
        self, model: Described, manifest: Any, augment: AugmentConfig, device: torch.device, *, subset: bool
    ) -> Measurement:
        """Scores, overall and of each class, and a picture."""
        from pipeline.tasks.report import ScoreMeasurement

        if subset:
            raise ConfigError(f"--subset is for classifiers: {self.classes_compete}")
        evaluator = self.evaluator(augment, model.num_classes, device)
        names = [entry.name for entry in manifest.classes]
        return ScoreMeasurement(self.scores, evaluator, model, manifest.stem, names)

    def to_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Upstream's names."""
        from transxnet.dense import to_upstream

        return to_upstream(state)

    def from_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names of this project."""
        from transxnet.dense import from_upstream

        return from_upstream(state)

    def backbone(self, name: str) -> str:
        """The TransXNet of the same variant, which the last letter names."""
        return f"transxnet_{name[-1]}"

    def initialise(self, network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
        """Load a classifier's weights into the backbone; neck and heads are initialised afresh."""
        import transxnet

        return [*transxnet.load_weights(network.get_submodule("backbone"), state), "neck and heads initialised afresh"]
