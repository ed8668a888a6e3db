"""The journal holds each step once."""

import resource
import signal
from pathlib import Path

import pytest

from pipeline.run.files import read_metrics
from pipeline.run.journal import Journal


def test_the_journal_holds_each_step_once(tmp_path: Path):
    journal = Journal(tmp_path, 0)
    for step in range(1, 6):
        assert journal.append({"step": step, "loss": step / 3}) is None
    journal.sync()
    journal.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "lo')
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    journal = Journal(tmp_path, 3)
    journal.append({"step": 4, "loss": 0.0})
    journal.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(1, 1 / 3), (2, 2 / 3), (3, 1.0), (4, 0.0)]


def test_a_journal_that_a_full_disk_refused_is_an_error_before_a_checkpoint(tmp_path: Path):
    journal = Journal(tmp_path, 0)
    assert journal.append({"step": 1}) is None
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (15, limits[1]))
        assert journal.append({"step": 2}) is not None
        with pytest.raises(OSError):
            journal.sync()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, former)
    journal.sync()
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2]
    journal.close()
