"""A segmentation on a real Slurm: preempted, it ends with the same weights as uninterrupted."""

import json

import pytest

from tests.slurm.runs import Run, preempt

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_preempted_segmentation_equals_an_uninterrupted_one(slurm, tmp_path):
    whole = Run(tmp_path, "whole", recipe="demo_segmentation").launch()
    output = whole.finish()
    assert whole.status == 0, output
    run = Run(tmp_path, "preempted", recipe="demo_segmentation").launch()
    run.wait_for_step(3)
    preempt(slurm)
    output = run.finish()
    assert run.status == 0, output
    run.assert_equals(whole)
    starts = run.events("start")
    assert len(starts) == 2
    assert starts[1]["step"] == run.events("save")[0]["step"] >= 3
    assert json.loads((run.path / "registered.json").read_text())["name"] == "semantic_fpn_n"
