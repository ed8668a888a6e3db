"""The primary metric: what is better, how it is stored, and what was stored before tasks had names."""

import math
from dataclasses import asdict

import pytest

from pipeline.tasks import Metric, find_task, stored_metric
from pipeline.tasks.registry import TASKS


def test_a_metric_survives_files_and_tags():
    metric = Metric(name="error", value=0.25, higher_is_better=False)
    assert stored_metric(metric.stored()) == metric
    assert stored_metric({name: str(value) for name, value in metric.stored().items()}) == metric
    assert stored_metric({"metric": None}) is None


def test_what_was_stored_before_tasks_had_names_is_a_top1():
    assert stored_metric({"top1": "0.5", "top5": "0.9"}) == Metric(name="top1", value=0.5)
    assert stored_metric({"top1": None}) is None
    assert stored_metric({}) is None


def test_better_is_greater_or_smaller_and_never_another_metric_or_not_a_number():
    good, bad = Metric(name="miou", value=0.7), Metric(name="miou", value=0.6)
    assert good.beats(bad)
    assert not bad.beats(good)
    assert not good.beats(good)
    assert good.beats(None)
    assert not Metric(name="miou", value=math.nan).beats(None)
    assert not good.beats(Metric(name="top1", value=0.1))
    low, high = (Metric(name="error", value=value, higher_is_better=False) for value in (0.1, 0.2))
    assert low.beats(high)
    assert not high.beats(low)


@pytest.mark.parametrize("name", TASKS)
def test_scores_go_into_a_record_and_back(name):
    scores = find_task(name).scores
    values = {score.name: 0.5 for score in scores}
    record = {"step": 3, "loss": 1.0, **scores.record(values)}
    assert scores.of_record(record) == values
    assert scores.metric_of_record(record) == Metric(**asdict(scores.metric(values)))
    assert scores.metric_of_record({"step": 3, "loss": 1.0}) is None
