"""The model card of exported weights: `RUN_DIR/export/model.json`, which goes into the registry with the model."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pipeline.common.atomic import write_text
from pipeline.common.errors import PipelineError
from pipeline.tasks import DEFAULT, Metric, Task, find_task

CARD_NAME = "model.json"
WEIGHTS_NAME = "model.safetensors"
EXPORT_FOLDER = "export"


class ModelCardError(PipelineError, ValueError):
    """A model card that cannot be used; the message names the file and the field."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an evaluation turns a decoded image into the network's input."""

    evaluation_crop: float
    """Share of the shorter side that the centre crop keeps (timm's crop_pct)."""
    mean: tuple[float, float, float]
    """Per-channel mean that is subtracted, of pixels in [0, 1]."""
    std: tuple[float, float, float]
    """Per-channel deviation that is divided by, of pixels in [0, 1]."""
    interpolation: str = "bicubic"
    """Resampling of the resize."""
    scale: tuple[int, int] | None = None
    """Longest and shortest side that an image is resized to fit into, where it is not cropped."""
    divisor: int | None = None
    """Number whose multiples the sides are then stretched to."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """How to use exported weights, and where they come from.

    The weights beside the card (`model.safetensors`) are the moving average, under the names of the published
    checkpoints.
    """

    name: str
    """Variant: `transxnet_n`, `_t`, `_s` or `_b`; also the registered model, unless the run has another name for it."""
    num_classes: int
    """Outputs of the classifier."""
    image_size: int
    """Side of the square input, in pixels."""
    classes: tuple[tuple[str, str], ...]
    """(WordNet id, readable name) of each label, in order."""
    preprocessing: Preprocessing
    """Preparation of an image for the network."""
    step: int
    """Optimizer steps that the weights have seen."""
    epoch: float
    """Passes over the training split that the weights have seen."""
    task: str = DEFAULT
    """What the network has learned (`pipeline.tasks`)."""
    scores: dict[str, float] = field(default_factory=dict)
    """Scores of the task on the validation split, by name; empty: not evaluated."""
    validation_samples: int = 0
    """Number of images that the scores were measured on."""
    train_digest: str | None = None
    """Digest of the training split's manifest."""
    validation_digest: str | None = None
    """Digest of the validation split's manifest; accuracies are compared only where it is the same."""
    git_commit: str | None = None
    """Commit of the code that trained the weights."""
    mlflow_run_id: str | None = None
    """Id of the training's MLflow run; None if the tracking server never answered."""

    def __post_init__(self) -> None:
        if len(self.classes) != self.num_classes:
            raise ModelCardError(f"{self.name}: {len(self.classes)} class names for num_classes {self.num_classes}")
        for score in self.of_task.scores.shares:
            value = self.scores.get(score.name)
            if value is not None and not 0 <= value <= 1:
                raise ModelCardError(f"{self.name}: {score.name} is {value}, a fraction in [0, 1] was expected")

    @property
    def of_task(self) -> Task:
        """What the network has learned."""
        try:
            return find_task(self.task)
        except KeyError as error:
            raise ModelCardError(f"{self.name}: {error.args[0]}") from error

    @property
    def metric(self) -> Metric | None:
        """Primary metric on the validation split; None: not evaluated."""
        return self.of_task.scores.metric(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the card's file: its fields, the primary metric, and each score by its name."""
        fields = dataclasses.asdict(self)
        scores = fields.pop("scores")
        return fields | ({} if self.metric is None else self.metric.stored()) | scores

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Build a card from the dict that `to_dict` made of one, or that was written before tasks had names.

        Raises:
            ModelCardError: a field is missing, unknown or out of range.
        """
        try:
            fields = dict(content)
            preprocessing = dict(fields.pop("preprocessing"))
            for statistic in ("mean", "std", "scale"):
                if preprocessing.get(statistic) is not None:
                    preprocessing[statistic] = tuple(preprocessing[statistic])
            scores = find_task(fields.get("task", DEFAULT)).scores
            values = {score.name: fields.pop(score.name, None) for score in scores}
            fields["scores"] = {name: value for name, value in values.items() if value is not None}
            for stored in ("metric", "metric_value", "higher_is_better"):
                fields.pop(stored, None)
            fields["classes"] = tuple((str(wnid), str(name)) for wnid, name in fields["classes"])
            return cls(preprocessing=Preprocessing(**preprocessing), **fields)
        except ModelCardError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelCardError(f"not a model card of this version: {error}") from error


def is_exported(run_dir: Path) -> bool:
    """Return whether a run has reached its end: the card is the last file that it exports."""
    return (run_dir / EXPORT_FOLDER / CARD_NAME).exists()


def save_model_card(card: ModelCard, folder: str | os.PathLike[str]) -> Path:
    """Write `FOLDER/model.json` atomically; return its path."""
    path = Path(folder) / CARD_NAME
    write_text(path, json.dumps(card.to_dict(), indent=1, ensure_ascii=False) + "\n")
    return path


def load_model_card(folder: str | os.PathLike[str]) -> ModelCard:
    """Read `FOLDER/model.json`.

    Raises:
        ModelCardError: the file is missing, or is no model card of this version.
    """
    path = Path(folder) / CARD_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelCardError(f"{path} is missing: the training writes it when it ends") from error
    except (OSError, ValueError) as error:
        raise ModelCardError(f"{path} cannot be read: {error}") from error
    try:
        return ModelCard.from_dict(content)
    except ModelCardError as error:
        raise ModelCardError(f"{path}: {error}") from error
