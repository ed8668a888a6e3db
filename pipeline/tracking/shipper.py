"""Forwards a run's files to MLflow, in order, each record once: what the worker beside a training and `--sync` both do.

The files are the truth. Everything here may be done again after any failure: a run is found by its key before one is
made, and records carry the time of the training, under which MLflow stores equal rows once.
"""

import contextlib
import getpass
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.secrets import mask_secrets
from pipeline.config.serialise import flatten
from pipeline.run.files import METRICS_NAME, read_config, read_records
from pipeline.run.system import FOLDER as SYSTEM_FOLDER
from pipeline.tracking.client import experiment_id, open_client
from pipeline.tracking.description import link_checkpoints, log_details, log_job_reports, log_report
from pipeline.tracking.metrics import _metrics
from pipeline.tracking.state import TrackingState, load_state, save_state, tracking_uri_of
from pipeline.tracking.sweep_parent import KEY_TAG, PARENT_TAG, find_or_make, parent_run, settle_parent

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric


BATCH = 1000
"""Most metrics that MLflow takes in one request."""
SYSTEM_BATCH = 50
"""Samples of a node in one go."""
MAX_PARAMS = 100
"""Most parameters that MLflow takes in one request."""
MAX_VALUE = 5000
"""Characters of a parameter or tag that are kept."""
LISTED_TAGS = {"world_size": "world_sizes", "job_id": "job_ids"}
"""Tags of an attempt and the tag that has those of all attempts, in order."""
END_STATUSES = ("FINISHED", "FAILED", "KILLED")
EVERYTHING = 2**62
"""A step beyond every record."""


@dataclass
class _Evaluated:
    """How far the metrics of a run were read for evaluations, and the last one found."""

    file: int | None = None
    offset: int = 0
    step: int = -1


