"""Rank 0's handle on the MLflow run of a training: a worker process sends, so that training never waits."""

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
from pipeline.tracking.client import bound_requests
from pipeline.tracking.state import load_state, tracking_uri_of

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]
PATIENCE_S: dict[EndStatus | None, float] = {"FINISHED": 60.0, "FAILED": 60.0, "KILLED": 15.0, None: 3.0}
"""How long the server may take at the end of an attempt, by the status of its end.

An interrupted job must be requeued within its grace period, and its next attempt sends the rest. Slurm kills a
cancelled job after `KillWait`, 30 s by default."""
GRACE_S: dict[EndStatus | None, float] = {"FINISHED": 20.0, "FAILED": 20.0, "KILLED": 10.0, None: 4.0}
"""How much longer the worker may take, for a last answer and the report's picture, before it is killed."""
QUIET_S = 10.0
"""How long the end of an attempt waits for the server before it logs that it waits."""
logger = logging.getLogger(__name__)


class Tracker:
    """Tells a worker process what may be sent to MLflow; used on rank 0 alone.

    No method raises, and only `close` waits. The worker (`pipeline.tracking.worker`) reads `RUN_DIR/metrics.jsonl` and
    sends only the steps that a checkpoint covers (`durable`). A step that a resumed run computes again is therefore
    sent once.
    """

    def __init__(self, run_dir: Path, worker: "subprocess.Popen[bytes] | None") -> None:
        self._run_dir = run_dir
        self._worker = worker
        self._run_id: str | None = None

    @classmethod
    def start(
        cls,
        run_dir: str | os.PathLike[str],
        *,
        attempt: int,
        world_size: int,
        tags: Mapping[str, str] | None = None,
    ) -> Self:
        """Start the worker of an attempt; return at once, whatever the server does.

        Args:
            run_dir: the run's directory, with its `config.json`.
            attempt: number of the attempt, shown as a tag.
            world_size: number of ranks, shown as a tag.
            tags: further tags, such as the job's id.
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
            logger.warning("Tracking in MLflow could not be started (%s); the training goes on without it", error)
            worker = None
        tracker = cls(folder, worker)
        tracker._send({"begin": {"attempt": attempt, "world_size": world_size, **(tags or {})}})
        return tracker

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run; None until the server has answered."""
        if self._run_id is None:
            state = load_state(self._run_dir)
            self._run_id = state.run_id if state else None
        return self._run_id

    def durable(self, step: int) -> None:
        """Let the metrics up to `step` be sent, because a complete checkpoint covers them."""
        self._send({"durable": step})

    def close(self, status: EndStatus | None, timeout_s: float | None = None, hint: str = "") -> bool:
        """End the attempt: send what remains, and give the run its status.

        If the server has not taken everything and the training has ended, the command that sends the rest is logged.

        Args:
            status: how the training ended; None: it was interrupted and will be resumed (SCHEDULED until then).
            timeout_s: how long the server may take; None: `PATIENCE_S`.
            hint: what a person must do for the run to go on; empty if nothing.

        Returns:
            Whether the server has taken everything.
        """
        if self._worker is None:
            return False
        timeout_s = PATIENCE_S[status] if timeout_s is None else timeout_s
        self._send({"close": status or "SCHEDULED", "timeout_s": timeout_s, "hint": hint})
        if self._worker.stdin:
            with contextlib.suppress(OSError):
                self._worker.stdin.close()
        longest = timeout_s + GRACE_S[status]
        exit_code = self._wait_for_worker(min(QUIET_S, longest))
        if exit_code is None and longest > QUIET_S:
            logger.warning("waiting for MLflow to take the end of this run, %.0f s at the longest", longest - QUIET_S)
            exit_code = self._wait_for_worker(longest - QUIET_S)
        if exit_code is None:
            self._worker.kill()
            self._worker.wait()
        self._worker = None
        if exit_code != 0 and status is not None:
            logger.warning(
                "MLflow has not taken everything of this run; send it when the server answers: "
                "python -m pipeline.status --sync %s",
                self._run_dir,
            )
        return exit_code == 0

    def _wait_for_worker(self, timeout_s: float) -> int | None:
        """Return the worker's exit code; None if it has not ended after `timeout_s`."""
        assert self._worker is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._worker.wait(timeout=timeout_s)
        return None

    def _send(self, message: dict[str, Any]) -> None:
        """Write a message to the worker; a worker that has ended is ignored."""
        if self._worker is None or self._worker.stdin is None:
            return
        with contextlib.suppress(OSError, ValueError):
            self._worker.stdin.write(json.dumps(message).encode() + b"\n")
            self._worker.stdin.flush()


def _environment(uri: str) -> dict[str, str]:
    """Return the worker's environment: a helper's, with bounded requests and the server's address.

    Without `PYTHONOPTIMIZE`, which can strip the docstrings that MLflow is built from.
    """
    given = {name: value for name, value in helper_environment().items() if name != "PYTHONOPTIMIZE"}
    return {**given, **bound_requests(timeout_s=20, retries=1), "MLFLOW_TRACKING_URI": uri}
