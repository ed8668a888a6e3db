"""Sends a run's files to MLflow, in order, each record once; used by the worker beside a training and by `--sync`.

Every call may be repeated after any failure: the run is looked up by its key before one is created, and metrics carry
the time of the training, so that MLflow stores a metric once although it is sent twice.
"""

import contextlib
import getpass
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.secrets import mask_secrets
from pipeline.run.config import read_config
from pipeline.run.files import METRICS_NAME, read_evaluations, read_records, step_name
from pipeline.run.system import FOLDER as SYSTEM_FOLDER
from pipeline.tasks import was_evaluated
from pipeline.tracking.client import experiment_id, open_client, refuse_deleted_run
from pipeline.tracking.description import (
    link_checkpoints,
    log_description,
    log_hint,
    log_job_reports,
    log_micro_batch,
    log_rank_troubles,
    log_report,
    log_traces,
)
from pipeline.tracking.metrics import evaluation_metrics, record_metrics
from pipeline.tracking.state import TrackingState, copied, load_state, new_key, save_state, tracking_uri_of
from pipeline.tracking.sweep_parent import KEY_TAG, PARENT_TAG, find_or_create_run, parent_run_id, update_parent_status

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric


BATCH = 1000
"""Largest number of metrics that MLflow accepts in one request."""
SYSTEM_BATCH = 50
"""Number of a node's system samples that are sent together."""
MAX_PARAMS = 100
"""Largest number of parameters that MLflow accepts in one request."""
MAX_VALUE = 5000
"""Number of characters that are kept of a parameter or tag."""
LISTED_TAGS = {"world_size": "world_sizes", "job_id": "job_ids"}
"""Tag of an attempt, and the tag that lists its values of all attempts in order."""
SENDER_TAG = "sender"
"""Tag with the token of the attempt that sent last."""
_LINKS = {"copied_from": "(copy)", "begun_again_from": "(begun again)", "handed_over_from": "(handed over)"}
"""What the name of an MLflow run says of the run that it comes from."""
END_STATUSES = ("FINISHED", "FAILED", "KILLED")
EVERYTHING = 2**62
"""A step greater than that of any record: all records may be sent."""
logger = logging.getLogger(__name__)


@dataclass
class _LastEvaluation:
    """The newest evaluation found in `metrics.jsonl`, and how far the file was read for it."""

    inode: int | None = None
    offset: int = 0
    step: int = -1


