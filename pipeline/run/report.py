"""The report of a run in `RUN_DIR/report/`: a Markdown page, and a picture of its curves and its time."""

import math
import os
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.common.atomic import read_json, write_json, write_text
from pipeline.common.console import duration
from pipeline.common.secrets import mask_secrets
from pipeline.run.config import RunConfig, read_config
from pipeline.run.files import read_events, read_timed_metrics
from pipeline.run.goodput import TimeSpent, attempts_spent
from pipeline.run.micro_batch import describe_micro_batch
from pipeline.run.mirror_files import describe_mirror
from pipeline.run.preflight import read_table
from pipeline.run.rank_troubles import describe_troubles
from pipeline.run.status import AttemptSpan, RunStatus, read_status
from pipeline.run.usage import read_usage
from pipeline.tasks import Scores

FOLDER = "report"
PICTURE_NAME = "training.png"
REPORT_NAME = "report.md"
POINTS = 2000
"""Greatest number of points of a curve, approximately."""
SMOOTH = 50
"""Number of windows whose means are the smoothed loss."""
CLASSES_NAME = "classes.json"
"""What the last evaluation has measured of each class, for tasks that measure classes."""
SAMPLES_NAME = "samples.png"
"""Pictures of the last evaluation, for tasks that draw some."""
LISTED = 40
"""Greatest number of classes on the page: those with the lowest values."""
LISTED_TROUBLES = 8
"""Greatest number of slow or hanging ranks on the page: the latest."""
_UNITS = ((3600, "hours"), (60, "minutes"))
_COLOURS = {
    "finished": "tab:green",
    "running": "tab:blue",
    "interrupted": "tab:orange",
    "stopped": "tab:orange",
    "cancelled": "tab:orange",
    "failed": "tab:red",
    "killed": "tab:red",
}
_PARTS = {
    "productive": "tab:green",
    "data_wait": "tab:olive",
    "restart": "tab:cyan",
    "save": "tab:purple",
    "evaluation": "tab:blue",
    "lost": "tab:red",
    "down": "lightgray",
    "other": "tab:gray",
}
"""Colour of each field of `TimeSpent`, in the order in which they are drawn."""


def write_report(run_dir: Path) -> Path:
    """Write the page and the picture of a run as it stands; return their folder.

    Raises:
        RunDirectoryError: the folder is no run directory.
        OSError: the report cannot be written.
    """
    status = read_status(run_dir)
    records = read_timed_metrics(run_dir)
    folder = run_dir / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    spent = attempts_spent(read_events(run_dir), records)
    write_text(folder / REPORT_NAME, markdown(status, records, read_config(run_dir), spent))
    if records:
        draw(folder / PICTURE_NAME, run_dir, status, records)
    return folder


def write_evaluation(run_dir: Path, step: int, names: list[str], classes: Mapping[str, list[float]]) -> None:
    """Keep what an evaluation has measured of each class for the report; nothing if it measures none.

    Args:
        run_dir: of the run.
        step: finished steps.
        names: name of each class.
        classes: values of each class, by their name in texts; NaN for a class that does not occur.
    """
    folder = run_dir / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    if classes:
        values = {key: [None if math.isnan(value) else value for value in row] for key, row in classes.items()}
        write_json(folder / CLASSES_NAME, {"step": step, "names": names, "values": values})


def evaluated_step(run_dir: Path) -> int:
    """Return the step whose classes the report has; -1 if it has none."""
    return int((read_json(run_dir / FOLDER / CLASSES_NAME) or {}).get("step", -1))


