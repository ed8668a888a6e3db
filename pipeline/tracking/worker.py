"""The process beside rank 0 that talks to MLflow: `python -m pipeline.tracking.worker RUN_DIR`, started by `Tracker`.

A process of its own, because then nothing of MLflow (its import, its locks, a database's work, a call that hangs) is
ever in the training's way. It reads one JSON object a line: `{"begin": TAGS}` first; `{"durable": STEP}` says that
a checkpoint covers the metrics up to STEP, `{"close": STATUS, "timeout_s": S}` that the attempt has ended. The end of
the input without that means that the training was killed.
"""

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pipeline.common.errors import one_line
from pipeline.common.secrets import mask_secrets
from pipeline.run.report import write_report
from pipeline.run.system import SystemMonitor
from pipeline.tracking.shipper import EVERYTHING, Shipper
from pipeline.tracking.state import shipping_lock

PAUSE_S = 5.0
"""Between two looks at the files while the server answers."""
LONGEST_PAUSE_S = 60.0
"""Between two attempts while it does not."""
REPORT_EVERY_S = 60.0
"""Between two reports at least: drawing one takes a processor for a second or two."""
KILLED_GRACE_S = 10.0
"""What is left to tell the server that the training was killed."""
EXIT_SHIPPED, EXIT_UNSHIPPED = 0, 3


def main(run_dir: Path) -> int:
    """Ship until told to close; 0 when the server has everything, 3 when it has not."""
    # The scheduler's signals reach every process of a job; the training says when it ends.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(5)
    inbox: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(inbox,), daemon=True).start()
    try:
        # The worker of an attempt that was killed may still be at its last words.
        with shipping_lock(run_dir, wait=True):
            SystemMonitor.start(run_dir, node=0)
            return _work(Shipper(run_dir), inbox)
    except (OSError, ValueError) as error:
        _say(f"{run_dir} cannot be tracked in MLflow: {error}")
        return EXIT_UNSHIPPED


def _listen(inbox: "queue.Queue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        with contextlib.suppress(ValueError):
            inbox.put(json.loads(line))
    inbox.put({"close": "KILLED", "timeout_s": KILLED_GRACE_S})


def _work(shipper: Shipper, inbox: "queue.Queue[dict[str, Any]]") -> int:
    durable, deadline, pause, failed, drawn = -1, None, PAUSE_S, False, time.monotonic()
    while True:
        for message in _messages(inbox, pause):
            if "begin" in message:
                shipper.begin({name: str(value) for name, value in message["begin"].items()})
            elif "durable" in message:
                durable = max(durable, int(message["durable"]))
            elif deadline is None:
                deadline = time.monotonic() + float(message["timeout_s"])
                shipper.end(message["close"])
                durable = EVERYTHING if message["close"] == "FINISHED" else durable
        try:
            shipper.ship(durable)
            if deadline is not None:
                shipper.send_status()
                _draw(shipper.run_dir)
                shipper.send_report()
                shipper.catches_up()
                return EXIT_SHIPPED
            if time.monotonic() - drawn >= REPORT_EVERY_S and shipper.evaluated_step() > shipper.state.reported_step:
                _draw(shipper.run_dir)
                shipper.send_report()
                drawn = time.monotonic()
            shipper.catches_up()
        except Exception as error:
            if not failed:
                _say(
                    f"MLflow at {shipper.state.tracking_uri} does not take what is sent ({one_line(error)}); "
                    "the training goes on, and metrics.jsonl keeps everything until it does"
                )
            shipper.falls_behind(one_line(error))
            failed, pause = True, min(LONGEST_PAUSE_S, max(2 * pause, PAUSE_S))
            if deadline is not None:
                if time.monotonic() >= deadline:
                    _draw(shipper.run_dir)
                    return EXIT_UNSHIPPED
                pause = min(1.0, deadline - time.monotonic())
            continue
        if failed:
            _say(f"MLflow at {shipper.state.tracking_uri} answers again")
        failed, pause = False, PAUSE_S


def _draw(run_dir: Path) -> None:
    """Write the run's page; a picture that fails is no reason to keep metrics back."""
    try:
        write_report(run_dir)
    except Exception as error:
        _say(f"the report of {run_dir} could not be written: {one_line(error)}")


def _messages(inbox: "queue.Queue[dict[str, Any]]", wait_s: float) -> list[dict[str, Any]]:
    """What has come in; waits up to `wait_s` for the first."""
    messages = []
    with contextlib.suppress(queue.Empty):
        messages.append(inbox.get(timeout=wait_s) if wait_s > 0 else inbox.get_nowait())
        while True:
            messages.append(inbox.get_nowait())
    return messages


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(mask_secrets(text), file=sys.stderr, flush=True)


if __name__ == "__main__":
    # Threads of a library that still wait for a dead server must not delay the end.
    code = main(Path(sys.argv[1]))
    sys.stderr.flush()
    os._exit(code)
