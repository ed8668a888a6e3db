"""Tells a web address of the user's how a run went: one POST of JSON when it ends, fails, is given up, or is the best.

The address may be a secret, as those of chat rooms are. It is kept in a file of the run that only the user can read,
and in no other place.
"""

import json
import os
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pipeline.common.atomic import read_json, replacing
from pipeline.common.errors import PipelineError, one_line
from pipeline.common.secrets import mask_secrets
from pipeline.run.files import read_registered
from pipeline.run.recorder import log
from pipeline.run.status import read_status
from pipeline.run.usage import read_usage

FILE_NAME = "notify.json"
FLAG = "--notify"
Event = Literal["finished", "failed", "given up", "cancelled", "stopped", "champion"]
_ANSWER_S = 5.0
"""Seconds that the address may take to connect, and for each part of its answer."""
_PATIENCE_S = 8.0
"""Seconds after which nobody waits for it any longer: a process may have little time left."""


def check_address(address: str) -> None:
    """Refuse an address that cannot be told anything.

    Raises:
        PipelineError: it is no http or https address of a host.
    """
    try:
        parts = urlsplit(address)
        is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_right = False
    if not is_right:
        raise PipelineError(f"{FLAG} {mask_secrets(address)} is no web address: give one like https://HOST/PATH")


def remember(run_dir: Path, address: str) -> None:
    """Keep the address in the run's folder, for the processes of its jobs."""
    with replacing(run_dir / FILE_NAME, durable=True) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps({"address": address}) + "\n", encoding="utf-8")


def hide_address(arguments: list[str]) -> list[str]:
    """Return the arguments of a command without the address that `--notify` has."""
    hidden = []
    for number, argument in enumerate(arguments):
        if argument.startswith(f"{FLAG}="):
            hidden.append(f"{FLAG}=***")
        else:
            hidden.append("***" if number and arguments[number - 1] == FLAG else argument)
    return hidden


def notify(run_dir: Path, event: Event) -> None:
    """Tell the address of a run what has happened; nothing if the run has none.

    It never raises, waits some seconds at most, and logs one line if the address does not take it.
    """
    address = (read_json(run_dir / FILE_NAME) or {}).get("address")
    if not isinstance(address, str):
        return
    failure: list[str] = ["it does not answer"]

    def post() -> None:
        try:
            body = json.dumps(describe(run_dir, event)).encode()
            request = urllib.request.Request(address, body, {"Content-Type": "application/json"}, method="POST")
            with urllib.request.urlopen(request, timeout=_ANSWER_S):
                failure.clear()
        except Exception as error:  # no error of a web server may make a training fail
            failure[:] = [f"{error.code} {error.reason}" if isinstance(error, urllib.error.HTTPError) else str(error)]

    thread = threading.Thread(target=post, name="notify", daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    if failure:
        host = urlsplit(address).hostname
        log(f"warning: {FLAG}: {host} was not told that this run is {event}: {one_line(Exception(failure[0]))}")


def describe(run_dir: Path, event: Event) -> dict[str, Any]:
    """Return what is sent about a run: names, numbers, and `text`, one line for chat rooms.

    Secrets in it are masked.
    """
    status, registered = read_status(run_dir), read_registered(run_dir)
    metric = status.metric
    known = {
        "event": event,
        "run": run_dir.name,
        "run_dir": str(run_dir),
        "host": os.uname().nodename,
        "job_id": os.environ.get("JOB_ID"),
        "model": status.model,
        "step": status.step,
        "total_steps": status.total_steps,
        "metric": None if metric is None else {"name": metric.name, "value": metric.value},
        "registered": None if registered is None else f"models:/{registered['name']}/{registered['version']}",
        "goodput": status.goodput,
        "used": read_usage(run_dir, status.attempts).describe() if status.attempts else None,
        "logs": str(status.logs),
    }
    parts = [f"{run_dir.name} ({status.model}): {event} at step {status.step:,}"]
    parts += [] if metric is None else [f"{status.metric_label} {metric.value:.4f}"]
    parts += [] if event in ("finished", "champion") else [f"logs in {status.logs}"]
    if known["registered"] is not None:
        parts.append(f"{known['registered']}{' (@champion)' if event == 'champion' else ''}")
    known["text"] = ", ".join(parts)
    return {key: mask_secrets(value) if isinstance(value, str) else value for key, value in known.items()}
