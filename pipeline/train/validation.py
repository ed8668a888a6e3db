"""Top-1 of the averaged weights during a training."""

import contextlib

import torch

from pipeline.config.schema import TrainConfig
from pipeline.data.device import Normalise
from pipeline.data.loader import build_evaluation_loader
from pipeline.engine.distributed import World, sum_over_ranks
from pipeline.engine.ema import Ema
from pipeline.engine.engine import DTYPES
from pipeline.evaluate.accuracy import Evaluation, evaluate_batches
from pipeline.train.model import build_model


class Evaluator:
    """Evaluates the averaged weights on the validation split; each image is counted once over all ranks."""

    def __init__(self, config: TrainConfig, world: World, num_classes: int) -> None:
        """Build a second network, which gets the averaged weights at each evaluation."""
        self._config, self._world, self._num_classes = config, world, num_classes
        self._model = build_model(config, num_classes).to(world.device).eval()
        self._normalise = Normalise(config.augment)

    def __call__(self, ema: Ema) -> Evaluation:
        """Evaluate the average. Collective."""
        self._model.load_state_dict(ema.full_state())
        enabled = self._config.precision != "fp32"
        autocast = torch.autocast(self._world.device.type, DTYPES[self._config.precision], enabled=enabled)
        loader = build_evaluation_loader(
            self._config.data,
            self._config.augment,
            self._config.model.image_size,
            world_size=self._world.size,
            rank=self._world.rank,
            device=self._world.device,
        )
        with contextlib.closing(loader):
            counts = evaluate_batches(
                self._model,
                loader,
                num_classes=self._num_classes,
                device=self._world.device,
                autocast=autocast,
                normalise=lambda batch, device: self._normalise(batch.images, torch.device(device)),
            )
        return Evaluation.from_counts(torch.tensor(sum_over_ranks(counts.tolist()), dtype=torch.float64))
