"""The micro-batch that was found for a run is shown by the status and the report, and kept in a file."""

from pathlib import Path
from typing import Literal

import pytest

from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.run.files import RunDirectoryError
from pipeline.run.micro_batch import FoundMicroBatch, describe_micro_batch, read_micro_batch, write_micro_batch
from pipeline.run.report import write_report
from pipeline.run.status import read_status
from pipeline.status.show import format_run
from tests.support.tracking_runs import config_json

FOUND = FoundMicroBatch(micro_batch_size=16, world_size=8, decided_by="rank 5 on n2, NVIDIA A10G (19.9 of 22.5 GiB)")
TEXT = "16 (found in the memory of rank 5 on n2, NVIDIA A10G (19.9 of 22.5 GiB))"


def new_run(run_dir: Path, micro_batch_size: int | Literal["auto"] | None = "auto") -> Path:
    model = ModelConfig(name="transxnet_n")
    config_json(run_dir, TrainConfig(steps=100, micro_batch_size=micro_batch_size, model=model), None)
    return run_dir


def test_status_and_report_show_it_where_the_run_has_auto(tmp_path: Path):
    run_dir = new_run(tmp_path / "run")
    assert "  batch      micro-batch not found yet (auto)" in format_run(read_status(run_dir), now=0.0)
    write_micro_batch(run_dir, FOUND)
    assert f"  batch      micro-batch {TEXT}" in format_run(read_status(run_dir), now=0.0)
    assert f"| micro-batch | {TEXT} |" in (write_report(run_dir) / "report.md").read_text(encoding="utf-8")
    for given in (16, None):
        assert describe_micro_batch(new_run(run_dir, given)) is None
    assert read_micro_batch(run_dir) == FOUND


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"micro_batch_size": 0, "world_size": 1, "decided_by": ""}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str):
    (tmp_path / "micro_batch.json").write_text(content, encoding="utf-8")
    with pytest.raises(RunDirectoryError, match=r"micro_batch\.json is damaged: restore it, or remove it"):
        read_micro_batch(tmp_path)
    with pytest.raises(RunDirectoryError, match=r"missing/micro_batch\.json cannot be written"):
        write_micro_batch(tmp_path / "missing", FOUND)


def test_a_newer_version_may_add_fields(tmp_path: Path):
    (tmp_path / "micro_batch.json").write_text(
        '{"micro_batch_size": 4, "world_size": 2, "decided_by": "", "temperature": 30}', encoding="utf-8"
    )
    assert read_micro_batch(tmp_path) == FoundMicroBatch(micro_batch_size=4, world_size=2)
