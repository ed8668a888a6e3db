"""What the training, the evaluation and the registry ask of a task: the protocol that each task implements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
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
    """Sums over the batches of an evaluation, which can be summed over ranks as well.

    Where `is_gathered`, the "sums" are a list with an entry for each sample instead, and those of all ranks are joined.
    """

    @property
    def is_gathered(self) -> bool:
        """Whether the sums of ranks are lists that are joined on rank 0, and not numbers that are added."""
        ...

    def add(self, network: nn.Module, batch: Batch) -> None:
        """Evaluate a batch; each sample is in one batch over all ranks."""
        ...

    def sums(self) -> list[Any]:
        """Return this rank's sums, which float64 adds exactly over ranks, or its list of entries."""
        ...

    def scores(self, sums: list[Any]) -> dict[str, float]:
        """Return the scores of the task by name, given the sums over all ranks.

        Raises:
            InputError: nothing was evaluated.
        """
        ...

    def suspicion(self, sums: list[Any]) -> str | None:
        """Return what makes the labels of the split suspicious, given the sums over all ranks; None: nothing."""
        ...

    def classes(self, sums: list[Any]) -> dict[str, list[float]]:
        """Return what is measured of each class, by its name in texts, given the sums over all ranks; NaN: nothing."""
        ...

    def draw(self, folder: Path, names: list[str]) -> None:
        """Write pictures of a few of this rank's samples, with truth and answer, into a folder.

        Args:
            folder: exists.
            names: name of each class.
        """
        ...


class Described(Protocol):
    """The model that is measured; `pipeline.weights.card.ModelCard` is one."""

    @property
    def name(self) -> str:
        """Name of the network."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes that it tells apart."""
        ...

    @property
    def classes(self) -> tuple[tuple[str, str], ...]:
        """(Id, readable name) of each class."""
        ...


class Prepared(Protocol):
    """How images are prepared for a model; `pipeline.weights.card.Preprocessing` is one."""

    @property
    def mean(self) -> tuple[float, float, float]:
        """Mean of each channel that is subtracted, of pixels in [0, 1]."""
        ...

    @property
    def std(self) -> tuple[float, float, float]:
        """Deviation of each channel that is divided by."""
        ...

    @property
    def scale(self) -> tuple[int, int] | None:
        """Longest and shortest side that an image is resized to fit into, where it is not cropped."""
        ...

    @property
    def divisor(self) -> int | None:
        """Number whose multiples the sides are then stretched to."""
        ...


class Report(Protocol):
    """The result of a measurement."""

    @property
    def samples(self) -> int:
        """Number of images."""
        ...

    def scalars(self) -> dict[str, float]:
        """Return every single number by its name in MLflow and in JSON."""
        ...

    def as_json(self) -> dict[str, Any]:
        """Return all results as plain values."""
        ...

    def lines(self, title: str, origin: str) -> list[str]:
        """Return the result in lines.

        Args:
            title: model and data in words.
            origin: which weights were taken, in words; empty if the file holds no others.
        """
        ...

    def write(self, folder: Path) -> None:
        """Write `report.json`, tables and pictures into a folder."""
        ...


class Measurement(Protocol):
    """One pass of a model over a split."""

    def add(self, network: nn.Module, batch: Batch) -> None:
        """Measure a batch."""
        ...

    def result(self, seconds: float) -> Report:
        """Return the result of all batches; `seconds` is the time that the pass took.

        Raises:
            InputError: nothing was measured.
        """
        ...


class Distillation(Protocol):
    """How a task learns from a teacher: another network that answers about the same images."""

    def device_transform(
        self, config: TrainConfig, num_classes: int, teacher: Callable[[Tensor], Tensor]
    ) -> Callable[[Batch, torch.device | str], tuple[Tensor, ...]]:
        """Build what turns a batch into the inputs of `losses`, among them the teacher's answer.

        Args:
            config: the training.
            num_classes: number of classes.
            teacher: maps the images that the network sees, float32 [N, 3, H, W], to its answer; without a gradient.
        """
        ...

    def losses(self, config: TrainConfig) -> Callable[..., dict[str, Tensor]]:
        """Return what takes the place of `Task.losses`."""
        ...


class Task(Protocol):
    """What is learned, as a plug-in: everything outside `pipeline.tasks` knows a task by this protocol alone."""

    @property
    def name(self) -> str:
        """Name in the configuration, such as `classification`."""
        ...

    @property
    def source(self) -> str:
        """What `sharding.build --source` packs for the task, in words."""
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
    def size_flag(self) -> str:
        """Flag that decides how large the images of a training are."""
        ...

    @property
    def reads_target(self) -> bool:
        """Whether the target of a sample is a member of the shard of its own, and not a label in the index."""
        ...

    @property
    def sorts_by_aspect(self) -> bool:
        """Whether the samples of a step are sorted by their aspect ratio, so that a micro-batch has one orientation."""
        ...

    @property
    def distillation(self) -> Distillation | None:
        """How the task learns from a teacher; None: it does not."""
        ...

    @property
    def other_heads(self) -> frozenset[str]:
        """Parts of the published files of other tasks' networks, which no training of the task starts from."""
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
            sizes: int32 [samples, 3], height and width of each image of the split and bytes of its target, where the
                task reads targets.
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

    def largest_batch(self, config: TrainConfig, num_classes: int, samples: int) -> Batch:
        """Return made-up samples that take as much memory as those of any micro-batch of a training, on the CPU."""
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

    def measurement(
        self, model: Described, manifest: Any, augment: AugmentConfig, device: torch.device, *, subset: bool
    ) -> Measurement:
        """Build what measures a model in detail.

        Args:
            model: the model.
            manifest: of the split.
            augment: mean and deviation of the pixels.
            device: device of the network.
            subset: whether only the split's own classes compete.

        Raises:
            ConfigError: the split's classes are not the model's, or no part of them can compete.
        """
        ...

    def overlay(
        self, network: nn.Module, prepared: Prepared, names: Sequence[str], pixels: NDArray[np.uint8]
    ) -> NDArray[np.uint8] | None:
        """Draw a network's answer over an image; None if the answer has no place in it.

        Args:
            network: in evaluation mode, on the CPU.
            prepared: how images are prepared for it.
            names: name of each class.
            pixels: uint8 [H, W, 3], RGB.
        """
        ...

    def build(self, name: str, *, num_classes: int, image_size: int, backend: Any = "auto") -> nn.Module:
        """Build a network without drop path, for weights that are loaded."""
        ...

    def exported(self, network: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
        """Return what is exported of a network in evaluation mode, and the names of the tensors that it returns.

        Its `forward` takes normalised images float32 [N, 3, H, W] alone.
        """
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
