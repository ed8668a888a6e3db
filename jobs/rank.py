"""Entry point of each process of a job: `python -m jobs.rank FOLDER`.

Submitit's own entry point, except that a signal that arrives before anybody listens waits instead of killing: a
preemption during start-up would otherwise end the job as failed, and Slurm would not bring it back.
"""

import signal
import sys

from jobs.preemption import STOP_SIGNALS


def main() -> None:
    """Hold the stop signals back, then load and run the job that Submitit pickled."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    from submitit.core.logger import get_logger
    from submitit.core.submission import submitit_main

    # Submitit sends warnings to both streams, and here both are one file.
    for handler in [each for each in get_logger().handlers if getattr(each, "stream", None) is sys.stderr]:
        get_logger().removeHandler(handler)
    submitit_main()


if __name__ == "__main__":
    main()
