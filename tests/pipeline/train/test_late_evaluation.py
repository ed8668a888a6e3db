"""The evaluation of checkpoints that await it, and its failures."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.common.errors import TrainingError
from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.engine.distributed import World
from pipeline.run.evaluations import awaiting, begin_try, count_tries, write_problem
from pipeline.run.recorder import Recorder
from pipeline.train import late_evaluation
from pipeline.train.evaluation import Evaluation
from pipeline.train.validation import Evaluator
from tests.support.awaiting_runs import STEPS, prepare_awaiting


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return prepare_awaiting(tmp_path / "run")


def test_a_checkpoint_that_cannot_be_read_for_a_moment_is_read_again(run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    looks: list[int] = []

    class Store:
        def __init__(self, _: Path) -> None: ...

        def read(self, step: int) -> int:
            looks.append(step)
            if step == max(STEPS) and looks.count(step) < 3:
                raise OSError("Stale file handle")
            return step

    monkeypatch.setattr(late_evaluation, "CheckpointStore", Store)
    monkeypatch.setattr(late_evaluation, "averaged_state", lambda *_: {})
    monkeypatch.setattr(late_evaluation, "REREAD_S", 0.0)
    order = []
    while (chosen := late_evaluation._next(run_dir, {})) is not None:
        order.append(chosen[0])
        write_problem(run_dir, chosen[0], "evaluated")
    assert sorted(order) == list(STEPS)
    assert looks == [6, 4, 6, 2, 6]


def test_an_evaluation_whose_result_cannot_be_written_counts_as_a_failed_try(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(late_evaluation, "write_evaluation", refuse)
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    begin_try(run_dir, 6)
    for scores, tries in ((None, 0), ({"top1": 0.5}, 1)):
        if scores:
            begin_try(run_dir, 6)
        with pytest.raises(OSError, match="No space") if scores else contextlib.nullcontext():
            late_evaluation._evaluate(run_dir, world, lambda *_, s=scores: s, 6, {}, lambda: True, 60)  # type: ignore[arg-type]
        assert count_tries(run_dir) == tries


def test_an_evaluation_that_gets_no_batch_ends_its_process_and_counts_as_a_failed_try(run_dir: Path):
    def hang(state: object, step: int, stop_requested: Callable[[], bool]) -> None:
        assert not stop_requested()
        time.sleep(20)

    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    begin_try(run_dir, 6)
    child = os.fork()
    if child == 0:
        try:
            late_evaluation._evaluate(run_dir, world, hang, 6, {}, lambda: False, 0.2)  # type: ignore[arg-type]
        finally:
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert count_tries(run_dir) == 1


def test_scores_that_cannot_be_written_end_the_training_only_at_its_last_step(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    (run_dir / "evaluations").write_text("a file where a folder is needed")
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    recorder = Recorder(run_dir, is_main=True, world_size=1)
    evaluation = Evaluation(
        TrainConfig(model=ModelConfig(name="transxnet_n")), world, run_dir, recorder, Evaluator.__new__(Evaluator)
    )
    monkeypatch.setattr(evaluation, "_evaluate", lambda *_: {"top1": 0.5, "top5": 0.9, "loss": 1.0})
    monkeypatch.setattr("pipeline.train.evaluation.broadcast_from_main", lambda value: value)
    assert evaluation.make_up(4, None, lambda: False)  # type: ignore[arg-type]
    # Of the last step no later attempt would make up for them: the model would be registered without them.
    with pytest.raises(TrainingError, match=r"scores of its last step 6 could not be written .*: make room in"):
        evaluation.make_up(6, None, lambda: False, is_last=True)  # type: ignore[arg-type]
    recorder.close()
    assert "the scores of step 4 could not be written" in capfd.readouterr().out
    assert awaiting(run_dir) == list(STEPS)
