"""End a rank on this machine whose controller has died, so that no rank outlives its launcher."""

import os
import signal
import threading
import time

ORPHAN_S = 120.0
"""Seconds a rank gets to save after its controller has died."""


def stop_when_orphaned(grace_s: float = ORPHAN_S) -> None:
    """Watch the parent process from a thread. When it has died, send TERM to this process, and KILL `grace_s` later."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_s)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="orphan-watch", daemon=True).start()
