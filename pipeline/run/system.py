"""Use of a node's processors, memory, network and GPUs during a training: `RUN_DIR/system/node_K.jsonl`.

The samples go to a file, as the metrics of the steps do: it needs no server, and is sent to MLflow when one answers.
"""

import contextlib
import json
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Self

FOLDER = "system"
FIRST_EVERY_S = 10.0
"""Seconds between two samples in the first `FIRST_S`."""
FIRST_S = 600.0
EVERY_S = 60.0
"""Seconds between two samples afterwards."""
MIB_IN_GB = 2**20 / 1e9
"""nvidia-smi counts memory in MiB."""
GPU_FIELDS = ("utilization.gpu", "memory.used", "power.draw", "temperature.gpu")
GPU_NAMES = ("percent", "memory_gb", "power_w", "temperature_c")
"""Names of these fields in a sample."""


class SystemMonitor:
    """Samples this node from a thread until `stop`; one process of each node runs it."""

    def __init__(self, run_dir: Path, node: int) -> None:
        self._path = run_dir / FOLDER / f"node_{node}.jsonl"
        self._stopped = threading.Event()

    @classmethod
    def start(cls, run_dir: str | Path, node: int) -> Self:
        """Start to sample into `RUN_DIR/system/node_NODE.jsonl`; never raises, never waits."""
        monitor = cls(Path(run_dir), node)
        threading.Thread(target=monitor._run, name="system-metrics", daemon=True).start()
        return monitor

    def stop(self) -> None:
        """Stop sampling."""
        self._stopped.set()

    def _run(self) -> None:
        # A training does not depend on these numbers.
        with contextlib.suppress(Exception):
            import psutil

            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            psutil.cpu_percent()
            began, before = time.monotonic(), psutil.net_io_counters()
            sampled = began
            while not self._stopped.wait(FIRST_EVERY_S if time.monotonic() - began < FIRST_S else EVERY_S):
                now, passed, sampled = psutil.net_io_counters(), time.monotonic() - sampled, time.monotonic()
                record = {
                    "time": time.time(),
                    "cpu_percent": psutil.cpu_percent(),
                    "memory_percent": psutil.virtual_memory().percent,
                    "memory_used_gb": psutil.virtual_memory().used / 1e9,
                    "disk_percent": psutil.disk_usage(str(self._path.parent)).percent,
                    "network_received_mb_per_s": (now.bytes_recv - before.bytes_recv) / 1e6 / passed,
                    "network_sent_mb_per_s": (now.bytes_sent - before.bytes_sent) / 1e6 / passed,
                    **gpu_sample(),
                }
                before = now
                with open(self._path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")


def query_gpus(*fields: str, units: bool = True) -> list[str]:
    """Ask nvidia-smi for fields of each GPU of this node.

    Args:
        fields: names that `nvidia-smi --help-query-gpu` lists.
        units: add their units, as in `143771 MiB`.

    Returns:
        The fields of each GPU, separated by commas; empty if there is no GPU or nvidia-smi fails.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, f"--query-gpu={','.join(fields)}", f"--format=csv,noheader{'' if units else ',nounits'}"]
    try:
        return subprocess.run(
            query, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=10
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def gpu_sample() -> dict[str, float]:
    """Return utilisation (%), memory (GB), power (W) and temperature (degrees C) of each GPU; empty without GPUs."""
    sample: dict[str, Any] = {}
    for number, line in enumerate(query_gpus(*GPU_FIELDS, units=False)):
        for name, text in zip(GPU_NAMES, line.split(","), strict=False):
            with contextlib.suppress(ValueError):
                sample[f"gpu_{number}_{name}"] = float(text) * (MIB_IN_GB if name == "memory_gb" else 1)
    return sample