class Shipper:
    """Sends one run directory to MLflow. Calls block, and raise the errors of the server or network.

    The environment limits how long a request may take (`client.bound_requests`).
    """

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        self.run_dir = Path(run_dir).resolve()
        self.config = read_config(self.run_dir)
        self.uri = tracking_uri_of(self.run_dir)
        self.state = load_state(self.run_dir) or TrackingState(key=new_key())
        self.state.tracking_uri = mask_secrets(self.uri)
        self.save()
        self._client: MlflowClient | None = None
        self._is_known = False
        self._offset = 0
        self._evaluated = _LastEvaluation()

    def save(self) -> None:
        """Write the state to `RUN_DIR/mlflow.json`."""
        save_state(self.run_dir, self.state)

    @property
    def client(self) -> "MlflowClient":
        """MLflow client, opened when it is first used."""
        if self._client is None:
            self._client = open_client(self.uri)
        return self._client

    def begin(self, tags: dict[str, str]) -> None:
        """Record that an attempt has begun, with its tags; `LISTED_TAGS` list the values of all attempts."""
        for name, plural in LISTED_TAGS.items():
            values = [value for value in (self.state.tags.get(plural), tags.get(name)) if value]
            if values:
                tags = {**tags, plural: ", ".join(values)}
        self.state.tags, self.state.status = tags, "RUNNING"
        self.state.senders.append(new_key())
        self.state.began_at = self.state.began_at or time.time()
        self.state.sent_status = self.state.ended_at = None
        self.state.hint = ""
        self.save()

    def end(self, status: str, hint: str = "") -> None:
        """Record the status that the attempt ended with, and what a person must do then; `send_status` sends them."""
        self.state.status, self.state.ended_at, self.state.hint = status, time.time(), hint
        self.save()

    def mark_behind(self, problem: str) -> None:
        """Record that the server takes nothing, for the commands that show the run."""
        self.state.behind_since, self.state.problem = self.state.behind_since or time.time(), problem
        self._is_known = False
        # The problem may be a full disk.
        with contextlib.suppress(OSError):
            self.save()

    def mark_caught_up(self) -> None:
        """Record that the server has taken what was sent."""
        if self.state.behind_since is not None:
            self.state.behind_since, self.state.problem = None, ""
            self.save()

    def ship(self, durable: int) -> None:
        """Send everything that the server lacks: the run, its description, its metrics up to step `durable`.

        Args:
            durable: step of the newest checkpoint; a resumed run computes later steps again.
        """
        if self.state.run_id is None:
            self._create_run()
        elif not self._is_known:
            self._check_run()
        self._is_known = True
        if not self.state.described:
            self._describe()
        if self.state.sent_status is None:
            self._send_attempt()
        for metrics, step, offset in self._batches(durable):
            self.client.log_batch(self._run_id, metrics=metrics)
            self._offset, self.state.shipped_step = offset, step
            self.save()
        self._ship_evaluations()
        self._ship_system()
        changes = [
            log(self.client, self.run_dir, self.state)
            for log in (log_job_reports, log_traces, log_micro_batch, log_rank_troubles, link_checkpoints)
        ]
        if any(changes):
            self.save()

    def send_report(self) -> None:
        """Send the run's report as it was last written."""
        step = self.evaluated_step()
        log_report(self.client, self._run_id, self.run_dir)
        self.state.reported_step = step
        self.save()

    def evaluated_step(self) -> int:
        """Return the last evaluated step, -1 before the first; of the records read those added since the last call."""
        path = self.run_dir / METRICS_NAME
        inode = path.stat().st_ino if path.exists() else None
        if inode != self._evaluated.inode:
            # A training that goes back to a checkpoint rewrites the file.
            self._evaluated = _LastEvaluation(inode)
        for record, offset in read_records(path, self._evaluated.offset):
            self._evaluated.offset = offset
            if was_evaluated(record):
                self._evaluated.step = record["step"]
        return max(self._evaluated.step, *read_evaluations(self.run_dir), -1)

    def send_status(self) -> None:
        """Send the status that the last attempt ended with, its hint, and update the sweep's run."""
        if log_hint(self.client, self.state):
            self.save()
        if self.state.status == self.state.sent_status:
            # The last call may have failed before it updated the sweep's run.
            update_parent_status(self.client, self.config.sweep)
            return
        if self.state.status in END_STATUSES:
            ended = int(1000 * (self.state.ended_at or time.time()))
            self.client.set_terminated(self._run_id, status=self.state.status, end_time=ended)
        else:
            self.client.update_run(self._run_id, status=self.state.status)
        self.state.sent_status = self.state.status
        self.save()
        update_parent_status(self.client, self.config.sweep)

    @property
    def _run_id(self) -> str:
        assert self.state.run_id is not None
        return self.state.run_id

    def _check_run(self) -> None:
        """Check the run on the server; leave it if a copy of this folder, as on another host, has continued it."""
        tags = refuse_deleted_run(self.client, self.uri, self._run_id).data.tags
        sender = tags.get(SENDER_TAG)
        if sender is None or sender in self.state.senders:
            return
        other = tags.get("run_dir", "a copy of this folder")
        logger.warning(
            "MLflow run %s was continued by %s: %s gets an MLflow run of its own, linked to it",
            *(self._run_id, other, self.run_dir),
        )
        self.state, self._offset = copied(self.state), 0
        self._create_run()

    def _create_run(self) -> None:
        """Find the run by its key, or create it."""
        experiment = experiment_id(self.client, self.uri, self.config)
        tags = {KEY_TAG: self.state.key, **self._source_tags(), **self.state.links}
        parent = parent_run_id(self.client, experiment, self.config.sweep)
        if parent is not None:
            tags[PARENT_TAG] = parent
        self.state.run_id = find_or_create_run(
            self.client,
            experiment,
            self.state.key,
            lambda: self.client.create_run(
                experiment,
                start_time=int(1000 * (self.state.began_at or time.time())),
                run_name=" ".join([self.run_dir.name, *(_LINKS[link] for link in self.state.links if link in _LINKS)]),
                tags=tags,
            ),
        )
        self.state.experiment_id = experiment
        self.save()

    def _source_tags(self) -> dict[str, str]:
        """Return the tags that tell where the run comes from: command, code, user, configuration, directory, aim."""
        is_dirty = self.config.git_dirty
        tags = {
            # Of a longer name MLflow's table shows what follows the last slash.
            "mlflow.source.name": "pipeline.launch",
            "command": self.config.command,
            "mlflow.source.type": "LOCAL",
            "mlflow.user": _user(),
            "mlflow.source.git.commit": self.config.git_commit or "",
            "code": self.config.code or "",
            "git_dirty": "" if is_dirty is None else str(is_dirty).lower(),
            "config_digest": self.config.digest or "",
            "run_dir": str(self.run_dir),
            "model": self.config.model_name,
            "initialised_from": self.config.initialised_from or "",
            "distilled_from": self.config.distilled_from or "",
            "published_result": self.config.published.get("result", ""),
            "published_differences": "; ".join(self.config.published.get("differences", [])),
        }
        return {name: mask_secrets(value)[:MAX_VALUE] for name, value in tags.items() if value}

    def _describe(self) -> None:
        """Send parameters, data sets and the configuration, which are the same for every attempt."""
        from mlflow.entities import Param

        fields = {name: "" if value is None else str(value) for name, value in self.config.train_fields.items()}
        params = [Param(name, mask_secrets(value)[:MAX_VALUE]) for name, value in sorted(fields.items())]
        for start in range(0, len(params), MAX_PARAMS):
            self.client.log_batch(self._run_id, params=params[start : start + MAX_PARAMS])
        log_description(self.client, self._run_id, self.run_dir, self.config)
        self.state.described = True
        self.save()

    def _send_attempt(self) -> None:
        """Send the tags of the attempt that begins, and the status RUNNING."""
        from mlflow.entities import RunTag

        sent = {**self.state.tags, "run_dir": str(self.run_dir)}
        if self.state.senders:
            sent[SENDER_TAG] = self.state.senders[-1]
        tags = [RunTag(name, mask_secrets(value)[:MAX_VALUE]) for name, value in sent.items()]
        self.client.log_batch(self._run_id, tags=tags)
        del self.state.senders[:-1]
        log_hint(self.client, self.state)
        self.client.update_run(self._run_id, status="RUNNING")
        self.state.sent_status = "RUNNING"
        self.save()
        update_parent_status(self.client, self.config.sweep)

    def _ship_evaluations(self) -> None:
        """Send the evaluations that were made after their steps were sent, also to the models of checkpoints."""
        new = read_evaluations(self.run_dir).keys() - self.state.shipped_evaluations
        for step in sorted(step for step in new if step <= self.state.shipped_step):
            for model_id in (None, self.state.checkpoints.get(step_name(step))):
                metrics = evaluation_metrics(self.run_dir, step, model_id)
                self.client.log_batch(self._run_id, metrics=metrics)
            self.state.shipped_evaluations.append(step)
            self.save()

    def _ship_system(self) -> None:
        """Send each node's system metrics; their step is the number of seconds since the run's first sample."""
        from mlflow.entities import Metric

        for path in sorted(self.run_dir.glob(f"{SYSTEM_FOLDER}/node_*.jsonl")):
            records = list(read_records(path, self.state.shipped_system.get(path.stem, 0)))
            for start in range(0, len(records), SYSTEM_BATCH):
                batch = records[start : start + SYSTEM_BATCH]
                self.state.system_began = self.state.system_began or batch[0][0]["time"]
                metrics = [
                    Metric(
                        f"system/{path.stem}/{key}", value, int(1000 * at), max(0, int(at - self.state.system_began))
                    )
                    for record, _ in batch
                    for at in [record.pop("time")]
                    for key, value in record.items()
                ]
                for first in range(0, len(metrics), BATCH):
                    self.client.log_batch(self._run_id, metrics=metrics[first : first + BATCH])
                self.state.shipped_system[path.stem] = batch[-1][1]
                self.save()

    def _batches(self, durable: int) -> Iterator[tuple[list["Metric"], int, int]]:
        """Yield batches of metrics, each with its last step and the offset in the file behind that step's record."""
        batch: list[Metric] = []
        last, end = -1, self._offset
        for record, offset in read_records(self.run_dir / METRICS_NAME, self._offset):
            step = record.get("step")
            if not isinstance(step, int) or step <= self.state.shipped_step:
                continue
            if step > durable:
                break
            metrics = record_metrics(record, step)
            if len(batch) + len(metrics) > BATCH:
                yield batch, last, end
                batch = []
            batch, last, end = batch + metrics, step, offset
        if batch:
            yield batch, last, end


def _user() -> str:
    """Return the name of this user; empty where it has none, as in a container that runs under another number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return ""
