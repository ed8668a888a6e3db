"""The scores of the averaged weights during a training."""

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.common.errors import InputError
from pipeline.config.schema import TrainConfig
from pipeline.data.loader import build_evaluation_loader
from pipeline.engine.distributed import World, broadcast_from_main, join_on_main, sum_over_ranks
from pipeline.engine.engine import DTYPES
from pipeline.run import report
from pipeline.tasks import find_task
from pipeline.tasks.batch import Batch
from pipeline.tasks.task import Evaluator as TaskEvaluator
from pipeline.train.model import build_model


class Evaluator:
    """Evaluates the averaged weights on the validation split; each image is counted once over all ranks.

    Attributes:
        suspicion: what made the labels of the split suspicious in the last evaluation; None: nothing.
        unwritten: why rank 0 could not write the last evaluation for the report; None: it could.
        end_s: seconds of the last evaluation after its last batch, in which nobody looks whether to stop.
    """

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        run_dir: Path,
        names: list[str],
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """Build a second network, which gets the averaged weights at each evaluation.

        Args:
            config: the training.
            world: this process among the ranks.
            run_dir: of the run, whose report gets what rank 0 measures of each class, and its pictures.
            names: name of each class.
            alive: called after each batch.
        """
        self._alive = alive
        self._config, self._world, self._num_classes = config, world, len(names)
        self._run_dir, self._names = run_dir, names
        self.suspicion: str | None = None
        self.unwritten: OSError | None = None
        self.end_s = 0.0
        self._model = build_model(config, len(names)).to(world.device).eval()

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Shape of every weight and buffer of the network."""
        return {name: value.shape for name, value in self._model.state_dict().items()}

    @torch.no_grad()
    def __call__(
        self, state: Mapping[str, torch.Tensor], step: int, stop_requested: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Return the scores of averaged weights by name; None if a rank was asked to stop meanwhile. Collective.

        Args:
            state: the averaged weights and statistics of the network, the same on all ranks.
            step: finished steps of the weights.
            stop_requested: whether this rank is asked to stop; asked after each batch.
        """
        self._model.load_state_dict(state)
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
            detection=config.detection,
            model=config.model.name,
        )
        with (
            contextlib.closing(loader),
            torch.autocast(device.type, DTYPES[config.precision], enabled=config.precision != "fp32"),
        ):
            if not self._add_batches(evaluator, loader, stop_requested):
                return None
        began = time.monotonic()
        scores = self._end(evaluator, step)
        self.end_s = time.monotonic() - began
        return scores

    def _end(self, evaluator: TaskEvaluator, step: int) -> dict[str, float]:
        """Return the scores from what all ranks have added, and write the report. Collective."""
        if evaluator.is_gathered:
            return self._on_main(evaluator, join_on_main(evaluator.sums()), step)
        sums = sum_over_ranks(evaluator.sums())
        self.suspicion = evaluator.suspicion(sums)
        self.unwritten = self._write(evaluator, sums, step) if self._world.is_main else None
        return evaluator.scores(sums)

    def _add_batches(
        self, evaluator: TaskEvaluator, batches: Iterable[Batch], stop_requested: Callable[[], bool]
    ) -> bool:
        """Evaluate this rank's batches; return False as soon as a rank was asked to stop. Collective.

        The ranks agree after each batch, also those that have fewer batches than others.
        """
        mine = iter(batches)
        while True:
            batch = next(mine, None)
            if batch is not None:
                evaluator.add(self._model, batch)
                self._alive()
            stopping, at_work = sum_over_ranks([float(stop_requested()), float(batch is not None)])
            if stopping:
                return False
            if not at_work:
                return True

    def _on_main(self, evaluator: TaskEvaluator, entries: list[Any], step: int) -> dict[str, float]:
        """Return the scores that rank 0 computes from the entries of all ranks. Collective.

        Raises:
            InputError: on every rank, if nothing was evaluated.
        """
        answer: Any = None
        if self._world.is_main:
            try:
                answer = evaluator.scores(entries)
                self.unwritten = self._write(evaluator, entries, step)
            except InputError as error:
                answer = str(error)
        answer = broadcast_from_main(answer)
        if isinstance(answer, str):
            raise InputError(answer)
        return answer

    def _write(self, evaluator: TaskEvaluator, sums: list[Any], step: int) -> OSError | None:
        """Write classes and pictures for the report, unless it has those of a later step.

        A full disk does not end the training.
        """
        if step < report.evaluated_step(self._run_dir):
            return None
        try:
            report.write_evaluation(self._run_dir, step, self._names, evaluator.classes(sums))
            evaluator.draw(self._run_dir / report.FOLDER, self._names)
        except OSError as error:
            return error
        return None
