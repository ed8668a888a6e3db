"""Status shows what it can read of a run whose files are damaged, cut short or of another version."""

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import PipelineError
from pipeline.run.config import read_config
from pipeline.run.files import read_events, read_timed_metrics
from pipeline.run.goodput import attempts_spent
from pipeline.run.report import markdown
from pipeline.run.status import read_status
from pipeline.status.command import main
from pipeline.status.jobs import Jobs
from pipeline.status.show import format_run, format_table
from pipeline.tracking.state import TrackingState, save_state
from tests.support.tracking_runs import append_event, append_records, write_checkpoint

WRONG = (None, "text", -1.5, 1e999, True, [], {}, 10**30)


@pytest.fixture
def whole_run(run_dir: Path) -> Path:
    """A run with every file that status reads."""
    append_event(run_dir, "start", 1, 0, step=0, world_size=2, began=1_699_999_990.0)
    append_event(run_dir, "first_step", 1, 1, seconds=9.0, parts={"imports": 4.0, "first step": 1.0})
    append_records(run_dir, range(1, 21))
    append_event(run_dir, "save", 1, 20, step=20, stall_s=0.1)
    append_event(run_dir, "saved", 1, 21, step=20, stall_s=0.1, seconds=1.0)
    append_event(run_dir, "evaluate", 1, 21, step=20, seconds=0.5)
    append_event(run_dir, "start", 2, 40, step=20, world_size=2, lost_steps=2, lost_s=2.0, lost_until=1_700_000_022.0)
    append_event(run_dir, "end", 2, 60, outcome="finished", time_spent={"wall": 20.0})
    write_checkpoint(run_dir, 20)
    registered = {"name": "m", "version": "1", "aliases": ["latest"], "uri": "models:/m/1", "step": 20, "top1": 0.4}
    (run_dir / "registered.json").write_text(json.dumps(registered), encoding="utf-8")
    (run_dir / "submitit").mkdir()
    submission = {"cluster": "local", "job_id": "1", "folder": str(run_dir / "submitit"), "world_size": 2}
    (run_dir / "submitit/submission.json").write_text(json.dumps(submission), encoding="utf-8")
    save_state(run_dir, TrackingState(key="k", run_id="r", tracking_uri="http://127.0.0.1:9", behind_since=1e9))
    return run_dir


def show(run_dir: Path) -> str:
    """Everything that status and the report show of a run."""
    status = read_status(run_dir)
    job = Jobs().describe(run_dir)
    records = read_timed_metrics(run_dir)
    spent = attempts_spent(read_events(run_dir), records)
    lines = [*format_run(status, time.time(), job), *format_table([status], run_dir.parent)]
    return "\n".join([*lines, markdown(status, records, read_config(run_dir), spent)])


def damaged(content: bytes) -> Iterator[bytes]:
    """The content of a JSON or JSON-lines file, cut, with other bytes, and with every field missing or of any type."""
    yield from (b"", content[: len(content) // 2], content[:-3] + b"\xff\xfe\n", b"\0" * 100, b'[1]\n3\nnull\n"x"\n')
    lines = content.splitlines() if content.count(b"\n{") else [content]
    for number in {0, 1, len(lines) // 2, len(lines) - 1} & set(range(len(lines))):
        record: dict[str, Any] = json.loads(lines[number])
        for key in record:
            rest = {name: value for name, value in record.items() if name != key}
            for changed in (rest, *(rest | {key: wrong} for wrong in WRONG)):
                yield b"\n".join([*lines[:number], json.dumps(changed).encode(), *lines[number + 1 :]]) + b"\n"


@pytest.mark.parametrize(
    "name",
    [
        "metrics.jsonl",
        "attempts.jsonl",
        *(
            pytest.param(name, marks=pytest.mark.thorough)
            for name in ("registered.json", "mlflow.json", "submitit/submission.json")
        ),
    ],
)
def test_damage_to_one_file_leaves_the_rest_shown(whole_run: Path, name: str):
    content = (whole_run / name).read_bytes()
    assert "step 20" in show(whole_run)
    for number, damage in enumerate(damaged(content)):
        (whole_run / name).write_bytes(damage)
        try:
            shown = show(whole_run)
        except Exception as error:
            raise AssertionError(f"damage {number} of {name}: {damage[-300:]!r}") from error
        assert "(transxnet_n)" in shown


def test_a_damaged_configuration_is_one_line(whole_run: Path):
    content = (whole_run / "config.json").read_bytes()
    for damage in damaged(content):
        (whole_run / "config.json").write_bytes(damage)
        with contextlib.suppress(PipelineError):
            show(whole_run)


def test_an_unreadable_run_does_not_hide_the_others(whole_run: Path, capsys: pytest.CaptureFixture[str]):
    other = whole_run.parent / "other"
    shutil.copytree(whole_run, other)
    (other / "metrics.jsonl").unlink()
    (other / "metrics.jsonl").mkdir()
    assert main(whole_run.parent) == 0
    shown = capsys.readouterr().out
    assert f"{other} cannot be read: " in shown
    assert "finished" in shown
