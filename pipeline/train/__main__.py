"""The training alone, under torchrun or in one process: `torchrun -m pipeline.train RUN_DIR`."""

import sys
from pathlib import Path

from jobs import run_and_leave
from pipeline.common.cli import report_errors


def main() -> int:
    """`torchrun -m pipeline.train RUN_DIR`: one attempt in this process."""
    import signal

    from jobs import Outcome
    from pipeline.train.job_task import TrainTask

    wants_help = sys.argv[1:] in (["-h"], ["--help"])
    if len(sys.argv) != 2 or wants_help:
        print("usage: torchrun --nproc-per-node N -m pipeline.train RUN_DIR (a folder that pipeline.launch made)")
        return 0 if wants_help else 2
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda received, _: stop.append(received))
    task = TrainTask(Path(sys.argv[1]))
    outcome = Outcome.FAILED
    try:
        outcome = task(lambda: bool(stop))
    finally:
        task.ended(outcome)
    return 0 if outcome is Outcome.FINISHED else 1


if __name__ == "__main__":
    run_and_leave(lambda: report_errors(main))
