"""Formats the status of one run in full, and of many runs as a table."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.console import duration
from pipeline.tracking.backlog import KEPT, describe_backlog, steps_waiting
from pipeline.tracking.state import load_state

if TYPE_CHECKING:
    from pipeline.run.status import RunStatus


def format_run(status: "RunStatus", now: float, job: str | None = None, evaluated_by: str = "") -> list[str]:
    """Return the lines that show a run in full.

    Args:
        status: the run's status.
        now: current time, in unix seconds.
        job: description of the run's job; None: not shown.
        evaluated_by: who will evaluate its checkpoints that await it.
    """
    from pipeline.run.files import METRICS_NAME
    from pipeline.run.micro_batch import describe_micro_batch
    from pipeline.run.mirror_files import describe_mirror
    from pipeline.run.rank_troubles import describe_troubles, present_troubles
    from pipeline.run.usage import read_usage

    rows = {"state": status.state, "attempt": _attempt(status), "step": _step(status)}
    if job is not None:
        rows["job"] = job
    if status.images_per_s is not None:
        rows["rate"] = f"{status.images_per_s:,.0f} images/s"
    if status.remaining_s is not None:
        rows["remaining"] = duration(status.remaining_s)
    if status.loss is not None:
        rows["loss"] = f"{status.loss:.4f}"
    if status.metric is not None:
        rows[status.metric_label] = f"{100 * status.metric.value:.2f} %"
    evaluation = _evaluation(status, evaluated_by)
    if evaluation:
        rows["evaluation"] = evaluation
    if status.checkpoint_step is not None:
        age = "" if status.checkpoint_time is None else f", {duration(max(0, now - status.checkpoint_time))} ago"
        rows["checkpoint"] = f"step {status.checkpoint_step}{age}"
    else:
        rows["checkpoint"] = "none yet"
    if status.goodput is not None:
        rows["time"] = status.spent.describe()
    micro_batch = describe_micro_batch(status.run_dir)
    if micro_batch is not None:
        rows["batch"] = f"micro-batch {micro_batch}"
    troubles = describe_troubles(
        present_troubles(status.troubles, status.attempts[-1].number if status.attempts else 0)
    )
    if troubles:
        rows["ranks"] = troubles
    if status.preflight:
        rows["preflight"] = "; ".join(status.preflight)
    if status.attempts:
        rows["used"] = read_usage(status.run_dir, status.attempts).describe()
    rows["tracking"] = _tracking(status, now)
    newest, is_running = status.checkpoint_step, status.state == "running"
    mirror = describe_mirror(status.run_dir, newest, now, is_running=is_running)
    if mirror is not None:
        rows["mirror"] = mirror
    if status.registered:
        rows["model"] = f"{status.registered['uri']} (version {status.registered['version']})"
    rows["logs"] = str(status.logs)
    rows["metrics"] = str(status.run_dir / METRICS_NAME)
    return [f"{status.run_dir} ({status.model})", *(f"  {name:<11}{value}" for name, value in rows.items())]


def format_table(statuses: "list[RunStatus]", root: Path, jobs: Mapping[Path, str] | None = None) -> list[str]:
    """Return the lines of a table of runs.

    Args:
        statuses: the runs' statuses.
        root: folder that holds the runs, whose names are relative to it.
        jobs: description of the jobs of some runs, by run directory.
    """
    jobs = jobs or {}
    labels = {status.metric_label for status in statuses}
    metric = labels.pop() if len(labels) == 1 else "metric"
    head = ("run", "model", "state", "attempt", "step", "images/s", "remaining", "saved", "loss", metric, "goodput")
    rows: list[tuple[str, ...]] = [head]
    for status in statuses:
        rows.append(
            (
                str(status.run_dir.relative_to(root)),
                status.model,
                status.state,
                str(status.attempts[-1].number if status.attempts else 0),
                _step(status),
                "" if status.images_per_s is None else f"{status.images_per_s:,.0f}",
                "" if status.remaining_s is None else duration(status.remaining_s),
                "" if status.checkpoint_step is None else str(status.checkpoint_step),
                "" if status.loss is None else f"{status.loss:.4f}",
                "" if status.metric is None else f"{100 * status.metric.value:.2f} %",
                "" if status.goodput is None else f"{100 * status.goodput:.0f} %",
            )
        )
    unsent = [steps_waiting(load_state(status.run_dir), status.step) for status in statuses]
    if any(unsent):
        rows = [(*row, cell) for row, cell in zip(rows, ["unsent", *map(str, unsent)], strict=True)]
    if jobs:
        cells = ["job", *(jobs.get(status.run_dir, "") for status in statuses)]
        rows = [(*row, cell) for row, cell in zip(rows, cells, strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _step(status: "RunStatus") -> str:
    if status.total_steps is None:
        return str(status.step)
    return f"{status.step}/{status.total_steps} ({100 * status.step // max(1, status.total_steps)} %)"


def _attempt(status: "RunStatus") -> str:
    starting = "the next one is starting" if status.is_starting else ""
    if not status.attempts:
        return "the first one is starting" if starting else "none has started"
    last = status.attempts[-1]
    ranks = f" on {last.world_size} ranks" if last.world_size else ""
    text = f"{last.number}{ranks}, from step {last.first_step}, {duration(last.ended - last.started)}"
    return f"{text}; {starting}" if starting else text


def _evaluation(status: "RunStatus", evaluated_by: str) -> str:
    """Return which checkpoints await their evaluation, and which could not be evaluated; empty: none."""
    parts = list(status.not_evaluated)
    if status.awaiting:
        steps = ", ".join(map(str, status.awaiting))
        parts.append(f"step {steps} awaits evaluation{evaluated_by and ': '}{evaluated_by}")
    return "; ".join(parts)


def _tracking(status: "RunStatus", now: float) -> str:
    state = load_state(status.run_dir)
    if state is None or state.run_id is None:
        text, is_sent = "not in MLflow yet", False
    else:
        text = f"MLflow run {state.run_id} at {state.tracking_uri}, up to step {max(0, state.shipped_step)}"
        is_sent = state.sent_status == state.status
    backlog = describe_backlog(state, status.step, now)
    if backlog is not None:
        text += f"; {backlog}"
    if status.state == "running":
        return text if backlog is None else f"{text}; {KEPT}"
    return text if is_sent else f"{text}; to send: python -m pipeline.status --sync {status.run_dir}"
