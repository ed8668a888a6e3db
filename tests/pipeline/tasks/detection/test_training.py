"""A detection is trained, killed and resumed, on one, two and four ranks, with the same result."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from pipeline.config.checks import check
from pipeline.config.schema import ModelConfig
from pipeline.engine.distributed import World
from pipeline.engine.ema import Ema
from pipeline.engine.fragments import LocalWeight
from pipeline.run import directory
from pipeline.run.files import read_metrics
from pipeline.train.model import build_model
from pipeline.train.validation import Evaluator
from tests.support.attempts import FINISHED, RunningAttempt
from tests.support.detections import training
from tests.support.objects import pack_objects
from tests.support.ranks import run_ranks

STEPS = 6
TOLERANCES = {"retinanet_n": 1e-4, "mask_rcnn_n": 2e-3}
"""Of the losses by network: a Mask R-CNN also makes choices, and rounding turns one of them now and then."""
SCORES = ("eval_box_ap", "eval_box_ap50", "eval_box_ap75", "eval_mask_ap", "eval_mask_ap50")


def prepare(run_dir: Path, shards: Path, ranks: int, **fields: object) -> Path:
    """Write the run directory of a training on a number of ranks."""
    settings = {"steps": STEPS, "save_every_steps": 2, "eval_every_steps": 3, **fields}
    config = training(shards, shards.parent / "cache", **settings)
    directory.prepare(run_dir, check(config, ranks), {"total_steps": STEPS})
    return run_dir


def result(run_dir: Path) -> tuple[str, list[list[float]]]:
    """Digest of the exported weights, and loss and scores of the evaluated steps."""
    weights = hashlib.sha256((run_dir / "export/model.safetensors").read_bytes()).hexdigest()
    evaluated = [[r[key] for key in ("loss", *SCORES)] for r in read_metrics(run_dir) if "eval_box_ap" in r]
    return weights, evaluated


@pytest.mark.thorough
def test_a_killed_detection_equals_the_uninterrupted_one(tmp_path):
    pack_objects(tmp_path)
    whole = prepare(tmp_path / "whole", tmp_path / "shards", 2)
    with RunningAttempt(whole) as attempt:
        assert attempt.wait() == [FINISHED] * 2, attempt.output()
    killed = prepare(tmp_path / "killed", tmp_path / "shards", 2)
    with RunningAttempt(killed) as attempt:
        assert attempt.until_step(3), attempt.output()
        attempt.kill()
    with RunningAttempt(killed) as attempt:
        assert attempt.wait() == [FINISHED] * 2, attempt.output()
    assert result(killed) == result(whole)
    assert len(result(whole)[1]) == 2
    card = json.loads((whole / "export/model.json").read_text())
    assert (card["task"], card["metric"]) == ("detection", "mask_ap")
    assert (whole / "report/samples.png").exists()


def assert_near(run_dir: Path, other: Path, tolerance: float) -> None:
    """Assert that two runs have the same losses and norms of the gradient, to rounding as long as it turns no choice.

    The updates do not depend on the gradient's scale, so the losses alone would not show a wrong one.
    """
    records, expected = read_metrics(run_dir), read_metrics(other)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    losses, norms = ([record[key] for record in records] for key in ("loss", "grad_norm"))
    expected_losses, expected_norms = ([record[key] for record in expected] for key in ("loss", "grad_norm"))
    assert losses[:3] == pytest.approx(expected_losses[:3], rel=1e-4)
    assert losses == pytest.approx(expected_losses, rel=tolerance)
    assert norms == pytest.approx(expected_norms, rel=2e-3)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", TOLERANCES)
def test_losses_do_not_depend_on_the_zero_stage(tmp_path, name):
    pack_objects(tmp_path)
    model = ModelConfig(name=name, image_size=32)
    for stage in (0, 1, 2, 3):
        run_dir = prepare(tmp_path / f"run{stage}", tmp_path / "shards", 2, zero_stage=stage, model=model)
        with RunningAttempt(run_dir) as attempt:
            assert attempt.wait() == [FINISHED] * 2, attempt.output()
        assert_near(run_dir, tmp_path / "run0", TOLERANCES[name])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", TOLERANCES)
def test_a_detection_goes_on_with_2_4_and_1_ranks_as_it_would_have_alone(tmp_path, name):
    """A micro-batch has the same two images in all cases, so only the order of sums differs."""
    pack_objects(tmp_path)
    model = ModelConfig(name=name, image_size=32)
    alone = prepare(tmp_path / "alone", tmp_path / "shards", 1, model=model)
    with RunningAttempt(alone, ranks=1) as attempt:
        assert attempt.wait() == [FINISHED], attempt.output()
    elastic = prepare(tmp_path / "elastic", tmp_path / "shards", 2, model=model)
    for ranks, saved in ((2, 2), (4, 4)):
        with RunningAttempt(elastic, ranks=ranks) as attempt:
            # A checkpoint is written behind the training: its step alone does not mean that it is there.
            checkpoint = elastic / f"checkpoints/step_{saved:08d}"
            assert attempt.until(checkpoint.exists), attempt.output()
            attempt.kill()
    with RunningAttempt(elastic, ranks=1) as attempt:
        assert attempt.wait() == [FINISHED], attempt.output()
    assert_near(elastic, alone, TOLERANCES[name])
    assert {record["attempt"] for record in read_metrics(elastic)} == {1, 2, 3}


def evaluate(world: World, folder: str) -> dict[str, float]:
    config = training(Path(folder) / "shards", Path(folder) / "cache")
    model = build_model(config, 3)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.get_submodule("box_head.class_logits").weight, std=0.3)  # pyright: ignore
    weights = [
        LocalWeight(name=name, start=0, shape=weight.shape, values=weight.detach().flatten())
        for name, weight in model.named_parameters()
    ]
    average = Ema(weights, model, 0.9, partitioned=False)
    return Evaluator(config, world, Path(folder), ["a", "b", "c"])(average.full_state(), 1) or {}


@pytest.mark.slow
def test_the_scores_are_the_same_to_the_last_digit_for_1_to_4_ranks(tmp_path):
    pack_objects(tmp_path)
    [alone] = run_ranks(evaluate, 1, str(tmp_path))
    assert alone["box_ap50"] > 0
    for ranks in (2, 3, 4):
        assert run_ranks(evaluate, ranks, str(tmp_path)) == [alone] * ranks
