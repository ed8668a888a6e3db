"""A training with a teacher: two ranks learn from one, and an interrupted run equals the uninterrupted one."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open

import transxnet
from pipeline.common.errors import TrainingError
from pipeline.config.checks import check
from pipeline.config.schema import AugmentConfig, DistillationConfig
from pipeline.engine.distributed import World
from pipeline.run import directory as run_directory
from pipeline.run.files import read_metrics
from pipeline.run.recorder import Recorder
from pipeline.tasks.batch import Batch
from pipeline.train.teacher import TeacherAnswers, build_transform
from pipeline.weights.teacher import load_teacher, record_teacher
from tests.support.attempts import FINISHED, INTERRUPTED, RunningAttempt
from tests.support.ranks import run_ranks
from tests.support.small_shards import CLASSES, config, pack

IDS = [f"n{label:08d}" for label in range(CLASSES)]
STEPS = 6


def write_teacher(path: Path) -> str:
    torch.save({"state_dict": transxnet.transxnet_n(image_size=32, num_classes=CLASSES).state_dict()}, path)
    return str(path)


def answers_on(world: World, run_dir: Path, training: Any, pixels: torch.Tensor) -> torch.Tensor:
    recorder = Recorder(run_dir, is_main=world.is_main, world_size=world.size, start_up=None)
    count = torch.arange(len(pixels))
    batch = Batch(pixels, count % CLASSES, count, 0 * count, 0 * count - 1, 0 * count, 0, 0)
    return build_transform(training, IDS, run_dir, world, recorder)(batch, world.device)[2]


@pytest.mark.thorough
def test_every_rank_asks_the_same_teacher(tmp_path):
    """Rank 0 alone reads it; the images are normalised as the teacher wants them."""
    folder = tmp_path / "resnet"
    torch.manual_seed(0)
    timm.models.save_for_hf(timm.create_model("test_resnet", num_classes=CLASSES), folder, safe_serialization=True)
    source = f"timm:local-dir:{folder}"
    training = replace(config("none", tmp_path, precision="fp32"), distill=source)
    pixels = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    first, second = run_ranks(answers_on, 2, tmp_path, training, pixels)
    assert torch.equal(first, second)
    assert first.shape == (4, CLASSES)
    assert json.loads((tmp_path / "teacher.json").read_text(encoding="utf-8"))["name"] == "test_resnet"


def test_a_teacher_gets_images_with_its_own_mean_and_deviation(tmp_path):
    teacher = load_teacher(write_teacher(tmp_path / "teacher.pth"), IDS, 32)
    pixels = torch.rand(4, 3, 32, 32)
    augment = AugmentConfig(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))

    def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
        return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    answers = TeacherAnswers(teacher, augment, "fp32", torch.device("cpu"))(normalised(augment.mean, augment.std))
    with torch.no_grad():
        expected = teacher.network(normalised(teacher.mean, teacher.std))
    torch.testing.assert_close(answers, expected, rtol=1e-4, atol=1e-5)


def refusal_on(world: World, run_dir: Path, training: Any) -> str:
    with pytest.raises(TrainingError) as refusal:
        build_transform(training, IDS, run_dir, world, Recorder(run_dir, is_main=world.is_main, world_size=world.size))
    return str(refusal.value)


@pytest.mark.thorough
def test_every_rank_refuses_a_teacher_that_has_changed_since_the_run_began(tmp_path):
    source = write_teacher(tmp_path / "teacher.pth")
    record_teacher(tmp_path, load_teacher(source, IDS, 32))
    write_teacher(tmp_path / "teacher.pth")
    training = replace(config("none", tmp_path, precision="fp32"), distill=source)
    first, second = run_ranks(refusal_on, 2, tmp_path, training)
    assert "its weights have changed since this run began" in first
    assert first == second


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_an_interrupted_distillation_equals_the_uninterrupted_one(tmp_path):
    pack(tmp_path / "shards", (24, 24))
    pack(tmp_path / "shards", (24,), split="validation")
    source = write_teacher(tmp_path / "teacher.pth")
    training = config(tmp_path / "shards", tmp_path / "cache", steps=STEPS, precision="fp32", save_every_steps=100)
    taught = replace(training, distill=source, distillation=DistillationConfig(temperature=2.0))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for run_dir in (whole, stopped):
        run_directory.prepare(run_dir, check(taught, 2), {"tracking_uri": "sqlite:///none.db"})
    with RunningAttempt(whole) as attempt:
        assert attempt.wait() == [FINISHED, FINISHED], attempt.output()[-3000:]
    with RunningAttempt(stopped) as attempt:
        assert attempt.until_step(3)
        attempt.signal(signal.SIGTERM)
        assert attempt.wait() == [INTERRUPTED, INTERRUPTED], attempt.output()[-3000:]
    with RunningAttempt(stopped) as attempt:
        assert attempt.wait() == [FINISHED, FINISHED], attempt.output()[-3000:]
    assert (stopped / "export/model.safetensors").read_bytes() == (whole / "export/model.safetensors").read_bytes()
    assert [r["loss"] for r in read_metrics(stopped)] == [r["loss"] for r in read_metrics(whole)]
    # The checkpoint holds the network alone.
    own = set(transxnet.transxnet_n(image_size=32, num_classes=CLASSES).state_dict())
    with safe_open(next(whole.glob("checkpoints/*/rank_00000.safetensors")), framework="pt") as file:
        names = [name.split("|")[1] for name in file.keys() if "|" in name]  # noqa: SIM118 (not a dict)
    assert names
    assert set(names) <= own
