"""How the time of a run divides into productive steps, lost steps, restarts, saves and the rest."""

from pathlib import Path

import pytest

from pipeline.engine.distributed import World
from pipeline.run.files import read_events, read_metrics
from pipeline.run.goodput import StartUp, attempts_spent, run_spent
from pipeline.run.recorder import Recorder


def record(step: int, attempt: int, time: float) -> dict:
    return {"step": step, "attempt": attempt, "time": time, "step_s": 2.0, "data_wait": 0.25}


def event(kind: str, attempt: int, time: float, **fields) -> dict:
    return {"event": kind, "attempt": attempt, "time": time, **fields}


STARTED = {"seconds": 12.0, "parts": {"launch": 10.0, "first step": 2.0}}
EVENTS = [
    event("start", 1, 110, began=100, step=0),
    event("first_step", 1, 112, **STARTED),
    event("save", 1, 115, stall_s=0.5),
    event("saved", 1, 116, stall_s=0.25),
    event("evaluate", 1, 119, seconds=3.0),
    # Killed at 125: the two steps after the checkpoint are lost. The run is down for 75 s.
    event("start", 2, 210, began=200, step=2, lost_steps=2, lost_s=4.0, lost_until=125),
    event("first_step", 2, 212, **STARTED),
    event("end", 2, 220),
]
RECORDS = [record(1, 1, 112), record(2, 1, 114), record(3, 2, 212), record(4, 2, 214)]


def test_the_parts_of_a_runs_time_add_up():
    first, second = attempts_spent(EVENTS, RECORDS).values()
    assert (first.wall, first.productive, first.data_wait, first.restart) == (25, 3, 1, 10)
    assert (first.save, first.evaluation, first.lost, first.down, first.other) == (0.75, 3, 4, 0, 3.25)
    assert (second.wall, second.productive, second.restart, second.other) == (20, 3, 10, 6)
    whole = run_spent(EVENTS, RECORDS)
    assert (whole.wall, whole.down, whole.lost) == (120, 75, 4)
    assert whole.goodput == pytest.approx(6 / 120)
    parts = {name: value for name, value in whole.rounded().items() if name != "wall"}
    assert sum(parts.values()) == whole.wall
    assert whole.describe().startswith("goodput 5.0 % of 120.0 s: steps 6.0 s, down 75.0 s, restart 20.0 s")


def test_a_clock_that_goes_backwards_gives_no_negative_time():
    backwards = [
        {**e, "time": 1000 - e["time"], **({"began": 1000 - e["began"]} if "began" in e else {})} for e in EVENTS
    ]
    for spent in [*attempts_spent(backwards, RECORDS).values(), run_spent(backwards, RECORDS)]:
        assert min(spent.rounded().values()) >= 0
    assert run_spent([], []).goodput == 0


def test_an_attempt_reports_lost_steps_and_its_goodput(tmp_path: Path, capsys):
    world = World(rank=0, local_rank=0, size=1, device=None)  # type: ignore[arg-type]
    fields = {"loss": 1.0, "step_s": 0.5, "data_wait": 0.5, "time": 1.0}
    killed = Recorder(tmp_path, is_main=True, world_size=world.size, start_up=StartUp())
    killed.open(0)
    for step in (1, 2, 3):
        killed.step({"step": step, **fields})
    killed.close()
    resumed = Recorder(tmp_path, is_main=True, world_size=world.size, start_up=StartUp())
    resumed.open(1)
    resumed.step({"step": 2, **fields})
    resumed.end("finished")
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2]
    starts = [e for e in read_events(tmp_path) if e["event"] == "start"]
    assert (starts[1]["attempt"], starts[1]["lost_steps"], starts[1]["lost_s"]) == (2, 2, 1.0)
    end = read_events(tmp_path)[-1]
    assert end["time_spent"]["productive"] == end["time_spent"]["data_wait"] == 0.25
    said = capsys.readouterr().out
    assert said.count("s after the start of the process (launch ") == 2
    assert "attempt 2: goodput" in said
