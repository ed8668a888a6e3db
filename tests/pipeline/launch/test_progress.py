"""What the launcher shows of a training while it follows it."""

import time

import pytest

from jobs import Update
from pipeline.launch.progress import Progress
from tests.support.tracking_runs import append_records


@pytest.mark.parametrize("terminal", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_remaining_time_does_not_count_the_time_between_two_attempts(run_dir, monkeypatch, capsys, terminal):
    monkeypatch.setattr("pipeline.launch.progress.LINE_EVERY_S", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    progress = Progress({"": run_dir}, 100)
    append_records(run_dir, range(1, 3))
    progress.show("", Update(state="RUNNING"))
    # The job is requeued, and the next attempt does a hundred steps a second.
    time.sleep(1.5)
    for step in range(3, 23):
        append_records(run_dir, range(step, step + 1), attempt=2)
        progress.show("", Update(state="RUNNING"))
        time.sleep(0.01)
    progress.close()
    output, bar = capsys.readouterr()
    if terminal:
        assert " 22/100 [00:00<00:0" in bar
    else:
        assert output.splitlines()[-1].endswith("remaining 0:01")
