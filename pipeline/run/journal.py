"""`RUN_DIR/metrics.jsonl`: one JSON object for every finished step, each step once, however often jobs were killed."""

import json
import os
from pathlib import Path
from typing import Any

from pipeline.common.atomic import replacing
from pipeline.run.files import METRICS_NAME, read_metrics


class Journal:
    """Appends records; while the disk is full it keeps them in memory and writes them with a later one."""

    def __init__(self, run_dir: Path, resume_step: int) -> None:
        """Open the journal and drop the records of steps after `resume_step`, which will be computed again."""
        self._path = run_dir / METRICS_NAME
        self._unwritten: list[bytes] = []
        records = read_metrics(run_dir)
        kept = [r for r in records if r["step"] <= resume_step]
        self.dropped = records[len(kept) :]
        """The dropped records."""
        with replacing(self._path, durable=True) as temporary, temporary.open("wb") as file:
            file.writelines(map(_line, kept))
        self._file = self._path.open("ab", buffering=0)

    def append(self, record: dict[str, Any]) -> OSError | None:
        """Write `record` (with `step`) as one line; return the error if it could not be written."""
        self._unwritten.append(_line(record))
        try:
            self._write()
        except OSError as error:
            return error
        return None

    def sync(self) -> None:
        """Write all records to the disk, those in memory too.

        Raises:
            OSError: the disk is full.
        """
        self._write()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Fsync and close the file."""
        os.fsync(self._file.fileno())
        self._file.close()

    def _write(self) -> None:
        data = b"".join(self._unwritten)
        end = os.fstat(self._file.fileno()).st_size
        written = self._file.write(data)
        if written != len(data):
            os.ftruncate(self._file.fileno(), end)
            raise OSError(f"{self._path}: only {written} of {len(data)} bytes fitted")
        self._unwritten.clear()


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"
