"""Evaluates the checkpoints of a run that await it, in processes beside the training or after it."""

import faulthandler
import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

import torch

from pipeline.checkpoint.state import averaged_state
from pipeline.checkpoint.store import CheckpointStore
from pipeline.common.errors import PipelineError, one_line
from pipeline.engine.distributed import World, broadcast_from_main, join_world, leave_world
from pipeline.run.config import read_config
from pipeline.run.evaluations import (
    MAX_TRIES,
    awaiting,
    begin_try,
    end_try,
    mark_leaving,
    write_evaluation,
    write_problem,
)
from pipeline.run.recorder import log
from pipeline.train.kernels import agree_on_kernels
from pipeline.train.validation import Evaluator
from sharding import load_manifest

State = dict[str, torch.Tensor]
Shapes = dict[str, torch.Size]
_STDERR = 2
REREAD_S = 5.0
"""Seconds until a checkpoint that could not be read is read again, where nothing else awaits its evaluation."""


def evaluate_awaiting(run_dir: Path, stop_requested: Callable[[], bool]) -> bool:
    """Evaluate the averaged weights of all awaiting checkpoints, the newest first. Collective over the job's ranks.

    The scores are those that the training would have found: the network, the arithmetic and the sums are the same.

    Args:
        run_dir: of the run.
        stop_requested: whether this rank is asked to stop; asked after each batch.

    Returns:
        False if asked to stop before all were evaluated.
    """
    config = read_config(run_dir).train
    world = join_world(config.collective_timeout_s)
    try:
        manifest = load_manifest(config.data.shards, config.data.train_split, config.data.name)
        agree_on_kernels(config, world, run_dir)
        evaluator = Evaluator(config, world, run_dir, [entry.name for entry in manifest.classes])
        while True:
            chosen = broadcast_from_main(_next_or_leave(run_dir, evaluator.shapes) if world.is_main else None)
            if chosen is None:
                return True
            step, state = chosen  # pyright: ignore[reportGeneralTypeIssues]
            if not _evaluate(run_dir, world, evaluator, step, state, stop_requested, config.collective_timeout_s):
                return False
    finally:
        leave_world()


def _next_or_leave(run_dir: Path, shapes: Shapes) -> tuple[int, State] | None:
    """Return what `_next` returns; where nothing is left, look once more after this job has said that it leaves.

    Whoever publishes a checkpoint and does not read that then knows that this job will see it.
    """
    mark_leaving(run_dir, None)
    chosen = _next(run_dir, shapes)
    if chosen is None:
        mark_leaving(run_dir, os.environ.get("JOB_ID"))
        chosen = _next(run_dir, shapes)
    if chosen is not None:
        mark_leaving(run_dir, None)
    return chosen


def _next(run_dir: Path, shapes: Shapes) -> tuple[int, State] | None:
    """Return the newest awaiting checkpoint and its averaged weights; None: there is none.

    One that cannot be read is read again after the others: a disk may fail for a moment. One that was tried too often
    gets the reason as its result.
    """
    unread: set[int] = set()
    while steps := awaiting(run_dir):
        if unread.issuperset(steps):
            sleep(REREAD_S)
            unread.clear()
        step = max(set(steps) - unread)
        tries = begin_try(run_dir, step)
        if tries > MAX_TRIES:
            _give_up(run_dir, step, f"{MAX_TRIES} evaluations of it did not come to their end")
            continue
        try:
            return step, averaged_state(CheckpointStore(run_dir).read(step), shapes)
        except (PipelineError, OSError, ValueError) as error:
            # The training may have removed it, since newer ones await their evaluation.
            if tries == MAX_TRIES and step in awaiting(run_dir):
                _give_up(run_dir, step, one_line(error))
            unread.add(step)
    return None


def _give_up(run_dir: Path, step: int, problem: str) -> None:
    log(f"warning: step {step} is not evaluated: {problem}")
    write_problem(run_dir, step, problem)


def _evaluate(
    run_dir: Path,
    world: World,
    evaluator: Evaluator,
    step: int,
    state: State,
    stop_requested: Callable[[], bool],
    patience_s: float,
) -> bool:
    """Evaluate the weights of a step and write the result; return False if asked to stop meanwhile. Collective.

    Where no batch comes for `patience_s` seconds, this process writes its stacks to the log and ends, which counts as a
    failed try: no training waits for it at its end.
    """

    def wait_for_a_batch() -> None:
        faulthandler.dump_traceback_later(patience_s, exit=True, file=_STDERR)

    def stops() -> bool:
        wait_for_a_batch()
        return stop_requested()

    began = monotonic()
    try:
        wait_for_a_batch()
        scores = evaluator(state, step, stops)
    finally:
        faulthandler.cancel_dump_traceback_later()
    if not world.is_main:
        return scores is not None
    if scores is None:
        end_try(run_dir, step)
        log(f"step {step}: asked to stop; the evaluation begins again in the next attempt")
        return False
    write_evaluation(run_dir, step, scores, monotonic() - began)
    end_try(run_dir, step)
    log(f"step {step}: {read_config(run_dir).task.scores.describe(scores)}")
    if evaluator.suspicion is not None:
        log(f"warning: {evaluator.suspicion}: compare the labels of both splits")
    return True
