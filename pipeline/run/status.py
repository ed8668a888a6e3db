"""State and progress of a run, from its own files: no server, no cluster command, no torch."""

import fcntl
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jobs import logs_folder
from pipeline.run.config import read_config
from pipeline.run.evaluations import awaiting, describe_problems
from pipeline.run.files import (
    ATTEMPTS_NAME,
    CONFIG_NAME,
    LOCK_NAME,
    LOGS,
    MANIFEST_NAME,
    checkpoints,
    read_events,
    read_registered,
    read_timed_metrics,
)
from pipeline.run.goodput import TimeSpent, run_spent
from pipeline.run.rank_troubles import RankTrouble, rank_troubles
from pipeline.run.sweep import FILE_NAME as SWEEP_NAME
from pipeline.tasks import Metric

RECENT = 50
"""Number of newest steps over which the present rate is measured."""
State = Literal["submitted", "running", "finished", "interrupted", "cancelled", "failed", "killed"]


@dataclass(frozen=True, kw_only=True)
class AttemptSpan:
    """One attempt of a run, from its start to its end or its last record."""

    number: int
    started: float
    """Unix seconds."""
    ended: float
    """Unix seconds; for a killed attempt the time of its last record or event."""
    outcome: str | None
    """Outcome that the attempt recorded; None: it still runs, or was killed."""
    first_step: int
    """Finished steps at its start."""
    world_size: int
    """Number of ranks."""
    on_gpus: bool
    """Whether the ranks ran on GPUs; False where the attempt did not record it."""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run at one moment. Times are unix seconds, fractions are in [0, 1], and None is unknown."""

    run_dir: Path
    model: str
    state: State
    attempts: list[AttemptSpan]
    is_starting: bool
    """Whether an attempt has started its processes and not yet begun: it is none of `attempts`."""
    step: int
    total_steps: int | None
    loss: float | None
    metric: Metric | None
    """Primary metric of the last evaluation."""
    metric_label: str
    """Name of the primary metric in texts."""
    images_per_s: float | None
    remaining_s: float | None
    checkpoint_step: int | None
    checkpoint_time: float | None
    spent: TimeSpent
    """Where the time since the first start has gone; all zero before it."""
    registered: dict[str, Any] | None
    logs: Path
    troubles: list[RankTrouble]
    """Ranks that were slow or hung, in any attempt."""
    preflight: list[str]
    """What the preflight of the newest attempt has found."""
    awaiting: list[int]
    """Steps of the checkpoints that await their evaluation."""
    not_evaluated: list[str]
    """Steps that could not be evaluated, with the reasons."""

    @property
    def goodput(self) -> float | None:
        """Share of the time since the first start that steps which count have taken; None before the first step."""
        return self.spent.goodput if self.spent.productive else None


def find_runs(root: Path) -> list[Path]:
    """Return the run directories in a folder and in the sweeps there, oldest first."""
    sweeps = [path.parent for path in (*root.glob(SWEEP_NAME), *root.glob(f"*/{SWEEP_NAME}"))]
    runs = {path.parent for folder in (root, *sweeps) for path in folder.glob(f"*/{CONFIG_NAME}")}
    return sorted(runs, key=lambda run: (run / CONFIG_NAME).stat().st_mtime)


def read_status(run_dir: Path, now: float | None = None) -> RunStatus:
    """Read how a run stands.

    Raises:
        RunDirectoryError: the folder is no run directory.
    """
    config = read_config(run_dir)
    now = time.time() if now is None else now
    records, events = read_timed_metrics(run_dir), read_events(run_dir)
    last = records[-1] if records else {}
    state, attempts = run_state(run_dir), read_attempts(run_dir, records)
    is_starting = state == "running" and not _has_begun(run_dir)
    if state == "running" and attempts and not is_starting:
        attempts[-1] = _until(attempts[-1], now)
    step, total = int(last.get("step", 0)), config.total_steps
    rate = _rate(records)
    kept = checkpoints(run_dir)
    saved = max(kept, default=-1)
    scores = config.task.scores
    metric = next(filter(None, map(scores.metric_of_record, reversed(records))), None)
    manifest = kept.get(saved, run_dir) / MANIFEST_NAME
    return RunStatus(
        run_dir=run_dir,
        model=config.model_name,
        state=state,
        attempts=attempts,
        is_starting=is_starting,
        step=step,
        total_steps=total,
        loss=last.get("loss"),
        metric=metric,
        metric_label=scores.label(metric.name) if metric else scores.primary({}).label,
        images_per_s=None if rate is None else rate * config.global_batch_size,
        remaining_s=(total - step) / rate if rate and total and state == "running" and not is_starting else None,
        checkpoint_step=saved if saved >= 0 else None,
        checkpoint_time=manifest.stat().st_mtime if manifest.exists() else None,
        spent=run_spent(events, records),
        registered=read_registered(run_dir),
        logs=_logs(run_dir),
        troubles=rank_troubles(events),
        preflight=_preflight(events),
        awaiting=awaiting(run_dir),
        not_evaluated=describe_problems(run_dir),
    )


def read_attempts(run_dir: Path, records: list[dict[str, Any]]) -> list[AttemptSpan]:
    """Return the attempts of a run in order; without an attempt log, the records of the steps tell them."""
    spans: dict[int, AttemptSpan] = {}
    events = read_events(run_dir)
    # The preflight is recorded before the start is.
    starts = {int(event["attempt"]): event for event in reversed(events) if event["event"] == "start"}
    for event in sorted([*events, *records], key=lambda entry: entry["time"]):
        number, kind = int(event.get("attempt", 1)), event.get("event")
        span = spans.get(number)
        if span is None:
            first = starts.get(number, event)
            finished = int(first.get("step", 1)) - (0 if first.get("event") == "start" else 1)
            span = AttemptSpan(
                number=number,
                started=first.get("began", first["time"] - float(first.get("step_s", 0))),
                ended=first["time"],
                outcome=None,
                first_step=max(0, finished),
                world_size=int(first.get("world_size", 0)),
                on_gpus=first.get("device") == "cuda",
            )
        span = _until(span, event["time"], event.get("outcome") if kind == "end" else span.outcome)
        spans[number] = span
    return [spans[number] for number in sorted(spans)]


def _preflight(events: list[dict[str, Any]]) -> list[str]:
    """Return what the preflight of the newest attempt has found, in words."""
    newest = max((int(event.get("attempt", 1)) for event in events), default=1)
    found = [
        event.get("findings")
        for event in events
        if event.get("event") == "preflight" and int(event.get("attempt", 1)) == newest
    ]
    return [str(each) for each in found[-1]] if found and isinstance(found[-1], list) else []


def _until(span: AttemptSpan, ended: float, outcome: str | None = None) -> AttemptSpan:
    return replace(span, ended=max(span.ended, ended), outcome=outcome)


def _rate(records: list[dict[str, Any]]) -> float | None:
    """Return the steps a second of the newest attempt, over its newest steps with their evaluations and saves."""
    recent = records[-RECENT:]
    recent = [record for record in recent if record.get("attempt") == recent[-1].get("attempt")]
    if len(recent) < 2:
        return None
    seconds = recent[-1]["time"] - recent[0]["time"]
    return (recent[-1]["step"] - recent[0]["step"]) / seconds if seconds > 0 else None


def run_state(run_dir: Path) -> State:
    """Return the state of a run, from its lock and its attempt log."""
    events = read_events(run_dir)
    lock = run_dir / LOCK_NAME
    last = events[-1] if events else {}
    if _is_locked(lock) and not (last.get("event") == "end" and last["time"] > lock.stat().st_mtime):
        return "running"
    if not events:
        return "submitted"
    if last.get("event") != "end":
        return "killed"
    known: dict[str, State] = {"finished": "finished", "failed": "failed", "cancelled": "cancelled"}
    return known.get(str(last.get("outcome")), "interrupted")


def _has_begun(run_dir: Path) -> bool:
    """Whether the attempt that holds the run's lock has written its first event, which it does after it took the lock.

    Both times are of the disk's clock, which need not agree with that of a node.
    """
    events = run_dir / ATTEMPTS_NAME
    return events.exists() and events.stat().st_mtime >= (run_dir / LOCK_NAME).stat().st_mtime


def _is_locked(path: Path) -> bool:
    """Whether an attempt holds the run's lock; nothing is written."""
    try:
        with open(path, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _logs(run_dir: Path) -> Path:
    """Return the folder of the job's logs: below the run, or below the sweep that it belongs to."""
    return logs_folder(run_dir / LOGS)
