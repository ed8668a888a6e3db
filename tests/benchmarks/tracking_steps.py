"""What tracking costs a step: `python -m tests.benchmarks.tracking_steps`.

The same loop (10 ms of arithmetic, a record, now and then a checkpoint) without tracking, into a database that answers
and to a server that is dead, interleaved; prints the median, the 99th percentile and the slowest step.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline.config import TrainConfig
from pipeline.tracking import Tracker
from tests.tracking_runs import config_json
from tests.tracking_servers import free_port

STEPS, ROUNDS, SAVE_EVERY = 200, 2, 25


def main() -> None:
    """Measure and print a table."""
    steps: dict[str, list[float]] = {"none": [], "alive": [], "dead": []}
    with tempfile.TemporaryDirectory() as name:
        uris = {"none": None, "alive": f"sqlite:///{name}/mlflow.db", "dead": f"http://127.0.0.1:{free_port()}"}
        for number in range(ROUNDS):
            for kind, uri in uris.items():
                steps[kind] += loop(Path(name) / f"{kind}{number}", uri)
    for kind, seconds in steps.items():
        middle, late = statistics.median(seconds), statistics.quantiles(seconds, n=100)[98]
        print(f"{kind:6} {1e3 * middle:6.2f} ms  99 % {1e3 * late:6.2f} ms  slowest {1e3 * max(seconds):7.2f} ms")


def loop(run_dir: Path, uri: str | None) -> list[float]:
    """Seconds of each step."""
    config = config_json(run_dir, TrainConfig(), uri)
    tracker = Tracker.start(run_dir, config, attempt=1, world_size=1) if uri else None
    matrix, seconds = np.ones((400, 400)), []
    with open(run_dir / "metrics.jsonl", "a", buffering=1) as file:
        for step in range(1, STEPS + 1):
            began = time.perf_counter()
            while time.perf_counter() - began < 0.01:
                matrix @ matrix
            file.write(json.dumps({"step": step, "time": time.time(), "loss": 1 / step, "lr": 0.1}) + "\n")
            if tracker is not None and step % SAVE_EVERY == 0:
                tracker.durable(step)
            seconds.append(time.perf_counter() - began)
    if tracker is not None:
        tracker.close("KILLED", timeout_s=5)
    return seconds


if __name__ == "__main__":
    main()