class Shipper:
    """One run directory's way to MLflow. Calls block, and raise what the server or network raises.

    How long a call may take is the environment's matter (`tracking_client.bound_requests`).
    """

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        self.run_dir = Path(run_dir).resolve()
        self.config = read_config(self.run_dir)
        self.uri = tracking_uri_of(self.run_dir)
        self.state = load_state(self.run_dir) or TrackingState(key=uuid.uuid4().hex)
        self.state.tracking_uri = mask_secrets(self.uri)
        self.save()
        self._client: MlflowClient | None = None
        self._offset = 0
        self._evaluated = _Evaluated()

    def save(self) -> None:
        """Keep what is known on disk."""
        save_state(self.run_dir, self.state)

    @property
    def client(self) -> "MlflowClient":
        """The MLflow client, made at first use."""
        if self._client is None:
            self._client = open_client(self.uri)
        return self._client

    def begin(self, tags: dict[str, str]) -> None:
        """An attempt begins: the run is running, with these tags and lists of what every attempt had."""
        for name, plural in LISTED_TAGS.items():
            values = [value for value in (self.state.tags.get(plural), tags.get(name)) if value]
            if values:
                tags = {**tags, plural: ", ".join(values)}
        self.state.tags, self.state.status = tags, "RUNNING"
        self.state.began_at = self.state.began_at or time.time()
        self.state.sent_status = self.state.ended_at = None
        self.save()

    def end(self, status: str) -> None:
        """The attempt has ended so; `send_status` tells the server."""
        self.state.status, self.state.ended_at = status, time.time()
        self.save()

    def falls_behind(self, problem: str) -> None:
        """The server takes nothing: say so to those who look at the run."""
        self.state.behind_since, self.state.problem = self.state.behind_since or time.time(), problem
        # Perhaps because the disk is full.
        with contextlib.suppress(OSError):
            self.save()

    def catches_up(self) -> None:
        """The server has taken what was sent."""
        if self.state.behind_since is not None:
            self.state.behind_since, self.state.problem = None, ""
            self.save()

    def ship(self, durable: int) -> None:
        """Bring the run on the server up to the files: itself, its description, its metrics up to step `durable`."""
        if self.state.run_id is None:
            self._make_run()
        if not self.state.described:
            self._describe()
        if self.state.sent_status is None:
            self._send_attempt()
        for metrics, step, offset in self._batches(durable):
            self.client.log_batch(self._run_id, metrics=metrics)
            self._offset, self.state.shipped_step = offset, step
            self.save()
        self._ship_system()
        reported = log_job_reports(self.client, self.run_dir, self.state)
        if link_checkpoints(self.client, self.run_dir, self.state) or reported:
            self.save()

    def send_report(self) -> None:
        """Show the run's page as it was written last."""
        step = self.evaluated_step()
        log_report(self.client, self._run_id, self.run_dir)
        self.state.reported_step = step
        self.save()

    def evaluated_step(self) -> int:
        """The last evaluated step, -1 before the first; reads only what came to the file since it was last asked."""
        path = self.run_dir / METRICS_NAME
        file = path.stat().st_ino if path.exists() else None
        if file != self._evaluated.file:
            # A training that goes back to a checkpoint writes the file anew.
            self._evaluated = _Evaluated(file)
        for record, offset in read_records(path, self._evaluated.offset):
            self._evaluated.offset = offset
            if "eval_top1" in record:
                self._evaluated.step = record["step"]
        return self._evaluated.step

    def send_status(self) -> None:
        """Give the run the status that the last attempt ended with."""
        if self.state.status == self.state.sent_status:
            # The run above may not know yet.
            settle_parent(self.client, self.config)
            return
        if self.state.status in END_STATUSES:
            ended = int(1000 * (self.state.ended_at or time.time()))
            self.client.set_terminated(self._run_id, status=self.state.status, end_time=ended)
        else:
            self.client.update_run(self._run_id, status=self.state.status)
        self.state.sent_status = self.state.status
        self.save()
        settle_parent(self.client, self.config)

    @property
    def _run_id(self) -> str:
        assert self.state.run_id is not None
        return self.state.run_id

    def _make_run(self) -> None:
        """Find the run by its key, or make it."""
        experiment = experiment_id(self.client, self.uri)
        tags = {KEY_TAG: self.state.key, **self._source_tags()}
        parent = parent_run(self.client, experiment, self.config)
        if parent is not None:
            tags[PARENT_TAG] = parent
        self.state.run_id = find_or_make(
            self.client,
            experiment,
            self.state.key,
            lambda: self.client.create_run(
                experiment,
                start_time=int(1000 * (self.state.began_at or time.time())),
                run_name=self.run_dir.name,
                tags=tags,
            ),
        )
        self.state.experiment_id = experiment
        self.save()

    def _source_tags(self) -> dict[str, str]:
        git = self.config.get("git") or {}
        command = self.config.get("command") or ""
        tags = {
            # MLflow's table shows of a longer one what comes after its last slash.
            "mlflow.source.name": "pipeline.launch",
            "command": command if isinstance(command, str) else " ".join(map(str, command)),
            "mlflow.source.type": "LOCAL",
            "mlflow.user": getpass.getuser(),
            "mlflow.source.git.commit": git.get("commit") or "",
            "git_dirty": str(git.get("dirty", "")).lower(),
            "config_digest": str(self.config.get("digest", "")),
            "run_dir": str(self.run_dir),
            "model": str(self.config["train"]["model"]["name"]),
        }
        return {name: mask_secrets(value)[:MAX_VALUE] for name, value in tags.items() if value}

    def _describe(self) -> None:
        """Parameters, datasets and the configuration, which are the same for every attempt."""
        from mlflow.entities import Param

        flat = {name: "" if value is None else str(value) for name, value in flatten(self.config["train"]).items()}
        params = [Param(name, mask_secrets(value)[:MAX_VALUE]) for name, value in sorted(flat.items())]
        for start in range(0, len(params), MAX_PARAMS):
            self.client.log_batch(self._run_id, params=params[start : start + MAX_PARAMS])
        log_details(self.client, self._run_id, self.run_dir, self.config)
        self.state.described = True
        self.save()

    def _send_attempt(self) -> None:
        """Tags of the attempt that begins, and that the run is running."""
        from mlflow.entities import RunTag

        tags = [RunTag(name, mask_secrets(value)[:MAX_VALUE]) for name, value in self.state.tags.items()]
        self.client.log_batch(self._run_id, tags=tags)
        self.client.update_run(self._run_id, status="RUNNING")
        self.state.sent_status = "RUNNING"
        self.save()
        settle_parent(self.client, self.config)

    def _ship_system(self) -> None:
        """Each node's metrics, over the seconds since the first of them."""
        from mlflow.entities import Metric

        for path in sorted(self.run_dir.glob(f"{SYSTEM_FOLDER}/node_*.jsonl")):
            records = list(read_records(path, self.state.shipped_system.get(path.stem, 0)))
            for start in range(0, len(records), SYSTEM_BATCH):
                part = records[start : start + SYSTEM_BATCH]
                self.state.system_began = self.state.system_began or part[0][0]["time"]
                metrics = [
                    Metric(
                        f"system/{path.stem}/{key}", value, int(1000 * at), max(0, int(at - self.state.system_began))
                    )
                    for record, _ in part
                    for at in [record.pop("time")]
                    for key, value in record.items()
                ]
                for first in range(0, len(metrics), BATCH):
                    self.client.log_batch(self._run_id, metrics=metrics[first : first + BATCH])
                self.state.shipped_system[path.stem] = part[-1][1]
                self.save()

    def _batches(self, durable: int) -> Iterator[tuple[list["Metric"], int, int]]:
        """Metrics of whole records in batches, each with its last step and the offset behind it."""
        batch: list[Metric] = []
        last, end = -1, self._offset
        for record, offset in read_records(self.run_dir / METRICS_NAME, self._offset):
            step = record.get("step")
            if not isinstance(step, int) or step <= self.state.shipped_step:
                continue
            if step > durable:
                break
            metrics = _metrics(record, step)
            if len(batch) + len(metrics) > BATCH:
                yield batch, last, end
                batch = []
            batch, last, end = batch + metrics, step, offset
        if batch:
            yield batch, last, end
