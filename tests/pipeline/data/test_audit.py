"""The audit records each sample once, over kills and changes of world size."""

import resource
from pathlib import Path

import pyarrow.compute as pc
import torch

from pipeline.data.audit import AuditWriter, read_audit
from pipeline.data.loader import build_train_loader
from pipeline.tasks.batch import Batch
from tests.pipeline.data.reading import SAMPLES
from tests.support.small_shards import config


def test_the_audit_covers_each_epoch_once_over_kills_and_other_world_sizes(shards, cache, tmp_path):
    run, steps = tmp_path / "run", -(-3 * SAMPLES // 24)

    def attempt(world_size: int, start: int, saved: int, stop: int) -> None:
        """Train from a checkpoint at `start`, save one at `saved`, and be killed before `stop` with nothing flushed."""
        for rank in range(world_size):
            with build_train_loader(
                config(shards, cache),
                world_size=world_size,
                rank=rank,
                start_step=start,
                total_steps=stop,
                device="cpu",
            ) as loader:
                audit = AuditWriter(run, rank, start_step=start, keys=loader.keys)
                for batches in loader:
                    for batch in batches:
                        audit.add(batch)
                    if batches.step + 1 in (saved, saved + 2):
                        audit.flush()  # the second flush belongs to a checkpoint that was never published

    attempt(1, 0, 3, 7)
    attempt(2, 3, 6, 9)
    attempt(3, 6, steps, steps)
    table = read_audit(run)
    endless = table["epoch"].to_numpy() * SAMPLES + table["sample"].to_numpy()
    assert len(endless) == steps * 24
    for epoch in range(3):
        rows = table.filter(pc.equal(table["epoch"], epoch))
        assert sorted(rows["sample"].to_pylist()) == list(range(SAMPLES))
        assert sorted(rows["key"].to_pylist()) == [f"photo_{number:05d}" for number in range(SAMPLES)]
    assert len(set(endless.tolist())) == len(endless)
    assert set(table["rank"].to_pylist()) == {0, 1, 2}


def test_an_audit_that_a_full_disk_refused_is_written_by_the_next_flush(tmp_path: Path):
    rows = torch.arange(4)
    batch = Batch(torch.zeros(4, 3, 1, 1), rows, rows, 0 * rows, 0 * rows - 1, 0 * rows, step=7, micro_step=0)
    audit = AuditWriter(tmp_path, 0, start_step=0, keys=lambda rows: [str(row) for row in rows])
    audit.add(batch)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    try:
        audit.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "audit").iterdir())
    audit.flush()
    assert read_audit(tmp_path)["sample"].to_pylist() == rows.tolist()