def _describe_classes(run_dir: Path) -> str:
    """Return what the last evaluation has measured of each class, the lowest first; empty if nothing."""
    content = read_json(run_dir / FOLDER / CLASSES_NAME)
    if content is None:
        return ""
    names, values = content["names"], content["values"]
    first = next(iter(values.values()))
    order = sorted((k for k in range(len(names)) if first[k] is not None), key=lambda k: first[k])[:LISTED]
    width = max((len(names[k]) for k in order), default=0)
    lines = [f"{'':{width}}  " + "  ".join(f"{key:>9}" for key in values)]
    for k in order:
        cells = ("-" if row[k] is None else f"{100 * row[k]:.2f} %" for row in values.values())
        lines.append(f"{names[k]:{width}}  " + "  ".join(f"{cell:>9}" for cell in cells))
    title = f"Classes at step {content['step']:,}, the weakest first (all of them: `{CLASSES_NAME}`):"
    drawn = [f"Images with truth and answer: `{SAMPLES_NAME}`, beside this page.", ""]
    shown = drawn if (run_dir / FOLDER / SAMPLES_NAME).exists() else []
    return "\n".join([title, "", "```text", *lines, "```", "", *shown, ""])


def _describe_preflight(status: RunStatus) -> str:
    """Return the table of the newest attempt that had a preflight; empty if none had."""
    for span in reversed(status.attempts):
        lines = read_table(status.run_dir, span.number)
        if lines:
            return "\n".join([f"Preflight of attempt {span.number}:", "", "```text", *lines, "```", "", ""])
    return ""


def markdown(
    status: RunStatus, records: list[dict[str, Any]], config: RunConfig, spent: Mapping[int, TimeSpent]
) -> str:
    """Return the page: what was trained, the result, the attempts, and how to use the model."""
    fields = config.train_fields
    last = records[-1] if records else {}
    scores = config.task.scores
    evaluated = [record for record in records if scores.metric_of_record(record) is not None]
    label = scores.primary(scores.of_record(evaluated[-1]) if evaluated else {}).label
    rows = {
        "state": status.state,
        "steps": f"{status.step:,}" + (f" of {status.total_steps:,}" if status.total_steps else ""),
        "last loss": _number(last.get("loss"), "{:.4f}"),
        "throughput": _number(_median(records, "images_per_s"), "{:,.0f} images/s (median step)"),
        "waiting for data": _number(_median(records, "data_wait", 100), "{:.1f} % (median step)"),
        "time": duration(status.attempts[-1].ended - status.attempts[0].started) if status.attempts else "none",
        "used": read_usage(status.run_dir, status.attempts).describe(),
    }
    is_running = status.state == "running"
    mirror = describe_mirror(status.run_dir, status.checkpoint_step, time.time(), is_running=is_running)
    if mirror is not None:
        rows["mirror"] = mirror
    if status.troubles:
        rows["slow or hanging ranks"] = describe_troubles(status.troubles[-LISTED_TROUBLES:])
    setup = {
        "precision, ZeRO stage": f"{fields['precision']}, {fields['zero_stage']}",
        "code": config.code or "unknown",
        "configuration": (config.digest or "unknown")[:16],
    }
    micro_batch = describe_micro_batch(status.run_dir)
    if micro_batch is not None:
        setup["micro-batch"] = micro_batch
    # MLflow's viewer cuts a table after twelve rows, shows an empty header as a row, and shows no picture.
    table, settings = ("\n".join(f"| {name} | {value} |" for name, value in part.items()) for part in (rows, setup))
    attempts = "\n".join(
        f"| {span.number} | {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(span.started))} | "
        f"{duration(span.ended - span.started)} | {span.world_size or ''} | {span.first_step:,} | "
        f"{_goodput(spent.get(span.number))} | {_outcome(span, status)} |"
        for span in status.attempts
    )
    last_metric = scores.metric_of_record(evaluated[-1]) if evaluated else None
    reached = "not evaluated yet" if last_metric is None else f"{label} {100 * last_metric.value:.2f} %"
    headline = f"{status.model}: {reached}, {status.state} at step {status.step:,}"
    reached_scores = _score_table(evaluated[-1] if evaluated else None, _best(evaluated, scores), scores)
    went = f"The time went to: {status.spent.describe()}.\n\n" if status.goodput is not None else ""
    picture = f"The curves, and the attempts over time: `{PICTURE_NAME}`, beside this page.\n\n" if records else ""
    uri = status.registered["uri"] if status.registered else f"models:/{config.registry_name}@champion"
    server = f'mlflow.set_tracking_uri("{config.tracking_uri}")\n' if config.tracking_uri else ""
    return mask_secrets(
        f"""# {status.run_dir.name}

**{headline}**

| model | {status.model}, {fields["model.image_size"]} px |
|---|---|
{table}

{reached_scores}{went}{picture}{_describe_classes(status.run_dir)}| batch | {config.global_batch_size:,} images |
|---|---|
{settings}

| attempt | began | lasted | ranks | from step | goodput | ended |
|---|---|---|---|---|---|---|
{attempts}

{_describe_preflight(status)}```python
import mlflow

{server}model = mlflow.pyfunc.load_model("{uri}")
model.predict([open("photo.jpg", "rb").read()])  # {config.task.served.answer}
```
"""
    )


