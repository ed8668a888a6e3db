"""Metrics as an offline run of Weights & Biases, read from the bytes that `wandb sync` sends."""

import json
import struct
from pathlib import Path

import pytest

from pipeline.config.schema import TrainConfig
from pipeline.run.files import read_metrics
from pipeline.status.command import main
from pipeline.status.export import open_export
from tests.support.tracking_runs import append_records, config_json, write_checkpoint

BLOCK, HEADER, LAST_PARTS = 32768, 7, (1, 4)


def records_of(path: Path) -> "list[bytes]":
    """The records of a file of Weights & Biases, which has the form of LevelDB's logs."""
    content, records, parts, at = path.read_bytes(), [], b"", HEADER
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + HEADER])
        parts += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in LAST_PARTS:
            records.append(parts)
            parts = b""
    return records


def in_wandb(run_dir: Path, name: str) -> list[tuple[int, float]]:
    from wandb.proto.wandb_internal_pb2 import Record

    [path] = (run_dir / "wandb").glob("offline-run-*/*.wandb")
    found = []
    for content in records_of(path):
        record = Record()
        record.ParseFromString(content)
        if record.HasField("history"):
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            if name in values:
                found.append((record.history.step.num, values[name]))
    return found


@pytest.mark.thorough
def test_an_offline_run_has_the_steps_that_no_resumed_run_computes_again(run_dir):
    append_records(run_dir, range(1, 11))
    write_checkpoint(run_dir, 6)
    export = open_export(run_dir, "wandb")
    assert export.update() is not None
    assert export.update() is None
    write_checkpoint(run_dir, 8)
    assert export.update() is not None
    export.close()
    assert in_wandb(run_dir, "train/loss") == [(r["step"], r["loss"]) for r in read_metrics(run_dir)[:8]]


@pytest.mark.thorough
def test_several_runs_are_written_side_by_side(run_dir, tmp_path, capsys):
    second = tmp_path / "second run"
    config_json(second, TrainConfig(steps=100), None)
    for folder in (run_dir, second):
        append_records(folder, range(1, 4))
        write_checkpoint(folder, 3)
    assert main(tmp_path, export="wandb") == 0
    assert capsys.readouterr().out.count("exported  ") == 2
    for folder in (run_dir, second):
        assert [step for step, _ in in_wandb(folder, "train/loss")] == [1, 2, 3]


@pytest.mark.thorough
def test_the_command_writes_it_anew_and_completes_it(run_dir, capsys):
    append_records(run_dir, range(1, 11))
    write_checkpoint(run_dir, 10)
    for _ in range(2):
        assert main(run_dir, export="wandb") == 0
        assert f"exported  {run_dir}/wandb/offline-run-" in capsys.readouterr().out
        assert [step for step, _ in in_wandb(run_dir, "eval/top1")] == [10]


def test_without_the_package_one_line_says_what_to_install(run_dir, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(Exception, match=r"--export wandb needs the package wandb: pip install"):
        open_export(run_dir, "wandb")
    assert not (run_dir / "wandb").exists()
