"""Who evaluates beside a training, and what the two leave each other of the allocation."""

from dataclasses import replace

import pytest

from jobs import Resources
from pipeline.config.schema import ConfigError
from pipeline.launch.evaluation import (
    cores_of_rank,
    evaluation_facts,
    evaluation_resources,
    keep_gpus,
    refuse_unused_flags,
    warn_of_idle_gpus,
)
from pipeline.launch.options import LaunchError, LaunchOptions
from pipeline.launch.plan import build_plan
from pipeline.recipes import RECIPES

IN_ALLOCATION = LaunchOptions(evaluate="allocation")


@pytest.mark.parametrize(
    ("kept", "asked", "tasks", "evaluating"),
    [
        (None, Resources(gpus_per_node=8), 7, 1),
        (4, Resources(gpus_per_node=8), 4, 4),
        (2, Resources(gpus_per_node=8, tasks_per_node=4), 4, 2),
        (0, Resources(gpus_per_node=8), 8, 0),
        (None, Resources(tasks_per_node=2), 2, 0),
        (None, Resources(), 1, 0),
    ],
)
def test_the_allocation_keeps_gpus_from_the_training(kept: int | None, asked: Resources, tasks: int, evaluating: int):
    options = replace(IN_ALLOCATION, evaluate_gpus=kept, resources=asked)
    training = keep_gpus(options, asked)
    assert (training.gpus_per_node, training.processes_per_node) == (asked.gpus_per_node, tasks)
    wanted = evaluation_resources(options, training, "local", workers=2)
    assert wanted is not None
    assert (wanted.nodes, wanted.gpus_per_node, wanted.processes_per_node) == (1, evaluating, max(1, evaluating))
    # Each rank gets its part of the cores for the evaluation beside it.
    cores = tasks * cores_of_rank(options, training, workers=2)
    assert cores >= 3 * (tasks + max(1, evaluating)) > cores - tasks
    facts = evaluation_facts("tiny", wanted, "slurm", in_allocation=True)
    # What is left after the training's job gets one of its own.
    assert facts is not None
    assert (facts["cluster"], facts["in_allocation"]) == ("slurm", True)


@pytest.mark.parametrize(
    ("kept", "asked", "words"),
    [
        (None, Resources(gpus_per_node=1), "--evaluate-gpus 1 leaves the training none of --gpus-per-node 1: lower"),
        (3, Resources(gpus_per_node=2), "--evaluate-gpus 3 leaves the training none of --gpus-per-node 2: lower"),
        (
            None,
            Resources(gpus_per_node=4, tasks_per_node=4),
            "--tasks-per-node 4 and --evaluate-gpus 1 together are more than --gpus-per-node 4: lower",
        ),
        (1, Resources(tasks_per_node=2), "--evaluate-gpus 1: the job has no GPUs: add --gpus-per-node"),
    ],
)
def test_gpus_that_a_node_does_not_have_are_refused(kept: int | None, asked: Resources, words: str):
    with pytest.raises(LaunchError) as refused:
        keep_gpus(replace(IN_ALLOCATION, evaluate_gpus=kept), asked)
    assert str(refused.value).startswith(words)
    assert "\n" not in str(refused.value)


def dry_run(recipe: str, resources: Resources) -> LaunchOptions:
    """A launch on this machine that is only shown, whose allocation evaluates."""
    train = RECIPES[recipe].train()
    return replace(IN_ALLOCATION, recipe=recipe, train=train, cluster="local", resources=resources, dry_run=True)


def test_ranks_that_no_longer_divide_the_global_batch_are_refused_with_what_fits():
    options = dry_run("tiny", Resources(gpus_per_node=8))
    with pytest.raises(ConfigError) as refused:
        build_plan(options)
    assert "world_size 7" in str(refused.value)
    assert str(refused.value).endswith(
        "; --evaluate allocation keeps 1 of 8 GPUs of each node from the training: --evaluate-gpus 4 would fit as well"
    )
    assert build_plan(replace(options, evaluate_gpus=4)).resources.world_size == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (LaunchOptions(evaluate_gpus=1), "--evaluate-gpus is for evaluations beside the training"),
        (LaunchOptions(evaluate_timeout_min=5), "--evaluate-timeout-min is for evaluation jobs: add --evaluate job"),
        (replace(IN_ALLOCATION, evaluate_timeout_min=5), "--evaluate-timeout-min is for --evaluate job; in the"),
        (replace(IN_ALLOCATION, evaluate_partition="gpu"), "--evaluate-partition is for --evaluate job; in the"),
        (replace(IN_ALLOCATION, evaluate_gpus=-1), "--evaluate-gpus -1 must be at least 0"),
        (LaunchOptions(evaluate="job", evaluate_partition="gpu"), "--evaluate-partition is for Slurm"),
    ],
)
def test_flags_of_another_way_to_evaluate_are_refused(options: LaunchOptions, words: str):
    with pytest.raises(LaunchError, match=words):
        refuse_unused_flags(options, "local")


def test_ranks_without_a_number_of_gpus_are_refused_where_nodes_have_some(monkeypatch: pytest.MonkeyPatch):
    options = dry_run("demo", Resources(tasks_per_node=2))
    assert build_plan(options).evaluation is not None
    monkeypatch.setattr("pipeline.launch.plan.query_gpus", lambda _: ["H200"] * 4)
    with pytest.raises(LaunchError, match=r"nodes have 4 GPUs, .*: add --gpus-per-node 4, or --evaluate-gpus 0 if"):
        build_plan(options)
    plan = build_plan(replace(options, evaluate_gpus=0))
    assert plan.evaluation is not None
    assert plan.evaluation.gpus_per_node == 0


def test_an_evaluation_takes_no_more_of_a_node_than_the_training():
    asked = Resources(gpus_per_node=8, tasks_per_node=2, cpus_per_task=24, mem_gb=400.0)
    for kept, cores, memory in ((6, 8, 400.0), (1, 24, 200.0)):
        options = replace(IN_ALLOCATION, evaluate_gpus=kept, resources=asked)
        wanted = evaluation_resources(options, keep_gpus(options, asked), "local", workers=2)
        assert wanted is not None
        assert (wanted.cpus_per_task, wanted.mem_gb) == (cores, memory)


def test_gpus_that_idle_are_named(capsys: pytest.CaptureFixture[str]):
    options = replace(IN_ALLOCATION, evaluate_gpus=2)
    warn_of_idle_gpus(options, Resources(nodes=1, gpus_per_node=8))
    warn_of_idle_gpus(replace(options, evaluate="job"), Resources(nodes=4, gpus_per_node=8))
    assert not capsys.readouterr().err
    warn_of_idle_gpus(options, Resources(nodes=4, gpus_per_node=8))
    assert "warning: 6 of the job's GPUs will not be used" in capsys.readouterr().err