def draw(path: Path, run_dir: Path, status: RunStatus, records: list[dict[str, Any]]) -> None:
    """Draw loss, accuracy, learning rate and throughput over steps, and attempts, saves and goodput over time."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9.2), layout="constrained")
    axes: Any = figure.subplot_mosaic([["loss", "scores"], ["lr", "rate"], ["time", "time"]], height_ratios=[3, 3, 1.7])
    shown = records[:: max(1, len(records) // POINTS)]
    scores = read_config(run_dir).task.scores
    evaluated = [record for record in records if scores.metric_of_record(record) is not None]
    steps = [record["step"] for record in shown]

    loss = np.array([record.get("loss") for record in records], float)
    axes["loss"].plot(
        steps, [record.get("loss", np.nan) for record in shown], color="tab:blue", alpha=0.3, linewidth=0.8
    )
    window = max(1, len(loss) // SMOOTH)
    count = len(loss) // window * window
    middles = np.array([record["step"] for record in records], float)[:count].reshape(-1, window).mean(1)
    axes["loss"].plot(middles, loss[:count].reshape(-1, window).mean(1), color="tab:blue", label="training")
    if evaluated:
        at = [record["step"] for record in evaluated]
        losses = [record.get("eval_loss", np.nan) for record in evaluated]
        if np.isfinite(losses).any():
            axes["loss"].plot(at, losses, "o-", color="tab:orange", markersize=4, label="validation")
        for score in scores.shares:
            values = [100 * scores.of_record(record).get(score.name, np.nan) for record in evaluated]
            if np.isfinite(values).any():
                label = f"{score.label} {values[-1]:.2f} %"
                axes["scores"].plot(at, values, "o-", markersize=4, label=label)
        axes["scores"].legend(loc="best")
        axes["scores"].set_xlim(axes["loss"].get_xlim())
    axes["loss"].legend(loc="upper right")
    axes["lr"].plot(steps, [record.get("lr", np.nan) for record in shown], color="tab:green")
    axes["rate"].plot(
        steps, [record.get("images_per_s", np.nan) for record in shown], color="tab:purple", linewidth=0.8
    )
    axes["rate"].set_ylim(bottom=0)
    titles = {
        "loss": "Loss",
        "scores": "Scores of the averaged weights, %",
        "lr": "Learning rate",
        "rate": "Images/s",
    }
    for name, title in titles.items():
        axes[name].set_title(title, loc="left")
        axes[name].set_xlabel("step")
        axes[name].grid(alpha=0.3)
    _draw_time(axes["time"], run_dir, status, records)
    name = os.fsencode(status.run_dir.name).decode("utf-8", errors="replace")
    figure.suptitle(f"{name} ({status.model}), {status.state} at step {status.step:,}")
    figure.savefig(path, dpi=110)


def _goodput(spent: TimeSpent | None) -> str:
    return f"{100 * spent.goodput:.1f} %" if spent is not None and spent.wall else ""


def _outcome(span: AttemptSpan, status: RunStatus) -> str:
    """Return the outcome of an attempt; one without a recorded outcome runs or was killed."""
    if span.outcome is not None:
        return span.outcome
    return "running" if span is status.attempts[-1] and status.state == "running" else "killed"


def _draw_time(axis: Any, run_dir: Path, status: RunStatus, records: list[dict[str, Any]]) -> None:
    """Draw the attempts over wall time with their outcomes, lost steps and saves, and below them the sums."""
    if not status.attempts:
        return
    begin, end = status.attempts[0].started, status.attempts[-1].ended
    unit, name = next(((size, unit_name) for size, unit_name in _UNITS if end - begin > 2 * size), (1, "seconds"))
    for span in status.attempts:
        outcome = _outcome(span, status)
        colour = _COLOURS.get(outcome, "tab:gray")
        left = (span.started - begin) / unit
        width = max(span.ended - span.started, (end - begin) / 500) / unit
        axis.barh(0, width, left=left, color=colour, edgecolor="white")
        # Steps of an attempt after its last one that counts were computed again, or never finished.
        kept = max((record["time"] for record in records if record.get("attempt") == span.number), default=span.started)
        if outcome not in ("finished", "running") and span.ended > kept:
            lost = {"color": "none", "edgecolor": "white", "hatch": "////"}
            axis.barh(0, (span.ended - kept) / unit, left=(kept - begin) / unit, **lost)
        if span.ended - span.started > (end - begin) / 12:
            box = {"facecolor": colour, "edgecolor": "none", "pad": 2}
            axis.text(
                left + width / 2, 0, f"{span.number}: {outcome}", ha="center", va="center", color="white", bbox=box
            )
    saves = [event["time"] for event in read_events(run_dir) if event.get("event") == "save"]
    axis.plot([(at - begin) / unit for at in saves], [0.55] * len(saves), "v", color="black", markersize=5)
    preempted = sum(_outcome(span, status) in ("interrupted", "stopped") for span in status.attempts)
    count = len(status.attempts)
    title = [f"{count} attempt{'s' if count > 1 else ''}", f"{preempted} preempted", f"{len(saves)} saves (triangles)"]
    title += [] if status.goodput is None else [f"goodput {100 * status.goodput:.0f} % of the time"]
    axis.set_title(", ".join([*title, "hatched: lost"]), loc="left")
    left = 0.0
    for part, colour in _PARTS.items():
        seconds = getattr(status.spent, part)
        if seconds > 0.002 * status.spent.wall:
            label = f"{part.replace('_', ' ')} {100 * seconds / status.spent.wall:.1f} %"
            axis.barh(-1, seconds / unit, left=left / unit, height=0.4, color=colour, label=label)
            left += seconds
    if left:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.35), ncols=len(_PARTS), frameon=False, fontsize=9)
    axis.set_yticks([0, -1], ["attempts", "sums"])
    axis.set(xlabel=f"{name} since the first start", ylim=(-1.4, 0.75))
    axis.margins(x=0.01)


def _best(evaluated: list[dict[str, Any]], scores: Scores) -> dict[str, Any] | None:
    """Return the evaluated record with the best primary metric; of equals the first."""
    best: dict[str, Any] | None = None
    for record in evaluated:
        metric = scores.metric_of_record(record)
        if metric is not None and metric.beats(scores.metric_of_record(best) if best else None):
            best = record
    return best


def _score_table(last: dict[str, Any] | None, best: dict[str, Any] | None, scores: Scores) -> str:
    """Return a row for each score of the last evaluation and of the best; empty before the first."""
    if last is None or best is None:
        return ""
    now, then = scores.of_record(last), scores.of_record(best)
    rows = "\n".join(
        f"| {score.label} | {100 * now[score.name]:.2f} % | {100 * then.get(score.name, math.nan):.2f} % |"
        for score in scores.shares
        if score.name in now
    )
    best_label = scores.primary(then).label
    return f"| score | step {last['step']:,} | best {best_label}: step {best['step']:,} |\n|---|---|---|\n{rows}\n\n"


def _number(value: float | None, pattern: str) -> str:
    return "unknown" if value is None else pattern.format(value)


def _median(records: list[dict[str, Any]], key: str, factor: float = 1.0) -> float | None:
    values = [record[key] for record in records if key in record]
    return factor * statistics.median(values) if values else None
