"""Metrics written for other programs."""

import csv
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs.folder_lock import lock_folder
from jobs.submission_file import Submitted, write_submission
from pipeline.run.files import read_metrics
from pipeline.run.journal import Journal
from pipeline.status.command import main
from pipeline.status.export import open_export
from tests.support.tracking_runs import append_event, append_records


@pytest.fixture
def measured(run_dir):
    append_records(run_dir, range(1, 11))
    with (run_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 11, "time": 1.5, "loss": 0.25, "eval_top1": 0.5}) + "\n")
    return run_dir


def test_a_table_has_a_row_for_each_step_under_mlflows_names(measured, capsys):
    for kind in ("csv", "parquet"):
        assert main(measured, export=kind) == 0
        assert f"exported  {measured}/metrics.{kind}" in capsys.readouterr().out
    records = read_metrics(measured)
    rows = pyarrow.parquet.read_table(measured / "metrics.parquet").to_pylist()
    assert [row["train/loss"] for row in rows] == [record["loss"] for record in records]
    assert [row["eval/top1"] for row in rows] == [record.get("eval_top1") for record in records]
    with (measured / "metrics.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["step"]) for line in lines] == list(range(1, 12))
    assert [float(line["train/loss"]) for line in lines] == [record["loss"] for record in records]
    assert lines[0]["eval/top1"] == ""


def test_watching_mirrors_each_step_of_a_run_that_goes_on(run_dir, monkeypatch):
    monkeypatch.setattr("pipeline.status.command.WATCH_EVERY_S", 0.02)
    append_event(run_dir, "start", 1, 0, step=0, world_size=1)
    append_records(run_dir, range(1, 4))
    (run_dir / "submitit").mkdir()
    write_submission(run_dir / "submitit", Submitted(cluster="local", job_id="1", world_size=1, folder=run_dir))
    held = lock_folder(run_dir / "submitit")  # the job runs

    def wait_for_steps(number: int) -> None:
        mirrored = run_dir / "metrics.csv"
        limit = time.monotonic() + 30
        while not mirrored.exists() or mirrored.read_text(encoding="utf-8").count("\n") != 1 + number:
            assert time.monotonic() < limit
            time.sleep(0.02)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(main, run_dir, watch=True, export="csv")
        try:
            for last in (3, 5, 6):
                append_records(run_dir, range(len(read_metrics(run_dir)) + 1, last + 1))
                wait_for_steps(last)
        finally:
            append_event(run_dir, "end", 1, 9, outcome="finished")
            os.close(held)
        assert watching.result(30) == 0


def in_tensorboard(run_dir, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_has_each_step_once_while_the_run_goes_back_and_on(measured):
    def expected() -> list[tuple[int, float]]:
        return [(r["step"], pytest.approx(r["loss"])) for r in read_metrics(measured)]

    export = open_export(measured, "tensorboard")
    assert export.update() == measured / "tensorboard"
    assert export.update() is None
    assert in_tensorboard(measured, "train/loss") == expected()
    assert in_tensorboard(measured, "eval/top1")[-1] == (11, 0.5)
    # The run is killed and resumes from step 8.
    journal = Journal(measured, 8)
    for step in range(9, 13):
        journal.append({"step": step, "time": 2.0 + step, "loss": 10.0 * step})
    journal.close()
    assert export.update() is not None
    assert in_tensorboard(measured, "train/loss") == expected()
    assert main(measured, export="tensorboard") == 0
    assert len(list((measured / "tensorboard").iterdir())) == 1
    assert in_tensorboard(measured, "train/loss") == expected()


def test_without_tensorboard_one_line_says_what_to_install(measured, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboard.summary.writer.event_file_writer", None)
    with pytest.raises(Exception, match=r"needs the package tensorboard: pip install"):
        main(measured, export="tensorboard")
