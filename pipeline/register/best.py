"""Finds the weights of a run that are registered: the averaged weights with the best top-1.

`export/` holds the weights of the last step. If an earlier checkpoint that was kept has a greater top-1 on the
validation split, its averaged weights are written to `export/best/` with a card of their own, and those are registered.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from pipeline.common.atomic import replacing
from pipeline.run.files import checkpoints, read_metrics
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
            top1=record["eval_top1"],
            top5=record.get("eval_top5"),
        )
        if _write_weights(run_dir, best, folder / BEST_FOLDER):
            return folder / BEST_FOLDER, best
    return folder, card


def _better_checkpoints(run_dir: Path, card: ModelCard) -> list[tuple[int, dict[str, Any]]]:
    """Return (step, its record) of the kept checkpoints whose top-1 is above the card's, the best first."""
    if card.top1 is None:
        return []
    kept = checkpoints(run_dir)
    better = {
        record["step"]: record
        for record in read_metrics(run_dir)
        if record.get("step") in kept and record.get("eval_top1", 0.0) > card.top1
    }
    return sorted(better.items(), key=lambda item: (-item[1]["eval_top1"], -item[0]))


def _write_weights(run_dir: Path, card: ModelCard, folder: Path) -> bool:
    """Write a checkpoint's averaged weights and their card into a folder; return False if the checkpoint is damaged."""
    import torch
    from safetensors.torch import save_file

    import transxnet
    from pipeline.checkpoint.state import averaged_state
    from pipeline.checkpoint.store import CheckpointStore, DamagedCheckpointError

    try:
        checkpoint = CheckpointStore(run_dir).read(card.step)
        with torch.device("meta"):
            network = transxnet.build(card.name, num_classes=card.num_classes, image_size=card.image_size)
        state = averaged_state(checkpoint, {name: value.shape for name, value in network.state_dict().items()})
    except (DamagedCheckpointError, ValueError) as error:
        logger.warning("the best checkpoint (step %d) is not registered: %s", card.step, error)
        return False
    folder.mkdir(mode=0o700, exist_ok=True)
    with replacing(folder / WEIGHTS_NAME) as temporary:
        save_file(transxnet.to_upstream(state), temporary)
    save_model_card(card, folder)
    return True
