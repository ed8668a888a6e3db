"""The process beside rank 0 that sends to MLflow: `python -m pipeline.tracking.worker RUN_DIR`, started by `Tracker`.

It is a process of its own so that nothing of MLflow (its import, its locks, a database, a call that hangs) delays the
training. It reads messages from stdin, one JSON object a line:

- `{"begin": TAGS}`, the first message: an attempt has begun;
- `{"durable": STEP}`: a checkpoint covers the metrics up to STEP;
- `{"close": STATUS, "timeout_s": S, "hint": TEXT}`: the attempt has ended; TEXT is what a person must do then, if any.

If stdin ends without `close`, the training was killed.
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
from pipeline.tracking.client import describe_failure
from pipeline.tracking.shipper import EVERYTHING, Shipper
from pipeline.tracking.state import shipping_lock

PAUSE_S = 5.0
"""Seconds between two looks at the files while the server answers."""
LONGEST_PAUSE_S = 60.0
"""Longest time between two retries while the server does not answer, in seconds."""
REPORT_EVERY_S = 60.0
"""Shortest time between two reports, in seconds: drawing one takes a processor for a second or two."""
KILLED_GRACE_S = 10.0
"""Seconds that the worker takes to tell the server that the training was killed."""
EXIT_SHIPPED, EXIT_UNSHIPPED = 0, 3


def main(run_dir: Path) -> int:
    """Send until `close`; return 0 if the server has taken everything, 3 if it has not."""
    # The scheduler signals every process of a job; the training tells the worker when it ends.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(5)
    inbox: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(inbox,), daemon=True).start()
    try:
        # The worker of an attempt that was killed may still be sending.
        with shipping_lock(run_dir, wait=True):
            SystemMonitor.start(run_dir, node=0)
            return _work(Shipper(run_dir), inbox)
    except (OSError, ValueError) as error:
        _log(f"{run_dir} cannot be tracked in MLflow: {error}")
        return EXIT_UNSHIPPED


def _listen(inbox: "queue.Queue[dict[str, Any]]") -> None:
    """Put the messages from stdin into the inbox; add a `close` when stdin ends."""
    for line in sys.stdin:
        with contextlib.suppress(ValueError):
            inbox.put(json.loads(line))
    inbox.put({"close": "KILLED", "timeout_s": KILLED_GRACE_S})


def _work(shipper: Shipper, inbox: "queue.Queue[dict[str, Any]]") -> int:
    """Send what the messages allow until the attempt is closed; return the exit code."""
    durable, deadline, pause, is_behind, reported = -1, None, PAUSE_S, False, time.monotonic()
    while True:
        for message in _messages(inbox, pause):
            if "begin" in message:
                shipper.begin({name: str(value) for name, value in message["begin"].items()})
            elif "durable" in message:
                durable = max(durable, int(message["durable"]))
            elif deadline is None:
                deadline = time.monotonic() + float(message["timeout_s"])
                shipper.end(message["close"], str(message.get("hint", "")))
                durable = EVERYTHING if message["close"] == "FINISHED" else durable
        try:
            shipper.ship(durable)
            if deadline is not None:
                shipper.send_status()
                _write_report(shipper.run_dir)
                shipper.send_report()
                shipper.mark_caught_up()
                return EXIT_SHIPPED
            if time.monotonic() - reported >= REPORT_EVERY_S and shipper.evaluated_step() > shipper.state.reported_step:
                _write_report(shipper.run_dir)
                shipper.send_report()
                reported = time.monotonic()
            shipper.mark_caught_up()
        except Exception as error:
            if not is_behind:
                problem = describe_failure(error, f"MLflow at {shipper.uri} does not take what is sent")
                _log(f"{problem}; the training goes on, and metrics.jsonl keeps everything until it is sent")
            shipper.mark_behind(describe_failure(error))
            is_behind, pause = True, min(LONGEST_PAUSE_S, max(2 * pause, PAUSE_S))
            if deadline is not None:
                if time.monotonic() >= deadline:
                    _write_report(shipper.run_dir)
                    return EXIT_UNSHIPPED
                pause = min(1.0, deadline - time.monotonic())
            continue
        if is_behind:
            _log(f"MLflow at {shipper.state.tracking_uri} answers again")
        is_behind, pause = False, PAUSE_S


def _write_report(run_dir: Path) -> None:
    """Write the run's report; if that fails, log it and go on, so that metrics are sent all the same."""
    try:
        write_report(run_dir)
    except Exception as error:
        _log(f"the report of {run_dir} could not be written: {one_line(error)}")


def _messages(inbox: "queue.Queue[dict[str, Any]]", wait_s: float) -> list[dict[str, Any]]:
    """Return the messages that have come in; wait up to `wait_s` for the first."""
    messages = []
    with contextlib.suppress(queue.Empty):
        messages.append(inbox.get(timeout=wait_s) if wait_s > 0 else inbox.get_nowait())
        while True:
            messages.append(inbox.get_nowait())
    return messages


def _log(text: str) -> None:
    """Print a line to stderr, which is the training's."""
    with contextlib.suppress(OSError):
        print(mask_secrets(text), file=sys.stderr, flush=True)


if __name__ == "__main__":
    # Threads of a library that still wait for a dead server must not delay the exit.
    code = main(Path(sys.argv[1]))
    sys.stderr.flush()
    os._exit(code)
