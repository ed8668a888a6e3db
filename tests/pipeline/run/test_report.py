"""The one-page report shows the state of its run."""

import dataclasses

from pipeline.run.config import RunConfig, read_config
from pipeline.run.files import read_metrics
from pipeline.run.report import draw, markdown, write_report
from pipeline.run.status import read_status
from tests.support.tracking_runs import append_event, append_records


def test_the_report_shows_the_status(run_dir):
    append_event(run_dir, "start", 1, 0, step=0, world_size=4)
    append_records(run_dir, range(1, 31))
    append_event(run_dir, "save", 1, 31, step=30, stall_s=0.5)
    append_event(run_dir, "start", 2, 60, step=30, world_size=2)
    folder = write_report(run_dir)
    text = (folder / "report.md").read_text()
    assert "**transxnet_n: top-1 60.00 %, killed at step 30**" in text
    assert "| steps | 30 of 100 |" in text
    assert [line.split(" | ")[3:] for line in text.splitlines() if line.startswith(("| 1 |", "| 2 |"))] == [
        ["4", "0", "0.0 %", "killed |"],
        ["2", "30", "", "killed |"],
    ]
    assert 'load_model("models:/transxnet_n@champion")' in text
    content = read_config(run_dir).content
    named = RunConfig(run_dir / "config.json", {**content, "registered_name": "toy"})
    assert 'load_model("models:/toy@champion")' in markdown(read_status(run_dir), [], named, {})
    assert (folder / "training.png").read_bytes().startswith(b"\x89PNG")
    # The picture of a single record is drawn too.
    status = read_status(run_dir)
    records = read_metrics(run_dir)[:1]
    draw(folder / "one.png", run_dir, status, records)
    bare = RunConfig(run_dir / "config.json", {"train": content["train"]})
    assert "not evaluated" in markdown(dataclasses.replace(status, attempts=[]), records, bare, {})
