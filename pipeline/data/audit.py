"""Who read what: `RUN_DIR/audit/step_*.parquet`, with `--train.audit-samples`.

One file a rank and flush, published whole. Flushed where a checkpoint is saved, the files of a run that was killed and
went on say each step once: what lies beyond the checkpoint it went on from is removed first.
"""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from pipeline.data.batch import Batch


logger = logging.getLogger(__name__)
SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("rank", pa.int32()),
        ("sample", pa.int64()),
        ("epoch", pa.int64()),
        ("key", pa.string()),
        ("substitute", pa.int64()),
    ]
)
"""`sample` is a row of the index; `substitute` the row read in a damaged sample's place, or -1."""


class AuditWriter:
    """Records what one rank reads."""

    def __init__(
        self, run_dir: str | Path, rank: int, *, start_step: int, keys: Callable[[Sequence[int]], list[str]]
    ) -> None:
        """Open the audit of a run; rank 0 removes what lies at or beyond `start_step`.

        Build it on every rank before the first collective of the training, so that nothing is written before that.

        Args:
            run_dir: of the run.
            rank: of this process.
            start_step: first step that will be recorded.
            keys: keys of rows, such as `TrainLoader.keys`.
        """
        self._folder, self._rank, self._keys = Path(run_dir) / "audit", rank, keys
        self._rows: list[tuple[np.ndarray, ...]] = []
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if rank == 0:
            _truncate(self._folder, start_step)

    def add(self, batch: "Batch") -> None:
        """Record a batch."""
        steps = np.full(len(batch.indices), batch.step, np.int64)
        self._rows.append((steps, batch.indices.numpy(), batch.epochs.numpy(), batch.substitutes.numpy()))

    def flush(self) -> None:
        """Publish what was recorded since the last flush; call it before a checkpoint is published, and at the end.

        What a full disk does not take is kept, with a warning, and written by the next flush.
        """
        if not self._rows:
            return
        steps, samples, epochs, substitutes = (np.concatenate(parts) for parts in zip(*self._rows, strict=True))
        ranks = np.full(len(steps), self._rank, np.int32)
        columns = [steps, ranks, samples, epochs, self._keys(samples.tolist()), substitutes]
        table = pa.Table.from_arrays(
            [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
        )
        try:
            _publish(table, self._folder / f"step_{steps[0]:08d}_rank_{self._rank:05d}.parquet")
        except OSError as error:
            logger.warning(
                "rank %d: what was read since step %d is not in the audit yet: %s", self._rank, steps[0], error
            )
        else:
            self._rows = []


def read_audit(run_dir: str | Path) -> pa.Table:
    """All rows of a run's audit (`SCHEMA`), by step and rank."""
    files = sorted((Path(run_dir) / "audit").glob("step_*.parquet"))
    tables = [pq.read_table(file, schema=SCHEMA) for file in files]
    return pa.concat_tables(tables or [SCHEMA.empty_table()]).sort_by([("step", "ascending"), ("rank", "ascending")])


def _truncate(folder: Path, start_step: int) -> None:
    """Remove the rows of steps from `start_step` on."""
    for file in folder.glob("step_*.parquet"):
        table = pq.read_table(file, schema=SCHEMA)
        kept = table.filter(pa.array(table["step"].to_numpy() < start_step))
        if not kept.num_rows:
            file.unlink()
        elif kept.num_rows < table.num_rows:
            _publish(kept, file)


def _publish(table: pa.Table, file: Path) -> None:
    """Write a file aside and rename it into place."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        pq.write_table(table, aside)
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)
