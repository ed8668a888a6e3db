"""Entry point of each process of a job: `python -m jobs.rank FOLDER`.

It runs Submitit's own entry point with the stop signals blocked, so that a signal that arrives during start-up stays
pending instead of killing the process. Otherwise a preemption during start-up would fail the job, and Slurm would not
requeue it. The process leaves as soon as its result is on disk.
"""

import os
import signal
import sys
from pathlib import Path

from jobs.environment import slurm_job_of
from jobs.leave import run_and_leave
from jobs.rank_guard import guard
from jobs.stop_flag import STOP_SIGNALS


def main() -> None:
    """Block the stop signals, then load and run the job that Submitit pickled, and leave."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    for number in STOP_SIGNALS:
        # The command that started this process may have had them ignored.
        signal.signal(number, signal.SIG_DFL)
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        job_id, _ = slurm_job_of(os.environ)
        guard(Path(sys.argv[1]), job_id, int(os.environ["SLURM_PROCID"]))
    run_and_leave(_run)


def _run() -> None:
    from submitit.core.logger import get_logger
    from submitit.core.submission import submitit_main

    # Submitit writes warnings to stdout and stderr, and both go to the same file here.
    for handler in [each for each in get_logger().handlers if getattr(each, "stream", None) is sys.stderr]:
        get_logger().removeHandler(handler)
    submitit_main()


if __name__ == "__main__":
    main()
