"""A teacher is checked before anything is queued."""

import pytest
import torch

import transxnet
from pipeline.launch.command import main
from pipeline.launch.options import parse
from pipeline.launch.plan import build_plan
from tests.support.small_shards import pack


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    """Runs a dry run over five classes at 32 px, and returns its exit status and what it prints."""
    monkeypatch.chdir(tmp_path)
    pack(tmp_path / "shards", (24,))
    pack(tmp_path / "shards", (24,), split="validation")

    def start(*flags: str) -> tuple[int, str]:
        words = (
            "--recipe tiny --cluster local --dry-run --run-dir run --tasks-per-node 1 --train.model.name transxnet_n"
        )
        words += " --train.model.image-size 32 --train.global-batch-size 8 --train.steps 2"
        status = main([*words.split(), *flags])
        printed = capsys.readouterr()
        return status, printed.err if status else printed.out + printed.err

    return start


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--train.distill", "three.pth"], "three.pth: transxnet_n tells 3 classes apart, and the shards have 5"),
        pytest.param(
            ["--train.distill", "models:/none@champion"],
            "--train.distill models:/none@champion: ",
            marks=pytest.mark.thorough,
        ),
        (["--train.distill", "timm:no_such_net"], "--train.distill timm:no_such_net: timm has no such model"),
        (["--train.distillation.weight", "0.3"], "there is none: give --train.distill"),
        (["--train.distill", "three.pth", "--train.distillation.weight", "0"], "distillation.weight 0.0 must be in (0"),
        (["--train.distill", "three.pth", "--train.distillation.temperature", "0"], "temperature 0.0 must be greater"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(start, flags, words):
    torch.save({"state_dict": transxnet.transxnet_n(image_size=32, num_classes=3).state_dict()}, "three.pth")
    status, printed = start(*flags)
    assert status == 2
    assert words in printed
    assert printed.count("\n") == 1


def test_a_teacher_that_can_teach_is_accepted_and_one_that_is_not_here_is_named(start):
    torch.save({"state_dict": transxnet.transxnet_n(image_size=32, num_classes=5).state_dict()}, "five.pth")
    status, printed = start("--train.distill", "five.pth", "--train.distillation.kind", "hard")
    assert status == 0
    assert "# data: 24 training" in printed
    status, printed = start("--train.distill", "gone.pth")
    assert status == 0
    assert "a launch from here would be refused: --train.distill /" in printed


@pytest.mark.parametrize("recipe", ["demo_segmentation", "demo_detection"])
def test_tasks_without_teachers_say_so(recipe, capsys):
    assert main(["--recipe", recipe, "--dry-run", "--train.distill", "models:/transxnet_t@champion"]) == 2
    task = recipe.removeprefix("demo_")
    assert f"--train.distill: a {task} learns from no teacher: leave it out" in capsys.readouterr().err


def test_a_local_folder_of_timm_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, expected in (
        ("timm:local-dir:a/../b", f"timm:local-dir:{tmp_path}/b"),
        ("timm:resnet50", "timm:resnet50"),
        ("runs/a", f"{tmp_path}/runs/a"),
    ):
        plan = build_plan(parse(["--cluster", "slurm", "--dry-run", "--gpus-per-node", "8", "--train.distill", given]))
        assert plan.runs[0].config.distill == expected
