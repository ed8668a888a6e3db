"""The state of a run, read from its files at every stage."""

import fcntl
import json
import os
import time

import pytest

from pipeline.run.status import read_status, run_state
from pipeline.run.usage import read_usage
from pipeline.status.show import format_run
from tests.support.tracking_runs import START, append_event, append_records, write_checkpoint


def test_state_of_a_run_from_submission_to_its_end(run_dir):
    assert run_state(run_dir) == "submitted"
    with open(run_dir / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        append_event(run_dir, "start", 1, 0, step=0, world_size=4)
        append_records(run_dir, range(1, 21))
        status = read_status(run_dir, now=START + 25)
        assert (status.state, status.step, status.total_steps) == ("running", 20, 100)
        assert status.remaining_s == pytest.approx(80)
        assert status.images_per_s == pytest.approx(1024)
        assert status.checkpoint_step is None
    assert run_state(run_dir) == "killed"
    write_checkpoint(run_dir, 20)
    append_event(run_dir, "end", 1, 22, outcome="interrupted")
    assert run_state(run_dir) == "interrupted"
    append_event(run_dir, "start", 2, 60, step=20, world_size=2)
    append_records(run_dir, range(21, 101), attempt=2, start=START + 40)
    append_event(run_dir, "end", 2, 142, outcome="finished")
    status = read_status(run_dir)
    assert status.state == "finished"
    assert [(span.number, span.first_step, span.world_size, span.outcome) for span in status.attempts] == [
        (1, 0, 4, "interrupted"),
        (2, 20, 2, "finished"),
    ]
    assert status.attempts[0].ended - status.attempts[0].started == 22
    assert status.checkpoint_step == 20
    assert status.remaining_s is None


def test_a_restart_is_not_counted_to_the_previous_attempt(run_dir):
    append_event(run_dir, "start", 1, 0, step=0, world_size=4)
    append_records(run_dir, range(1, 21))
    append_event(run_dir, "end", 1, 22, outcome="interrupted")
    with open(run_dir / ".lock", "w", encoding="utf-8") as lock:
        # The second attempt has built nothing yet.
        fcntl.flock(lock, fcntl.LOCK_EX)
        later = time.time() + 1
        os.utime(run_dir / ".lock", (later, later))
        status = read_status(run_dir, now=START + 2000)
        assert status.state == "running"
        assert status.remaining_s is None
        assert "  attempt    1 on 4 ranks, from step 0, 0:22; the next one is starting" in format_run(status, START)
        append_event(run_dir, "start", 2, 2000, step=20, world_size=4)
        os.utime(run_dir / "attempts.jsonl", (later, later))
        assert read_status(run_dir, now=START + 2010).attempts[-1].ended == START + 2010
        append_records(run_dir, range(21, 31), attempt=2, start=START + 2000)
        # A hundred steps in all, one a second.
        assert read_status(run_dir, now=START + 2030).remaining_s == pytest.approx(70)


def test_an_attempt_that_begins_with_a_preflight_has_its_ranks_and_its_first_step(run_dir):
    append_event(run_dir, "preflight", 2, 10, findings=[])
    append_event(run_dir, "start", 2, 11, step=100, world_size=4, device="cuda", began=START + 5)
    (span,) = read_status(run_dir).attempts
    assert (span.world_size, span.on_gpus, span.first_step, span.started - START) == (4, True, 100, 5)
    assert read_usage(run_dir, [span]).on_gpus


def test_a_failed_run_is_failed_while_its_processes_still_end(run_dir):
    with open(run_dir / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        append_event(run_dir, "start", 1, 0, step=0, world_size=1)
        append_event(run_dir, "end", 1, time.time() - START + 60, outcome="failed")
        assert run_state(run_dir) == "failed"


def test_goodput_counts_only_steps_that_stay(run_dir):
    append_event(run_dir, "start", 1, 0, step=0, world_size=1)
    append_event(run_dir, "start", 2, 90, step=10, world_size=1)
    append_event(run_dir, "end", 2, 100, outcome="finished")
    records = [{"step": k, "time": START + k, "step_s": 2.5} for k in range(1, 21)]
    assert read_status(run_dir).goodput is None
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    # Twenty steps of 2.5 s in 100 s; steps that the first attempt lost are not in the journal.
    status = read_status(run_dir)
    assert status.goodput == pytest.approx(0.5)
    assert any("goodput 50.0 % of 100.0 s: steps 50.0 s" in line for line in format_run(status, START))
