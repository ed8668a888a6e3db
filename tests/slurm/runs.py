"""A training of a demo's model on the rehearsal cluster, launched with the user's command."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.slurm.cluster import Cluster

REPOSITORY = Path(__file__).parents[2]
STEPS = 24
SAVE_EVERY = 6


def wait_until(condition: Callable[[], object], timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.1)


def preempt(cluster: Cluster) -> None:
    """Submit a job to the high partition that takes all cores for a second."""
    cluster.run("sbatch", "-p", "high", "--exclusive", "-N4", "-o", "/dev/null", "--wrap", "sleep 1")


class Run:
    """One run, on two nodes unless told otherwise."""

    def __init__(self, cwd: Path, name: str, *flags: str, checkout: Path = REPOSITORY, recipe: str = "demo") -> None:
        self.cwd = cwd
        self.checkout = checkout
        self.recipe = recipe
        self.path = cwd / name
        self.flags = flags
        self.process: subprocess.Popen[str] | None = None

    def launch(self, *flags: str) -> "Run":
        command = [sys.executable, "-m", "pipeline.launch", "--recipe", self.recipe, "--cluster", "slurm"]
        command += ["--nodes", "2", "--tasks-per-node", "1", "--partition", "low", "--run-dir", str(self.path)]
        command += ["--train.steps", str(STEPS), "--train.save-every-steps", str(SAVE_EVERY), *self.flags, *flags]
        self.process = subprocess.Popen(
            command,
            cwd=self.cwd,
            env={name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
            | {"PYTHONPATH": str(self.checkout), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return self

    def finish(self, timeout_s: float = 600) -> str:
        """Wait for the launcher and return what it printed."""
        assert self.process is not None
        try:
            return self.process.communicate(timeout=timeout_s)[0]
        finally:
            self.process.kill()

    def is_running(self) -> bool:
        """Whether the launcher is still running."""
        return self.process is not None and self.process.poll() is None

    @property
    def status(self) -> int | None:
        """The launcher's exit status; None while it runs."""
        return None if self.process is None else self.process.returncode

    @property
    def job_id(self) -> str:
        return json.loads((self.path / "submitit" / "submission.json").read_text())["job_id"]

    def records(self) -> list[dict]:
        try:
            lines = (self.path / "metrics.jsonl").read_text().splitlines(keepends=True)
        except OSError:
            return []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def wait_for_step(self, step: int, attempt: int = 1) -> None:
        """Wait until the attempt has done the step."""
        wait_until(lambda: any(row["step"] >= step and row["attempt"] == attempt for row in self.records()))

    def losses(self) -> list[tuple[int, float]]:
        return [(row["step"], row["loss"]) for row in self.records()]

    def weights(self) -> str:
        return hashlib.sha256((self.path / "export" / "model.safetensors").read_bytes()).hexdigest()

    def events(self, event: str) -> list[dict]:
        path = self.path / "attempts.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [row for row in rows if row["event"] == event]

    def mlflow(self) -> dict:
        return json.loads((self.path / "mlflow.json").read_text())

    def assert_equals(self, other: "Run") -> None:
        """Assert that losses and weights equal the other run's bit for bit, and that the model is registered."""
        assert self.losses() == other.losses()
        assert self.weights() == other.weights()
        self.assert_registered()

    def assert_registered(self) -> None:
        """Assert that the model is registered, and that MLflow knows the end."""
        assert (self.path / "registered.json").exists()
        assert self.mlflow()["sent_status"] == "FINISHED"
