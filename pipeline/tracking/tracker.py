"""One MLflow run for a training, over all its attempts, which never waits for a server."""

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pipeline.common.processes import helper_environment
from pipeline.tracking.client import bound_requests, resolve_tracking_uri
from pipeline.tracking.state import load_state, tracking_uri_of

__all__ = ["EndStatus", "Tracker", "resolve_tracking_uri"]
EndStatus = Literal["FINISHED", "FAILED", "KILLED"]
PATIENCE_S: dict[EndStatus | None, float] = {"FINISHED": 60.0, "FAILED": 60.0, "KILLED": 15.0, None: 3.0}
"""How long the server may take at the end of an attempt. An interrupted job has to be requeued within its grace, and
what it did not send is sent by its next attempt; a cancelled one is killed after Slurm's `KillWait` of 30 s."""
GRACE_S: dict[EndStatus | None, float] = {"FINISHED": 20.0, "FAILED": 20.0, "KILLED": 10.0, None: 4.0}
"""What the worker may need besides, for a last answer and the picture, before it is killed."""
QUIET_S = 10.0
"""How long an end waits before it says so."""
_log = logging.getLogger(__name__)


class Tracker:
    """Tells a worker process what may be sent to MLflow; used on rank 0 alone.

    No call raises, and none but `close` waits. The worker (`pipeline.tracking.worker`) reads `RUN_DIR/metrics.jsonl`
    and sends it. It sends only steps that a checkpoint covers (`durable`), so a step that a resumed run computes again
    never reaches MLflow twice.
    """

    def __init__(self, run_dir: Path, worker: "subprocess.Popen[bytes] | None") -> None:
        self._run_dir = run_dir
        self._worker = worker
        self._run_id: str | None = None

    @classmethod
    def start(
        cls,
        run_dir: str | os.PathLike[str],
        config_json: Mapping[str, Any],
        *,
        attempt: int,
        world_size: int,
        tags: Mapping[str, str] | None = None,
    ) -> Self:
        """Begin an attempt; returns at once, whatever the server does.

        Args:
            run_dir: the run; its `config.json` is there already.
            config_json: content of that file.
            attempt: number of this attempt, shown as a tag.
            world_size: ranks of this attempt, shown as a tag.
            tags: more of them, such as job ids.
        """
        folder = Path(run_dir).resolve()
        try:
            uri = tracking_uri_of(folder)
            worker = subprocess.Popen(
                [sys.executable, "-m", "pipeline.tracking.worker", str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env=_environment(uri),
                close_fds=True,
            )
        except (OSError, ValueError) as error:
            _log.warning("Tracking in MLflow could not be started (%s); the training goes on without it", error)
            worker = None
        tracker = cls(folder, worker)
        tracker._tell({"begin": {"attempt": attempt, "world_size": world_size, **(tags or {})}})
        return tracker

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run; None until the server has given one."""
        if self._run_id is None:
            state = load_state(self._run_dir)
            self._run_id = state.run_id if state else None
        return self._run_id

    def durable(self, step: int) -> None:
        """A complete checkpoint covers the metrics up to `step`: they may be sent."""
        self._tell({"durable": step})

    def close(self, status: EndStatus | None, timeout_s: float | None = None) -> bool:
        """End the attempt: send what remains and give the run its status.

        Args:
            status: how the training ended; None: it was interrupted and will go on (SCHEDULED until it does).
            timeout_s: how long the server may take; None: `PATIENCE_S`.

        Returns:
            Whether the server has everything. If not, one line says how to send it later, unless the training goes on.
        """
        if self._worker is None:
            return False
        timeout_s = PATIENCE_S[status] if timeout_s is None else timeout_s
        self._tell({"close": status or "SCHEDULED", "timeout_s": timeout_s})
        if self._worker.stdin:
            with contextlib.suppress(OSError):
                self._worker.stdin.close()
        longest = timeout_s + GRACE_S[status]
        code = self._wait_for_worker(min(QUIET_S, longest))
        if code is None and longest > QUIET_S:
            _log.warning("waiting for MLflow to take the end of this run, %.0f s at the longest", longest - QUIET_S)
            code = self._wait_for_worker(longest - QUIET_S)
        if code is None:
            self._worker.kill()
            self._worker.wait()
        self._worker = None
        if code != 0 and status is not None:
            _log.warning(
                "MLflow has not taken everything of this run; send it when the server answers: "
                "python -m pipeline.status --sync %s",
                self._run_dir,
            )
        return code == 0

    def _wait_for_worker(self, timeout_s: float) -> int | None:
        assert self._worker is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._worker.wait(timeout=timeout_s)
        return None

    def _tell(self, message: dict[str, Any]) -> None:
        if self._worker is None or self._worker.stdin is None:
            return
        with contextlib.suppress(OSError, ValueError):
            self._worker.stdin.write(json.dumps(message).encode() + b"\n")
            self._worker.stdin.flush()


def _environment(uri: str) -> dict[str, str]:
    """Environment of the worker: a helper's, with bounded requests and the server's address."""
    return {**helper_environment(), **bound_requests(timeout_s=20, retries=1), "MLFLOW_TRACKING_URI": uri}
