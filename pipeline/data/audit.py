"""A record of which rank read which sample: `RUN_DIR/audit/step_*.parquet`, written with `--train.audit-samples`.

Each rank writes one file for each flush, and a file appears complete or not at all. Ranks flush where a checkpoint is
saved, and an attempt first removes the rows at or beyond the step it resumes from. So the audit holds each step once,
even after a run was killed and resumed.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.common.atomic import replacing
from pipeline.config.schema import TrainConfig
from pipeline.tasks.batch import Batch

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
"""Columns of the audit.

`sample` is a row of the index; `substitute` is the row that was read in place of a damaged sample, or -1.
"""


class NullAudit:
    """The audit of a run that keeps none: the training loop calls it, and nothing is written."""

    def add(self, batch: Batch) -> None:
        """Ignore the batch."""

    def flush(self) -> None:
        """Do nothing."""


class AuditWriter:
    """Records the samples that one rank reads."""

    def __init__(
        self, run_dir: str | Path, rank: int, *, start_step: int, keys: Callable[[Sequence[int]], list[str]]
    ) -> None:
        """Open the audit of a run; rank 0 removes the rows at or beyond `start_step`.

        Every rank builds its writer before the first collective of the training: no rank has written a file by then.

        Args:
            run_dir: run directory.
            rank: rank of this process.
            start_step: first step that will be recorded.
            keys: function from rows of the index to sample keys, such as `TrainLoader.keys`.
        """
        self._folder, self._rank, self._keys = Path(run_dir) / "audit", rank, keys
        self._rows: list[tuple[np.ndarray, ...]] = []
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if rank == 0:
            _remove_steps_from(start_step, self._folder)

    def add(self, batch: Batch) -> None:
        """Record the samples of a batch in memory."""
        steps = np.full(len(batch.indices), batch.step, np.int64)
        self._rows.append((steps, batch.indices.numpy(), batch.epochs.numpy(), batch.substitutes.numpy()))

    def flush(self) -> None:
        """Write the rows recorded since the last flush; call it before a checkpoint is published, and at the end.

        If the file cannot be written, as on a full disk, the rows are kept, a warning is logged, and the next flush
        writes them.
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
            with replacing(self._folder / f"step_{steps[0]:08d}_rank_{self._rank:05d}.parquet") as temporary:
                pq.write_table(table, temporary)
        except OSError as error:
            logger.warning(
                "rank %d: the audit rows since step %d could not be written and are kept for the next flush: %s",
                self._rank,
                steps[0],
                error,
            )
        else:
            self._rows = []


def open_audit(
    config: TrainConfig,
    run_dir: str | Path,
    rank: int,
    *,
    start_step: int,
    keys: Callable[[Sequence[int]], list[str]],
) -> AuditWriter | NullAudit:
    """Open the audit of a run, or a `NullAudit` unless `config.audit_samples` is set; arguments as of `AuditWriter`."""
    if not config.audit_samples:
        return NullAudit()
    return AuditWriter(run_dir, rank, start_step=start_step, keys=keys)


def read_audit(run_dir: str | Path) -> pa.Table:
    """Read all rows of a run's audit: a table of `SCHEMA`, sorted by step and rank."""
    files = sorted((Path(run_dir) / "audit").glob("step_*.parquet"))
    tables = [pq.read_table(file, schema=SCHEMA) for file in files]
    return pa.concat_tables(tables or [SCHEMA.empty_table()]).sort_by([("step", "ascending"), ("rank", "ascending")])


def _remove_steps_from(start_step: int, folder: Path) -> None:
    """Remove the rows of all steps from `start_step` on."""
    for file in folder.glob("step_*.parquet"):
        table = pq.read_table(file, schema=SCHEMA)
        kept = table.filter(pa.array(table["step"].to_numpy() < start_step))
        if not kept.num_rows:
            file.unlink()
        elif kept.num_rows < table.num_rows:
            with replacing(file) as temporary:
                pq.write_table(kept, temporary)
