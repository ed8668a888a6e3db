"""What the training, the evaluation and the registry ask of a task: the protocol that each task implements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.config.schema import AugmentConfig, TrainConfig
from pipeline.tasks.metric import Scores
from pipeline.tasks.served import Served

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from pipeline.tasks.batch import Batch
    from pipeline.tasks.layout import Layout, SampleAugment, SampleSpec


class Evaluator(Protocol):
    """Sums over the batches of an evaluation, which can be summed over ranks as well."""

    def add(self, network: nn.Module, batch: Batch) -> None:
        """Evaluate a batch; each sample is in one batch over all ranks."""
        ...

    def sums(self) -> list[float]:
        """Return this rank's sums, which float64 adds exactly over ranks."""
        ...

    def scores(self, sums: list[float]) -> dict[str, float]:
        """Return the scores of the task by name, given the sums over all ranks.

        Raises:
            InputError: nothing was evaluated.
        """
        ...

    def suspicion(self, sums: list[float]) -> str | None:
        """Return what makes the labels of the split suspicious, given the sums over all ranks; None: nothing."""
        ...

    def classes(self, sums: list[float]) -> dict[str, list[float]]:
        """Return what is measured of each class, by its name in texts, given the sums over all ranks; NaN: nothing."""
        ...


class Task(Protocol):
    """What is learned, as a plug-in: everything outside `pipeline.tasks` knows a task by this protocol alone."""

    @property
    def name(self) -> str:
        """Name in the configuration, such as `classification`."""
        ...

    @property
    def scores(self) -> Scores:
        """What an evaluation of the task gives."""
        ...

    @property
    def served(self) -> Served:
        """What a registered model of the task is."""
        ...

    @property
    def evaluation_batch(self) -> int:
        """Samples of a batch of an evaluation."""
        ...

    @property
    def reads_target(self) -> bool:
        """Whether the target of a sample is a member of the shard of its own, and not a label in the index."""
        ...

    def check(self, config: TrainConfig) -> None:
        """Refuse a training whose values contradict the task.

        Raises:
            ConfigError: the message says what would work.
        """
        ...

    def layout(self, spec: SampleSpec, sizes: NDArray[np.int32] | None) -> Layout:
        """Return how a sample lies in memory.

        Args:
            spec: how samples are read.
            sizes: int32 [samples, 2], height and width of each image of the split, where the task reads targets.
        """
        ...

    def preprocessing(self, config: TrainConfig) -> dict[str, Any]:
        """Return what the card's `Preprocessing` holds for the task, beside mean and deviation."""
        ...

    def truth(self, row: Mapping[str, Any], manifest: Any, read: Callable[[int, int], bytes]) -> Any:
        """Return what an answer about a sample is compared with (`Served.agreement`).

        Args:
            row: of the sample in the index.
            manifest: of the split.
            read: reads bytes of the sample's shard, given their offset and number.
        """
        ...

    def augment(self, spec: SampleSpec) -> SampleAugment:
        """Build what reads samples into memory; no torch."""
        ...

    def device_transform(
        self, config: TrainConfig, num_classes: int
    ) -> Callable[[Batch, torch.device | str], tuple[Tensor, ...]]:
        """Build what turns a batch into the inputs of `losses`, on the device."""
        ...

    def network(self, config: TrainConfig, num_classes: int) -> nn.Module:
        """Build the network of a training, with weights drawn from torch's generator."""
        ...

    def losses(self, network: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
        """Return the named losses of a network for the inputs that `device_transform` gives, each a scalar in fp32."""
        ...

    def evaluator(self, augment: AugmentConfig, num_classes: int, device: torch.device) -> Evaluator:
        """Build what evaluates a network in evaluation mode."""
        ...

    def build(self, name: str, *, num_classes: int, image_size: int, backend: Any = "auto") -> nn.Module:
        """Build a network without drop path, for weights that are loaded."""
        ...

    def to_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a state dict under the names of the published files."""
        ...

    def from_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a state dict under the names of the network, given one under the published names."""
        ...

    def backbone(self, name: str) -> str:
        """Return the name of the classifier whose weights a network may start from."""
        ...

    def initialise(self, network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
        """Start a network from other weights; return a line for each tensor that was not loaded as it is.

        Raises:
            ValueError: the weights are of another network.
        """
        ...
