"""Finds the weights of a run that are registered: the averaged weights with the best primary metric.

`export/` holds the weights of the last step. If an earlier checkpoint that was kept is better on the validation
split, its averaged weights are written to `export/best/` with a card of their own, and those are registered.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from pipeline.common.atomic import replacing
from pipeline.run.files import checkpoints, read_metrics
from pipeline.tasks import Metric
from pipeline.weights.card import (
    EXPORT_FOLDER,
    WEIGHTS_NAME,
    ModelCard,
    ModelCardError,
    load_model_card,
    save_model_card,
)

BEST_FOLDER = "best"
logger = logging.getLogger(__name__)


def best_weights(run_dir: Path) -> tuple[Path, ModelCard]:
    """Return the folder of the run's best weights (`model.safetensors`, `model.json`) and their card.

    Among equals the last step is taken. A damaged checkpoint is skipped with a warning.

    Raises:
        ModelCardError: the run exported nothing.
    """
    folder = run_dir / EXPORT_FOLDER
    card = load_model_card(folder)
    if not (folder / WEIGHTS_NAME).is_file():
        raise ModelCardError(f"{folder / WEIGHTS_NAME} is missing: the training writes it when it ends")
    for step, record in _better_checkpoints(run_dir, card):
        best = dataclasses.replace(
            card,
            step=step,
            epoch=card.epoch * step / card.step,
            scores=card.of_task.scores.of_record(record),
        )
        if _write_weights(run_dir, best, folder / BEST_FOLDER):
            return folder / BEST_FOLDER, best
    return folder, card


def _better_checkpoints(run_dir: Path, card: ModelCard) -> list[tuple[int, dict[str, Any]]]:
    """Return (step, its record) of the kept checkpoints whose metric is better than the card's, the best first."""
    kept = checkpoints(run_dir)
    better: dict[int, tuple[Metric, dict[str, Any]]] = {}
    for record in read_metrics(run_dir):
        metric = card.of_task.scores.metric_of_record(record)
        if record.get("step") in kept and metric is not None and metric.beats(card.metric):
            better[record["step"]] = metric, record

    def rank(step: int) -> tuple[float, int]:
        metric = better[step][0]
        return metric.value if metric.higher_is_better else -metric.value, step

    best_first = sorted(better, key=rank, reverse=True)
    return [(step, better[step][1]) for step in best_first]


def _write_weights(run_dir: Path, card: ModelCard, folder: Path) -> bool:
    """Write a checkpoint's averaged weights and their card into a folder; return False if the checkpoint is damaged."""
    import torch
    from safetensors.torch import save_file

    from pipeline.checkpoint.state import averaged_state
    from pipeline.checkpoint.store import CheckpointStore, DamagedCheckpointError

    try:
        checkpoint = CheckpointStore(run_dir).read(card.step)
        with torch.device("meta"):
            network = card.of_task.build(card.name, num_classes=card.num_classes, image_size=card.image_size)
        state = averaged_state(checkpoint, {name: value.shape for name, value in network.state_dict().items()})
    except (DamagedCheckpointError, ValueError) as error:
        logger.warning("the best checkpoint (step %d) is not registered: %s", card.step, error)
        return False
    folder.mkdir(mode=0o700, exist_ok=True)
    with replacing(folder / WEIGHTS_NAME) as temporary:
        save_file(card.of_task.to_published(state), temporary)
    save_model_card(card, folder)
    return True
