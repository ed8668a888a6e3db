"""What tracking costs a step: `python -m tests.benchmarks.tracking_steps`.

Runs the same loop (10 ms of arithmetic, a record, a checkpoint now and then) without tracking, with a database, with a
server that is dead and with one that accepts connections and never answers, in turns. Prints the median, the 99th
percentile and the slowest step, and the longest call of the tracker.
"""

import json
import logging
import socket
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.config.schema import TrainConfig
from pipeline.tracking.tracker import Tracker
from tests.support.tracking_runs import config_json
from tests.support.tracking_servers import free_port

STEPS, ROUNDS, SAVE_EVERY = 400, 2, 25
STEP_S = 0.01


@dataclass
class Times:
    """Seconds."""

    steps: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)


def main() -> None:
    """Measure and print a table."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as silent:
        uris = {
            "none": None,
            "alive": f"sqlite:///{name}/mlflow.db",
            "dead": f"http://127.0.0.1:{free_port()}",
            "silent": f"http://127.0.0.1:{silent.getsockname()[1]}",
        }
        times = {kind: Times() for kind in uris}
        for number in range(ROUNDS):
            for kind, uri in uris.items():
                loop(Path(name) / f"{kind}{number}", uri, times[kind])
    for kind, seen in times.items():
        middle, late = statistics.median(seen.steps), statistics.quantiles(seen.steps, n=100)[98]
        print(
            f"{kind:6} {1e3 * middle:6.2f} ms  99 % {1e3 * late:6.2f} ms  slowest {1e3 * max(seen.steps):7.2f} ms  "
            f"longest call {1e3 * max(seen.calls, default=0):6.3f} ms"
        )


def loop(run_dir: Path, uri: str | None, times: Times) -> None:
    """Measure the steps and the tracker's calls of one run."""
    config_json(run_dir, TrainConfig(), uri)
    tracker = Tracker.start(run_dir, attempt=1, world_size=1) if uri else None
    matrix = np.ones((100, 100))
    with open(run_dir / "metrics.jsonl", "a", encoding="utf-8", buffering=1) as file:
        for step in range(1, STEPS + 1):
            began = time.perf_counter()
            while time.perf_counter() - began < STEP_S:
                matrix @ matrix
            file.write(json.dumps({"step": step, "time": time.time(), "loss": 1 / step, "lr": 0.1}) + "\n")
            if tracker is not None and step % SAVE_EVERY == 0:
                called = time.perf_counter()
                tracker.durable(step)
                times.calls.append(time.perf_counter() - called)
            times.steps.append(time.perf_counter() - began)
    if tracker is not None:
        tracker.close(None)


if __name__ == "__main__":
    main()
