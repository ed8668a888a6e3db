"""`python -m tests.benchmarks.restart`: seconds from a launch, and from a rank's start, to the first step.

Launches the demo on two processes, kills it with SIGKILL after a few steps, and launches it again. Prints each start
with its parts from `attempts.jsonl`. `--checkout` measures other code.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.support import REPOSITORY
from tests.test_end_to_end import kill_everything_of


def records(path: Path) -> list[dict[str, Any]]:
    """Records of the complete lines of a JSON lines file."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def launch(run: Path, checkout: Path) -> tuple[float, dict[str, Any]]:
    """Start the demo until it has made two steps and saved; seconds to the first, and its start-up's event."""
    began, known = time.time(), len(records(run / "metrics.jsonl"))
    flags = ["--recipe", "demo", "--run-dir", str(run), "--train.save-every-steps", "2"]
    command = [sys.executable, "-m", "pipeline.launch", *flags]
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=run.parent, env=environment, stdout=subprocess.DEVNULL)
    try:
        while True:
            time.sleep(0.05)
            if process.poll() is not None:
                raise SystemExit(f"the launcher ended with {process.returncode}; see {run}/submitit")
            new = records(run / "metrics.jsonl")[known:]
            if len(new) > 2 and any((run / "checkpoints").glob("step_*")):
                started = [event for event in records(run / "attempts.jsonl") if event["event"] == "first_step"]
                return new[0]["time"] - began, started[-1] if started else {"seconds": float("nan"), "parts": {}}
    finally:
        kill_everything_of(run)
        process.kill()
        process.wait()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, default=REPOSITORY)
    parser.add_argument("--rounds", type=int, default=3, help="restarts after the first start")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds + 1):
            seconds, started = launch(Path(folder) / "run", options.checkout)
            parts = ", ".join(f"{name} {value:.1f}" for name, value in started["parts"].items())
            name = "restart" if number else "first start (packs the digits)"
            whole = started["seconds"]
            print(f"{name}: {seconds:.1f} s from the command, {whole:.1f} s from the rank's start: {parts}", flush=True)


if __name__ == "__main__":
    main()
