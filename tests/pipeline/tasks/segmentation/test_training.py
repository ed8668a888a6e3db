"""A segmentation is trained, killed and resumed, on one and two ranks, with the same result."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from pipeline.config.checks import check
from pipeline.config.schema import SegmentationConfig
from pipeline.engine.distributed import World
from pipeline.engine.ema import Ema
from pipeline.engine.fragments import LocalWeight
from pipeline.run import directory
from pipeline.run.files import read_metrics
from pipeline.train.model import build_model
from pipeline.train.validation import Evaluator
from tests.support.attempts import FINISHED, RunningAttempt
from tests.support.label_maps import NAMES, pack_masks
from tests.support.ranks import run_ranks
from tests.support.segmentations import training

STEPS = 6


def prepare(run_dir: Path, shards: Path, cache: Path, ranks: int, *, crop: int = 32, **fields: int) -> Path:
    """Write the run directory of a training on a number of ranks."""
    settings = {"steps": STEPS, "save_every_steps": 2, "eval_every_steps": 3, **fields}
    config = training(
        shards, cache, segmentation=SegmentationConfig(crop_size=crop, scale=(2 * crop, crop)), **settings
    )
    directory.prepare(run_dir, check(config, ranks), {"total_steps": STEPS})
    return run_dir


def result(run_dir: Path) -> tuple[str, list[tuple[float, float]]]:
    """Digest of the exported weights, and loss and mIoU of the evaluated steps."""
    weights = hashlib.sha256((run_dir / "export/model.safetensors").read_bytes()).hexdigest()
    evaluated = [(r["loss"], r["eval_miou"]) for r in read_metrics(run_dir) if "eval_miou" in r]
    return weights, evaluated


@pytest.mark.slow
def test_a_killed_segmentation_equals_the_uninterrupted_one(tmp_path):
    pack_masks(tmp_path)
    shards, cache = tmp_path / "shards", tmp_path / "cache"
    whole = prepare(tmp_path / "whole", shards, cache, 2)
    with RunningAttempt(whole) as attempt:
        assert attempt.wait() == [FINISHED] * 2, attempt.output()
    killed = prepare(tmp_path / "killed", shards, cache, 2)
    with RunningAttempt(killed) as attempt:
        assert attempt.until_step(3), attempt.output()
        attempt.kill()
    with RunningAttempt(killed) as attempt:
        assert attempt.wait() == [FINISHED] * 2, attempt.output()
    assert result(killed) == result(whole)
    assert len(result(whole)[1]) == 2
    card = json.loads((whole / "export/model.json").read_text())
    assert (card["task"], card["metric"]) == ("segmentation", "miou")
    assert card["metric_value"] == result(whole)[1][-1][1]


@pytest.mark.slow
def test_losses_do_not_depend_on_the_zero_stage(tmp_path):
    pack_masks(tmp_path)
    losses = {}
    for stage in (0, 3):
        run_dir = prepare(tmp_path / f"run{stage}", tmp_path / "shards", tmp_path / "cache", 2, zero_stage=stage)
        with RunningAttempt(run_dir) as attempt:
            assert attempt.wait() == [FINISHED] * 2, attempt.output()
        losses[stage] = [record["loss"] for record in read_metrics(run_dir)]
    assert len(losses[0]) == STEPS
    assert losses[3] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.slow
def test_a_segmentation_goes_on_with_2_and_4_ranks_as_it_would_have_alone(tmp_path):
    """A micro-batch has the same four crops in all cases, so only the order of sums differs.

    Smaller crops and micro-batches would leave a norm two values of a channel, and rounding the last word.
    """
    pack_masks(tmp_path)
    shards, cache = tmp_path / "shards", tmp_path / "cache"
    batch = {"global_batch_size": 16, "micro_batch_size": 4, "crop": 64}
    alone = prepare(tmp_path / "alone", shards, cache, 1, **batch)
    with RunningAttempt(alone, ranks=1) as attempt:
        assert attempt.wait() == [FINISHED], attempt.output()
    elastic = prepare(tmp_path / "elastic", shards, cache, 1, **batch)
    for ranks, saved in ((1, 2), (2, 4)):
        with RunningAttempt(elastic, ranks=ranks) as attempt:
            # A checkpoint is written behind the training: its step alone does not mean that it is there.
            checkpoint = elastic / f"checkpoints/step_{saved:08d}"
            assert attempt.until(checkpoint.exists), attempt.output()
            attempt.kill()
    with RunningAttempt(elastic, ranks=4) as attempt:
        assert attempt.wait() == [FINISHED] * 4, attempt.output()
    records = read_metrics(elastic)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert {record["attempt"] for record in records} == {1, 2, 3}
    assert [record["loss"] for record in records] == pytest.approx(
        [record["loss"] for record in read_metrics(alone)], rel=1e-4
    )
    assert (elastic / "report/samples.png").exists()
    assert json.loads((elastic / "report/classes.json").read_text())["step"] == STEPS


def evaluate(world: World, folder: str) -> dict[str, float]:
    config = training(Path(folder) / "shards", Path(folder) / "cache")
    model = build_model(config, len(NAMES))
    torch.manual_seed(0)
    torch.nn.init.normal_(model.get_submodule("head.classifier").weight)  # pyright: ignore
    weights = [
        LocalWeight(name=name, start=0, shape=weight.shape, values=weight.detach().flatten())
        for name, weight in model.named_parameters()
    ]
    average = Ema(weights, model, 0.9, partitioned=False)
    return Evaluator(config, world, Path(folder), list(NAMES.values()))(average.full_state(), 1) or {}


@pytest.mark.slow
def test_the_scores_are_the_same_to_the_last_digit_for_1_to_4_ranks(tmp_path):
    pack_masks(tmp_path)
    [alone] = run_ranks(evaluate, 1, str(tmp_path))
    assert 0 < alone["miou"] < 1
    for ranks in (2, 3, 4):
        assert run_ranks(evaluate, ranks, str(tmp_path)) == [alone] * ranks
