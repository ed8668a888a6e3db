"""Who evaluates beside a training, and what the two leave each other of the allocation."""

from dataclasses import replace

import pytest

from jobs import Resources
from pipeline.launch.evaluation import (
    cores_of_rank,
    evaluation_facts,
    evaluation_resources,
    keep_gpus,
    refuse_unused_flags,
    warn_of_idle_gpus,
)
from pipeline.launch.options import LaunchError, LaunchOptions

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


def test_gpus_that_idle_are_named(capsys: pytest.CaptureFixture[str]):
    options = replace(IN_ALLOCATION, evaluate_gpus=2)
    warn_of_idle_gpus(options, Resources(nodes=1, gpus_per_node=8))
    warn_of_idle_gpus(replace(options, evaluate="job"), Resources(nodes=4, gpus_per_node=8))
    assert not capsys.readouterr().err
    warn_of_idle_gpus(options, Resources(nodes=4, gpus_per_node=8))
    assert "warning: 6 of the job's GPUs will not be used" in capsys.readouterr().err
