"""What a node's processors, memory, network and GPUs do during a training: `RUN_DIR/system/node_K.jsonl`.

A file, as the metrics of the steps: it needs no server, and is forwarded when one answers.
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
EVERY_S, LATER_EVERY_S = 10.0, 60.0
"""Between two samples in the first ten minutes, and afterwards."""
CLOSE_LOOK_S = 600.0
MIB_IN_GB = 2**20 / 1e9
"""nvidia-smi counts memory in MiB."""
GPU_FIELDS = ("utilization.gpu", "memory.used", "power.draw", "temperature.gpu")


class SystemMonitor:
    """Samples this node from a thread until `stop`; one for each node (its local rank 0)."""

    def __init__(self, run_dir: Path, node: int) -> None:
        self._path = run_dir / FOLDER / f"node_{node}.jsonl"
        self._stopped = threading.Event()

    @classmethod
    def start(cls, run_dir: str | Path, node: int) -> Self:
        """Begin to sample into `RUN_DIR/system/node_NODE.jsonl`; never raises, never waits."""
        monitor = cls(Path(run_dir), node)
        threading.Thread(target=monitor._run, name="system-metrics", daemon=True).start()
        return monitor

    def stop(self) -> None:
        """End the sampling."""
        self._stopped.set()

    def _run(self) -> None:
        # A node without these numbers trains as well as one with them.
        with contextlib.suppress(Exception):
            import psutil

            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            psutil.cpu_percent()
            began, before = time.monotonic(), psutil.net_io_counters()
            looked = began
            while not self._stopped.wait(EVERY_S if time.monotonic() - began < CLOSE_LOOK_S else LATER_EVERY_S):
                now, passed, looked = psutil.net_io_counters(), time.monotonic() - looked, time.monotonic()
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
                with open(self._path, "a") as file:
                    file.write(json.dumps(record) + "\n")


def gpu_sample() -> dict[str, float]:
    """Utilisation (%), memory (GB), power (W) and temperature (degrees C) of each GPU; empty where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    query = [program, f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}
    sample: dict[str, Any] = {}
    for number, line in enumerate(lines):
        names = ("percent", "memory_gb", "power_w", "temperature_c")
        for name, text in zip(names, line.split(","), strict=False):
            with contextlib.suppress(ValueError):
                sample[f"gpu_{number}_{name}"] = float(text) * (MIB_IN_GB if name == "memory_gb" else 1)
    return sample
