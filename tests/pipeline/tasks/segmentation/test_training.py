"""A segmentation is trained, killed and resumed, on one and two ranks, with the same result."""

import hashlib
import json
from pathlib import Path

import pytest

from pipeline.config.checks import check
from pipeline.config.schema import DataConfig, MixConfig, ModelConfig, SegmentationConfig, TrainConfig
from pipeline.run import directory
from pipeline.run.files import read_metrics
from tests.support.attempts import FINISHED, RunningAttempt
from tests.support.label_maps import pack_masks

STEPS = 6


def prepare(run_dir: Path, shards: Path, cache: Path, ranks: int, **fields: int) -> Path:
    config = TrainConfig(
        task="segmentation",
        steps=STEPS,
        global_batch_size=4,
        micro_batch_size=2,
        precision="fp32",
        batch_norm="local",
        save_every_steps=2,
        eval_every_steps=3,
        model=ModelConfig(name="semantic_fpn_n", image_size=32),
        mix=MixConfig(mixup=0.0, cutmix=0.0),
        segmentation=SegmentationConfig(crop_size=32, scale=(64, 32)),
        data=DataConfig(shards=str(shards), workers=0, lanes=2, cache_dir=str(cache)),
        **fields,
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
