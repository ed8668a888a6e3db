"""Writes what a run measured for other programs: CSV, Parquet, events of TensorBoard, a run of Weights & Biases.

The training has no part in it. Its `metrics.jsonl` is read, once or again and again while the run goes on, and files in
the run directory are written: `metrics.csv`, `metrics.parquet`, `tensorboard/`, `wandb/`. Metrics have the names they
have in MLflow.
"""

from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from pipeline.common.atomic import replacing
from pipeline.common.errors import InputError
from pipeline.run.files import read_metrics
from pipeline.status.wandb_export import WandbExport
from pipeline.tracking.metrics import metric_name

Format = Literal["csv", "parquet", "tensorboard", "wandb"]
FORMATS: tuple[str, ...] = get_args(Format)

PLAIN = ("step", "time", "attempt")
"""Keys of a record that are no metrics."""


class Export(Protocol):
    """Brings the files of one run to the state of its metrics."""

    def update(self) -> Path | None:
        """Write what is new; return the path of the files, or None if nothing was new.

        Raises:
            OSError: the run directory cannot be written.
        """
        ...

    def close(self) -> None:
        """Complete the files; nothing is written after it."""
        ...


def open_export(run_dir: Path, kind: Format) -> Export:
    """Return the export of a run.

    Raises:
        InputError: a package is missing; the message says how to install it.
    """
    if kind == "wandb":
        return WandbExport(run_dir, PLAIN)
    return TensorBoardExport(run_dir) if kind == "tensorboard" else TableExport(run_dir, kind)


class TableExport:
    """A table with a row for each step; what a step did not measure is empty in it."""

    def __init__(self, run_dir: Path, kind: Literal["csv", "parquet"]) -> None:
        self._run_dir, self._kind = run_dir, kind
        self._written: list[dict[str, Any]] | None = None

    def update(self) -> Path | None:
        """Write the table anew if the records have changed; see `Export`."""
        import pyarrow as pa
        import pyarrow.csv
        import pyarrow.parquet

        records = read_metrics(self._run_dir)
        if records == self._written:
            return None
        keys = dict.fromkeys(key for record in records for key in record)
        names = [*(key for key in PLAIN if key in keys), *(key for key in keys if key not in PLAIN)]
        table = pa.table({_column(key): [record.get(key) for record in records] for key in names})
        path = self._run_dir / f"metrics.{self._kind}"
        with replacing(path) as temporary:
            if self._kind == "csv":
                pyarrow.csv.write_csv(table, temporary)
            else:
                pyarrow.parquet.write_table(table, temporary)
        self._written = records
        return path

    def close(self) -> None:
        """Do nothing: each table is complete."""


class TensorBoardExport:
    """Event files; of steps that a resumed run did again, TensorBoard shows the last values.

    Raises:
        InputError: TensorBoard is not installed.
    """

    def __init__(self, run_dir: Path) -> None:
        try:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise InputError(
                "--export tensorboard needs the package tensorboard: pip install 'transxnet-pipeline[tensorboard]'"
            ) from error
        self._run_dir, self._folder = run_dir, run_dir / "tensorboard"
        self._earlier = sorted(self._folder.glob("events.out.tfevents.*"))
        self._folder.mkdir(exist_ok=True)
        self._writer = EventFileWriter(str(self._folder))
        self._written: list[dict[str, Any]] = []

    def update(self) -> Path | None:
        """Append the new steps, and say from which step on earlier ones no longer hold; see `Export`."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        records = read_metrics(self._run_dir)
        same = 0
        while same < min(len(records), len(self._written)) and records[same] == self._written[same]:
            same += 1
        if same == len(records) == len(self._written):
            return None
        if same < len(self._written):
            step = self._written[same]["step"]
            self._writer.add_event(Event(step=step, session_log=SessionLog(status=SessionLog.START)))
        for record in records[same:]:
            self._writer.add_event(_event(record))
        self._writer.flush()
        self._written = records
        # The files of an earlier export hold the same steps.
        for path in self._earlier:
            path.unlink(missing_ok=True)
        return self._folder

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def _column(key: str) -> str:
    return key if key in PLAIN else metric_name(key)


def _event(record: dict[str, Any]) -> Any:
    """Return TensorBoard's event with the metrics of a record."""
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

    values = [
        Summary.Value(tag=metric_name(key), simple_value=value)
        for key, value in record.items()
        if key not in PLAIN and isinstance(value, int | float)
    ]
    return Event(wall_time=record.get("time", 0.0), step=record["step"], summary=Summary(value=values))
