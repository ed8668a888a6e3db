"""Entry point of each process of a job: `python -m jobs.rank FOLDER`.

Submitit's own entry point, except that a signal that arrives before anybody listens waits instead of killing: a
preemption during start-up would otherwise end the job as failed, and Slurm would not bring it back.
"""

import signal

from jobs.preemption import STOP_SIGNALS


def main() -> None:
    """Hold the stop signals back, then load and run the job that Submitit pickled."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    from submitit.core.submission import submitit_main

    submitit_main()


if __name__ == "__main__":
    main()
