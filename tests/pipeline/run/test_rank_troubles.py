"""Slow and hanging ranks are shown by the status, the report and MLflow, from the events of the attempts."""

from pathlib import Path

import pytest

from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.run.rank_troubles import describe_troubles, present_troubles, rank_troubles
from pipeline.run.report import write_report
from pipeline.run.status import read_status
from pipeline.status.show import format_run
from pipeline.tracking.description import TROUBLES_TAG
from pipeline.tracking.shipper import Shipper
from tests.support.tracking_runs import append_event, append_records, config_json, new_store

SLOW = {"step": 110, "rank": 1, "host": "n2", "part": "computing", "ratio": 3.04, "work_s": 0.3, "others_s": 0.1}
TEXT = "rank 1 on n2 slow in computing (3.0 times the others), from step 110"


def test_a_slow_rank_is_shown_while_it_is_slow_and_kept_in_the_report(run_dir: Path):
    append_event(run_dir, "start", 1, 0, step=0, world_size=2)
    append_records(run_dir, range(1, 31))
    append_event(run_dir, "slow_rank", 1, 31, **SLOW)
    status = read_status(run_dir)
    assert f"  ranks      {TEXT} on" in format_run(status, now=status.attempts[-1].ended)
    append_event(run_dir, "well_rank", 1, 32, **{**SLOW, "step": 300})
    status = read_status(run_dir)
    assert not [line for line in format_run(status, now=0.0) if line.startswith("  ranks")]
    append_event(run_dir, "hang", 1, 33, step=310, rank=0, host="n1", place="data/pool.py:88, in wait")
    text = (write_report(run_dir) / "report.md").read_text()
    both = f"{TEXT} to 300; rank 0 on n1 hangs (data/pool.py:88, in wait), from step 310 on"
    assert f"| slow or hanging ranks | {both} |" in text
    # What an attempt found does not hold for the next one.
    append_event(run_dir, "start", 2, 34, step=310, world_size=2)
    troubles = read_status(run_dir).troubles
    assert describe_troubles(troubles) == both
    assert present_troubles(troubles, 2) == []


@pytest.mark.thorough
def test_mlflow_has_the_slow_ranks_as_a_tag_that_changes_with_them(tmp_path: Path):
    run_dir = tmp_path / "run"
    config_json(run_dir, TrainConfig(steps=100, model=ModelConfig(name="transxnet_n")), new_store(tmp_path))
    append_event(run_dir, "start", 1, 0, step=0, world_size=2)
    shipper = Shipper(run_dir)

    def tag() -> str | None:
        shipper.ship(durable=-1)
        return shipper.client.get_run(str(shipper.state.run_id)).data.tags.get(TROUBLES_TAG)

    assert tag() is None
    append_event(run_dir, "slow_rank", 1, 31, **SLOW)
    assert tag() == f"{TEXT} on"
    append_event(run_dir, "well_rank", 1, 32, **{**SLOW, "step": 300})
    assert tag() == f"{TEXT} to 300"


def test_a_hang_is_over_when_the_ranks_go_on():
    hang = {"event": "hang", "attempt": 1, "step": 7, "rank": 1, "host": "n2", "place": "data/pool.py:88"}
    slow = {"event": "slow_rank", "attempt": 1, **SLOW}
    troubles = rank_troubles([hang, slow, {"event": "hang_over", "attempt": 1, "step": 8}])
    assert [trouble.until for trouble in troubles] == [8, None]
    assert present_troubles(troubles, 1) == troubles[1:]


def test_events_that_lack_what_they_should_have_are_passed_over():
    events = [{"event": "slow_rank"}, {"event": "hang", "rank": "1", "step": 3}, {"event": "well_rank", "rank": 1}]
    assert rank_troubles(events) == []
    [bare] = rank_troubles([{"event": "slow_rank", "rank": 0, "step": 7}])
    assert bare.describe() == "rank 0 on an unknown host slow in computing, from step 7 on"
