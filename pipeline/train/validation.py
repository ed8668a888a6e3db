"""The scores of the averaged weights during a training."""

import contextlib

import torch

from pipeline.config.schema import TrainConfig
from pipeline.data.loader import build_evaluation_loader
from pipeline.engine.distributed import World, sum_over_ranks
from pipeline.engine.ema import Ema
from pipeline.engine.engine import DTYPES
from pipeline.tasks import find_task
from pipeline.train.model import build_model


class Evaluator:
    """Evaluates the averaged weights on the validation split; each image is counted once over all ranks.

    Attributes:
        suspicion: what made the labels of the split suspicious in the last evaluation; None: nothing.
    """

    def __init__(self, config: TrainConfig, world: World, num_classes: int) -> None:
        """Build a second network, which gets the averaged weights at each evaluation."""
        self._config, self._world, self._num_classes = config, world, num_classes
        self.suspicion: str | None = None
        self._model = build_model(config, num_classes).to(world.device).eval()

    @torch.no_grad()
    def __call__(self, ema: Ema) -> dict[str, float]:
        """Return the scores of the average by name. Collective."""
        self._model.load_state_dict(ema.full_state())
        config, device = self._config, self._world.device
        evaluator = find_task(config.task).evaluator(config.augment, self._num_classes, device)
        loader = build_evaluation_loader(
            config.data,
            config.augment,
            config.model.image_size,
            world_size=self._world.size,
            rank=self._world.rank,
            device=device,
            task=config.task,
            segmentation=config.segmentation,
        )
        with (
            contextlib.closing(loader),
            torch.autocast(device.type, DTYPES[config.precision], enabled=config.precision != "fp32"),
        ):
            for batch in loader:
                evaluator.add(self._model, batch)
        sums = sum_over_ranks(evaluator.sums())
        self.suspicion = evaluator.suspicion(sums)
        return evaluator.scores(sums)
