"""A segmentation and a detection on a real Slurm: preempted, each ends with the same weights as uninterrupted."""

import json

import pytest

from tests.slurm.runs import Run, preempt

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.mark.parametrize(
    ("recipe", "name"), [("demo_segmentation", "semantic_fpn_n"), ("demo_detection", "mask_rcnn_n")]
)
def test_a_preempted_training_equals_an_uninterrupted_one(slurm, tmp_path, recipe, name):
    whole = Run(tmp_path, "whole", recipe=recipe).launch()
    output = whole.finish()
    assert whole.status == 0, output
    run = Run(tmp_path, "preempted", recipe=recipe).launch()
    run.wait_for_step(3)
    preempt(slurm)
    output = run.finish()
    assert run.status == 0, output
    run.assert_equals(whole)
    starts = run.events("start")
    assert len(starts) == 2
    assert starts[1]["step"] == run.events("save")[0]["step"] >= 3
    assert json.loads((run.path / "registered.json").read_text())["name"] == name
