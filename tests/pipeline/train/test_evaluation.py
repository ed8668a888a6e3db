"""A stop request during an evaluation is answered after a batch, and the evaluation is made up for."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoint.store import CheckpointStore
from pipeline.config.checks import check
from pipeline.engine.distributed import World
from pipeline.run import directory as run_directory
from pipeline.run.files import durable_step, read_evaluations, read_events, read_metrics
from pipeline.train.model import build_model
from pipeline.train.validation import Evaluator
from pipeline.weights.card import WEIGHTS_NAME, is_exported, load_model_card
from tests.support.attempts import FINISHED, INTERRUPTED, RunningAttempt
from tests.support.ranks import run_ranks
from tests.support.small_shards import CLASSES, config, pack

STEPS, EVERY = 4, 2


def evaluate_until(world: World, folder: str, stop_at: int | None) -> tuple[int, bool]:
    """Evaluate; rank 0 is asked to stop while its batch `stop_at` is computed. Return batches and whether it ended."""
    settings = config(Path(folder), Path(folder) / "cache")
    torch.manual_seed(0)
    model = build_model(settings, CLASSES)
    batches: list[int] = []
    evaluator = Evaluator(settings, world, Path(folder), ["class"] * CLASSES, lambda: batches.append(1))
    scores = evaluator(model.state_dict(), 1, lambda: world.rank == 0 and len(batches) == stop_at)
    return len(batches), scores is not None


def test_all_ranks_stop_after_the_batch_in_which_one_is_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from pipeline.tasks import find_task

    pack(tmp_path, (find_task("classification").evaluation_batch * 5 + 1,), split="validation")
    pack(tmp_path, (8,))
    assert run_ranks(evaluate_until, 2, str(tmp_path), None) == [(3, True), (3, True)]
    assert run_ranks(evaluate_until, 2, str(tmp_path), 2) == [(2, False), (2, False)]


def scored(run_dir: Path) -> list[dict[str, Any]]:
    """What the records of the steps hold that must not depend on interruptions."""
    return [
        {key: value for key, value in record.items() if key in ("step", "loss", "lr") or key.startswith("eval_")}
        for record in read_metrics(run_dir)
    ]


@pytest.mark.parametrize("step", [EVERY, pytest.param(STEPS, marks=pytest.mark.thorough)])
def test_an_interrupted_evaluation_is_made_up_for_with_the_same_numbers(tmp_path: Path, step: int):
    pack(tmp_path / "shards", (24, 24))
    pack(tmp_path / "shards", (24,), split="validation")
    short = config(
        tmp_path / "shards",
        tmp_path / "cache",
        steps=STEPS,
        precision="fp32",
        eval_every_steps=EVERY,
        save_every_steps=100,
    )
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    for run_dir in (whole, halved):
        run_directory.prepare(run_dir, check(short, 2), {"tracking_uri": "sqlite:///none.db"})
    with RunningAttempt(whole) as attempt:
        assert attempt.wait() == [FINISHED] * 2, attempt.output()[-3000:]
    # A look in each step, and in each evaluation one after its only batch and one at its end.
    with RunningAttempt(halved, stop_at=step + 2 * (step // EVERY) - 1) as attempt:
        assert attempt.wait() == [INTERRUPTED] * 2, attempt.output()[-3000:]
    assert durable_step(halved) == step
    assert not is_exported(halved)
    assert scored(halved)[step - 1].keys() == {"step", "loss", "lr"}
    with RunningAttempt(halved) as attempt:
        assert attempt.wait() == [FINISHED] * 2, attempt.output()[-3000:]

    assert scored(halved) == scored(whole)
    assert list(read_evaluations(halved)) == [step]
    assert [event["step"] for event in read_events(halved) if event["event"] == "evaluate"] == sorted(
        [EVERY, STEPS, step]
    )
    weights = [(run_dir / "export" / WEIGHTS_NAME).read_bytes() for run_dir in (whole, halved)]
    assert weights[0] == weights[1]
    assert load_model_card(halved / "export").scores == load_model_card(whole / "export").scores
    assert CheckpointStore(halved).steps() == CheckpointStore(whole).steps()
